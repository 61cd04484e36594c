_base_ = "./fcn_lite0-d8-deconv-k4_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(upsample_cfg=dict(_delete_=True, type="PixelDCL", scale_factor=4))
