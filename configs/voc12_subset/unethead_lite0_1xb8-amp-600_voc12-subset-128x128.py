# A timm encoder with ImageNet weights (python tools/convert_timm_weights.py) under a U-Net decoder.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/voc12_subset.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(decode_head=dict(num_classes=21))
optim_wrapper = dict(type="BFloat16OptimWrapper")
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, begin=0, end=600, by_epoch=False)]
train_cfg = dict(max_iters=600, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
