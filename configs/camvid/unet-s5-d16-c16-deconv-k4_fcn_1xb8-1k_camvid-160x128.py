_base_ = "./unet-s5-d16-c16_fcn_1xb8-1k_camvid-160x128.py"
model = dict(backbone=dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4)))
