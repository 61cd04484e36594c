_base_ = "./fcn_r50-d8_4xb4-20k_coco-stuff10k-512x512.py"
model = dict(
    decode_head=dict(
        type="UpsampledFCNHead",
        upsample_cfg=dict(type="PixelDCL", scale_factor=8),
    )
)
