_base_ = "./fcn_r50-d8_4xb4-20k_voc12aug-512x512.py"
model = dict(
    type="GuidedEncoderDecoder",
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=8),
    guide_index=[0, "image"],  # x2: the features at stride 4; x4, x8: the image
)
