_base_ = "./deeplabv3_r101-d8-pixeldcl_4xb4-ft-10k_voc12aug-512x512.py"
model = dict(
    type="GuidedEncoderDecoder",
    decode_head=dict(
        upsample_cfg=dict(_delete_=True, type="GuidedPixelDCL", scale_factor=8),
        guide_index=[0, "image"],  # x2: the features at stride 4; x4, x8: the image
    ),
)
