_base_ = "./unethead_lite0_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(decode_head=dict(upsample_cfg=dict(type="SeparablePixelDCL")))
