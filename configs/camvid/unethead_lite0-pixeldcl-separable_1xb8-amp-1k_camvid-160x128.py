_base_ = "./unethead_lite0_1xb8-amp-1k_camvid-160x128.py"
model = dict(decode_head=dict(upsample_cfg=dict(type="SeparablePixelDCL")))
