# MMSegmentation has no FCN on this set; this is made of its bases as its PSPNet on this set is.
_base_ = [
    "mmseg::_base_/models/fcn_r50-d8.py",
    "mmseg::_base_/datasets/coco-stuff164k.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_80k.py",
]
data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=171),
    auxiliary_head=dict(num_classes=171),
)
custom_imports = dict(imports=["pixeldcl_plugin"], allow_failed_imports=False)
