_base_ = "./unet-s5-d16-c16_fcn_1xb8-5k_own-data-256x256.py"
model = dict(backbone=dict(upsample_cfg=dict(type="PixelDCL")))
