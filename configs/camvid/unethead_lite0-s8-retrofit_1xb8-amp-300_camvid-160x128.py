# What tools/retrofit.py makes of unethead_lite0-s8: its weights, and a guided upsampler trained on top.
_base_ = "./unethead_lite0-s8_1xb8-amp-1k_camvid-160x128.py"
model = dict(
    type="GuidedEncoderDecoder",
    backbone=dict(init_cfg=None),
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=4, residual=True),
    guide_index=[1, 0],
    guide_channels=[24, 16],
)
