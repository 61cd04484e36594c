_base_ = "./unet-s5-d16-c16_fcn_1xb8-amp-1k_coco128-128x128.py"
model = dict(backbone=dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4)))
