# A timm encoder with its ImageNet weights (python tools/convert_timm_weights.py) under the decoder of a U-Net.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/voc12_subset.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(decode_head=dict(num_classes=21))
optim_wrapper = dict(type="BFloat16OptimWrapper")
default_hooks = dict(checkpoint=dict(interval=250))
