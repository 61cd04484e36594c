# A timm encoder with its ImageNet weights (from tools/convert_timm_weights.py) under a U-Net's decoder.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/voc12aug_256x256.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_20k.py",
]
model = dict(decode_head=dict(num_classes=21))
default_hooks = dict(checkpoint=dict(interval=2000))
