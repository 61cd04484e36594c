_base_ = [
    "../_base_/models/vae_64x64.py",
    "../_base_/datasets/celeba.py",
    "../_base_/vae_runtime.py",
    "../_base_/schedules/adam_50k.py",
]
