_base_ = "./unethead_resnet50_1xb8-amp-1k_camvid-160x128.py"
model = dict(decode_head=dict(upsample_cfg=dict(type="IPixelDCL")))
