# What tools/retrofit.py makes of unethead_lite0-s8: its weights, and a guided upsampler trained on top.
_base_ = "./unethead_lite0-s8-guided_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(backbone=dict(init_cfg=None), guide_channels=[24, 16, 3])
