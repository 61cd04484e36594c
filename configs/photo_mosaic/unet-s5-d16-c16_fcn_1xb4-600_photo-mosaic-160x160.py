# The quick start: the paper's U-Net at a quarter of its width on the embedded set, minutes on a CPU.
_base_ = [
    "../_base_/models/unet-s5-d16_fcn.py",
    "../_base_/datasets/photo_mosaic.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(
    backbone=dict(base_channels=16),
    decode_head=dict(in_channels=16, channels=16, num_classes=7),
)
train_dataloader = dict(batch_size=4)
# A high rate up and down again learns most in few iterations.
param_scheduler = [dict(type="OneCycleLR", eta_max=5e-3, total_steps=600, by_epoch=False)]
train_cfg = dict(max_iters=600, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
