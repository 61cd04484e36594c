_base_ = "./unet-s5-d16-c16_fcn_1xb4-amp-800_photo-mosaic-160x160.py"
model = dict(backbone=dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4)))
