_base_ = "./upernet_r50_4xb4-160k_ade20k-512x512.py"
model = dict(decode_head=dict(type="StagedUPerHead", upsample_cfg=dict(type="GuidedPixelDCL")))
