_base_ = "./unethead_lite0-s8_1xb8-amp-500_own-data-256x256.py"
model = dict(
    type="GuidedEncoderDecoder",
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=8),
    guide_index=[1, 0, "image"],  # the features at strides 4 and 2
)
