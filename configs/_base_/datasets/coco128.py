# The 128 COCO images of coco128, for a look at the whole path from annotations to a trained model: training
# and validation see THE SAME images, so that the scores are those of memorising, and of nothing else. Masks:
#   python tools/dataset_converters/coco_detection.py data/coco128/annotations/instances_coco128.json \
#       --images data/coco128/images/train2017 --out .cache/coco128
dataset_type = "COCODetectionDataset"
data_prefix = dict(img_path="data/coco128/images/train2017", seg_map_path=".cache/coco128/coco128")
ann_file = ".cache/coco128/coco128.txt"
crop_size = (128, 128)
# No augmentation: what is shown in training is what validation asks for.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", scale=crop_size, keep_ratio=False),
    dict(type="PackSegInputs"),
]
# The annotations are loaded after the resize: predictions are judged at the size of the image.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=crop_size, keep_ratio=False),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=crop_size, keep_ratio=False)],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_prefix=data_prefix, ann_file=ann_file, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,  # masks differ in size
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_prefix=data_prefix, ann_file=ann_file, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
