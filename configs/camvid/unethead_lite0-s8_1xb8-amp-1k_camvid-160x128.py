# Two stages, which stop at stride 8: the logits are resized bilinearly, as those of FCN, PSP and DeepLab are.
_base_ = "./unethead_lite0_1xb8-amp-1k_camvid-160x128.py"
model = dict(
    decode_head=dict(in_channels=[40, 112, 320], in_index=[2, 3, 4], decoder_channels=[256, 128]),
)
