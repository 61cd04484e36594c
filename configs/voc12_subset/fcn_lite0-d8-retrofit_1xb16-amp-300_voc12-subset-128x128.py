# What tools/retrofit.py makes of fcn_lite0-d8: its weights, and a guided upsampler trained on top.
_base_ = "./fcn_lite0-d8_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(
    type="GuidedEncoderDecoder",
    backbone=dict(init_cfg=None),
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=4, residual=True),
    guide_index=[1, 0],
    guide_channels=[24, 16],
)
