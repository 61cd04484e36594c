# A timm encoder with ImageNet weights (python tools/convert_timm_weights.py), trained along, under mmseg's
# FCNHead: about as good as the two stages of unethead_lite0-s8, and slower.
_base_ = [
    "../_base_/models/fcn_timm.py",
    "../_base_/datasets/camvid.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(decode_head=dict(num_classes=11))
channels_last = True
optim_wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(interval=250))
