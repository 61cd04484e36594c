# A timm encoder with ImageNet weights (python tools/convert_timm_weights.py) under a U-Net decoder.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/camvid.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(decode_head=dict(num_classes=11))
optim_wrapper = dict(type="BFloat16OptimWrapper")
default_hooks = dict(checkpoint=dict(interval=250))
