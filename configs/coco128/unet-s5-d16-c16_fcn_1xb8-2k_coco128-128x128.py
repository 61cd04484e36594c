# From COCO's annotations to a trained U-Net in minutes on a CPU. Scored on the images that it was trained on:
# this shows that the whole path learns, not how well a model generalises.
_base_ = [
    "../_base_/models/unet-s5-d16_fcn.py",
    "../_base_/datasets/coco128.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(
    backbone=dict(base_channels=16),
    decode_head=dict(in_channels=16, channels=16, num_classes=81, dropout_ratio=0.0),
)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, begin=0, end=2000, by_epoch=False)]
train_cfg = dict(max_iters=2000, val_interval=500)
