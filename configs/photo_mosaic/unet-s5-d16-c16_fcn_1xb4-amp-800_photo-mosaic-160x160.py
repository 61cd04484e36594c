# The quick start: the paper's U-Net at a quarter of its width on the embedded set, minutes on a CPU.
_base_ = [
    "../_base_/models/unet-s5-d16_fcn.py",
    "../_base_/datasets/photo_mosaic.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_1k.py",
]
model = dict(
    backbone=dict(base_channels=16),
    # So short a run has more use for every feature than for dropout.
    decode_head=dict(in_channels=16, channels=16, num_classes=7, dropout_ratio=0.0),
)
train_dataloader = dict(batch_size=4)
# bfloat16 makes it minutes; on a CPU without instructions for it: optim_wrapper.type=OptimWrapper.
# A high rate up and down again learns most in few iterations.
optim_wrapper = dict(
    _delete_=True,
    type="BFloat16OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.01),
)
param_scheduler = [dict(type="OneCycleLR", eta_max=5e-3, total_steps=800, by_epoch=False)]
train_cfg = dict(max_iters=800, val_interval=400)
default_hooks = dict(checkpoint=dict(interval=200))
