_base_ = "./vae_pixeldcl_1xb16-1k_lfw-64x64.py"
model = dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4))
