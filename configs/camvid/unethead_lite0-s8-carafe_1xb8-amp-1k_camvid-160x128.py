# The logits enlarged by CARAFE, which sees them alone.
_base_ = "./unethead_lite0-s8_1xb8-amp-1k_camvid-160x128.py"
model = dict(type="GuidedEncoderDecoder", upsample_cfg=dict(type="TorchCARAFE", scale_factor=4))
