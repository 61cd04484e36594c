# Deconvolutions in the place of the bilinear resize, to compare with; a layer that takes no guide looks at
# the logits alone. An eighth of the rate suits a layer that adds up all channels, see docs/training.md.
_base_ = "./fcn_lite0-d8_1xb16-amp-1k_voc12-subset-128x128.py"
model = dict(
    type="GuidedEncoderDecoder",
    upsample_cfg=dict(
        type="UpsampleStages",
        num_stages=2,
        with_conv=False,
        upsample_cfg=dict(type="DeconvModule", kernel_size=4),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(guided=dict(lr_mult=0.125))))
