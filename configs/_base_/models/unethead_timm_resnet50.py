# The decoder of unethead_timm.py over timm's ResNet-50. Building the model fetches the ImageNet weights from
# timm's hub, once a machine. Without a network, --cfg-options model.backbone.pretrained=False leaves them
# out (for testing a checkpoint they are not needed; training starts from scratch) and
# model.backbone.pretrained_cfg_overlay.file=FILE takes them from a file of timm's or torchvision's.
_base_ = "./unethead_timm.py"
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(model_name="resnet50", pretrained=True, init_cfg=None),
    decode_head=dict(in_channels=[64, 256, 512, 1024, 2048]),
)
