_base_ = "./unethead_resnet50_1xb8-20k_voc12aug-256x256.py"
model = dict(decode_head=dict(upsample_cfg=dict(type="DeconvModule", kernel_size=4)))
