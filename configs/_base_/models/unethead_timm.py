# A U-Net decoder over the five features of a timm encoder; the fifth stage brings the logits to the size of
# the image. Leaf configs name the upsampler. The encoder's ImageNet weights are written, without
# a download, by: python tools/convert_timm_weights.py
norm_cfg = dict(type="BN", requires_grad=True)
data_preprocessor = dict(
    type="SegDataPreProcessor",
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    # Five halvings: whatever the size of an image, it is padded to a multiple of 32.
    size_divisor=32,
    test_cfg=dict(size_divisor=32),
)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type="TIMMBackbone",
        model_name="tf_efficientnet_lite0",
        features_only=True,
        pretrained=False,
        init_cfg=dict(type="Pretrained", checkpoint=".cache/tf_efficientnet_lite0.pth"),
    ),
    decode_head=dict(
        type="UNetHead",
        in_channels=[16, 24, 40, 112, 320],
        in_index=[0, 1, 2, 3, 4],
        decoder_channels=[256, 128, 64, 32, 16],
        upsample_cfg=dict(type="InterpConv"),
        num_convs=2,
        # Features of lite0 leave a linear layer and are large.
        skip_norm_cfg=norm_cfg,
        # mmseg's 0.01 is meant for hundreds of channels: from 16 or 32, a short schedule is over before the
        # weights have grown, and small classes are never predicted.
        init_cfg=dict(type="Normal", std=0.2, override=dict(name="conv_seg")),
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
