# DeepLab with ResNet-101 at output stride 8, fine-tuned from MMSegmentation's released model. As in the paper
# three x2 upsamplers, each followed by a 3x3 convolution, stand where the logits were resized 8x.
_base_ = "mmseg::deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py"
custom_imports = dict(imports=["pixeldcl_plugin"], allow_failed_imports=False)
# The base's weights in MMSegmentation's model zoo: all of this model's but those of what is new.
load_from = (
    "https://mmassets.onedl.ai/mmsegmentation/v0.5/deeplabv3/deeplabv3_r101-d8_512x512_20k_voc12aug/"
    "deeplabv3_r101-d8_512x512_20k_voc12aug_20200617_010932-8d13832f.pth"
)
model = dict(
    pretrained=None,  # load_from brings the backbone's weights too
    decode_head=dict(
        type="UpsampledASPPHead",
        upsample_cfg=dict(type="UpsampleStages", num_stages=3, upsample_cfg=dict(type="PixelDCL")),
    ),
)
# A tenth of the rate that the released model was trained at; the full rate for what is new.
optimizer = dict(lr=1e-3)
optim_wrapper = dict(
    optimizer=optimizer,
    paramwise_cfg=dict(
        custom_keys={
            "decode_head.upsample": dict(lr_mult=10.0),
            "decode_head.guided": dict(lr_mult=10.0),
        }
    ),
)
param_scheduler = [dict(type="PolyLR", eta_min=1e-5, power=0.9, begin=0, end=10000, by_epoch=False)]
train_cfg = dict(max_iters=10000, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000))
