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
    decode_head=dict(
        in_channels=16,
        # Sixteen channels are few for 81 classes.
        channels=64,
        num_classes=81,
        dropout_ratio=0.0,
        # mmseg's 0.01 takes longer to grow than this schedule lasts: everything would be background.
        init_cfg=dict(type="Normal", std=0.1, override=dict(name="conv_seg")),
    ),
)
channels_last = True
# As in the quick start on the photo mosaic: bfloat16, and a high rate up and down again.
optim_wrapper = dict(
    _delete_=True,
    type="BFloat16OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.01),
)
param_scheduler = [dict(type="OneCycleLR", eta_max=5e-3, total_steps=1000, by_epoch=False)]
train_cfg = dict(max_iters=1000, val_interval=250)
default_hooks = dict(checkpoint=dict(interval=250))
