_base_ = "./fcn_lite0-d8_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(
    type="GuidedEncoderDecoder",
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=4),
    guide_index=[1, 0],  # the features at strides 4 and 2; what is left is resized bilinearly
)
