# The paper's U-Net at a quarter of its width, from scratch: it needs no weights, and more images and time.
_base_ = [
    "../_base_/models/unet-s5-d16_fcn.py",
    "../_base_/datasets/own_data.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_5k.py",
]
model = dict(
    backbone=dict(base_channels=16),
    decode_head=dict(in_channels=16, channels=16, num_classes=2),  # of a folder: as many as it has
)
