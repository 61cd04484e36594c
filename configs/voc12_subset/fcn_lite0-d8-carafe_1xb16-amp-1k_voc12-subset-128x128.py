# The logits enlarged by CARAFE, which sees them alone.
_base_ = "./fcn_lite0-d8_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(type="GuidedEncoderDecoder", upsample_cfg=dict(type="TorchCARAFE", scale_factor=4))
