# A timm encoder with ImageNet weights (python tools/convert_timm_weights.py) under a U-Net decoder.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/camvid.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
# Logits at half the size: every stage has a skip, and the classes 32 channels to stand out in.
model = dict(decode_head=dict(decoder_channels=[128, 64, 48, 32], num_convs=1, num_classes=11))
channels_last = True
optim_wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(interval=250))
