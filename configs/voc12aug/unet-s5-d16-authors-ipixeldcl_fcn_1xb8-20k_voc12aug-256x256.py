_base_ = "./unet-s5-d16-authors-pixeldcl_fcn_1xb8-20k_voc12aug-256x256.py"
model = dict(backbone=dict(upsample_cfg=dict(type="IPixelDCL")))
