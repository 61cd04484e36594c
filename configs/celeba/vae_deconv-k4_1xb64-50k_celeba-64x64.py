_base_ = "./vae_pixeldcl_1xb64-50k_celeba-64x64.py"
model = dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4))
