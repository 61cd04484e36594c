# The U-Net as PixelDCL's authors have it: a convolution halves the channels before every upsampler, which
# keeps them (C to C), where mmseg's upsampler halves them itself (2C to C). One convolution after each skip.
_base_ = "./unet-s5-d16_fcn_1xb8-20k_voc12aug-256x256.py"
model = dict(
    backbone=dict(
        enc_num_convs=(2, 2, 2, 2, 1),  # the second of the lowest level is the one before its upsampler
        dec_num_convs=(1, 1, 1, 1),
        upsample_cfg=dict(type="PixelDCL", conv_first=True, init="paper"),
    )
)
