_base_ = "./vae_pixeldcl_1xb16-1k_lfw-64x64.py"
# Narrower: at the same widths it has 1.6 times as many parameters as the other two.
model = dict(upsample_cfg=dict(type="IPixelDCL"), decoder_channels=(256, 56, 32, 24, 16))
