# A timm encoder with its ImageNet weights (see its base) under the decoder of a U-Net.
_base_ = [
    "../_base_/models/unethead_timm_resnet50.py",
    "../_base_/datasets/camvid.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(decode_head=dict(num_classes=11))
optim_wrapper = dict(type="BFloat16OptimWrapper")
default_hooks = dict(checkpoint=dict(interval=250))
