# The three deeper features of a timm encoder, side by side at stride 8, under mmseg's FCNHead. The logits
# stay at stride 8 and are resized bilinearly, as those of FCN, PSP and DeepLab are. The encoder's weights are
# those of ImageNet, written without a download by: python tools/convert_timm_weights.py
_base_ = ["./unethead_timm.py"]
model = dict(
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=[40, 112, 320],
        in_index=[2, 3, 4],
        input_transform="resize_concat",
        channels=128,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        # mmseg's 0.01 takes a good part of a short schedule to grow.
        init_cfg=dict(type="Normal", std=0.2, override=dict(name="conv_seg")),
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
    ),
)
