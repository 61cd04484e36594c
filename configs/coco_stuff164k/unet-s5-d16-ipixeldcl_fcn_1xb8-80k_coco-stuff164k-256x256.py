_base_ = "./unet-s5-d16_fcn_1xb8-80k_coco-stuff164k-256x256.py"
model = dict(backbone=dict(upsample_cfg=dict(type="IPixelDCL")))
