_base_ = "./segformer_mit-b1_8xb2-160k_ade20k-512x512.py"
model = dict(decode_head=dict(type="StagedSegformerHead", upsample_cfg=dict(type="SeparablePixelDCL")))
