_base_ = "./deeplabv3_r101-d8-pixeldcl_4xb4-ft-10k_voc12aug-512x512.py"
model = dict(decode_head=dict(upsample_cfg=dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4))))
