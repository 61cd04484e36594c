# The U-Net of the paper, trained from scratch as there: 256x256, Adam at 1e-3, only the mean subtracted.
_base_ = [
    "../_base_/models/unet-s5-d16_fcn.py",
    "../_base_/datasets/voc12aug_256x256.py",
    "../_base_/default_runtime.py",
    "../_base_/schedules/adam_20k.py",
]
data_preprocessor = dict(std=[1.0, 1.0, 1.0])
model = dict(data_preprocessor=data_preprocessor, decode_head=dict(num_classes=21))
default_hooks = dict(checkpoint=dict(interval=2000))
