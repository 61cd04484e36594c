# The quick start: the resize of the logits is guided by the features at strides 4 and 2, and by the image.
_base_ = "./unethead_lite0-s8_1xb8-amp-400_photo-mosaic-160x160.py"
model = dict(
    type="GuidedEncoderDecoder",
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=8),
    guide_index=[1, 0, "image"],
)
