# A head alone, trained on the fixed features of a timm encoder with ImageNet weights (python
# tools/convert_timm_weights.py): minutes on one core, and what differs between two runs is the head.
_base_ = [
    "../_base_/models/fcn_timm.py",
    "../_base_/datasets/voc12_subset.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(backbone=dict(type="FrozenTIMMBackbone"), decode_head=dict(channels=256))
train_dataloader = dict(batch_size=16)
channels_last = True
optim_wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=1e-5, begin=100, end=1000, by_epoch=False),
    dict(type="LinearLR", start_factor=0.04, begin=0, end=100, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=500))
