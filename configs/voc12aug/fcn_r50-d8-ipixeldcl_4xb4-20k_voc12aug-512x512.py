_base_ = "./fcn_r50-d8_4xb4-20k_voc12aug-512x512.py"
model = dict(
    decode_head=dict(
        type="UpsampledFCNHead",
        upsample_cfg=dict(type="IPixelDCL", scale_factor=8),
    )
)
