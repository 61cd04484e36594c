# MSCOCO 2015 detection (the images of 2014) as segmentation in 81 classes, at 256x256 as in the paper.
# Masks and lists: for SPLIT in train2014 and val2014
#   python tools/dataset_converters/coco_detection.py data/coco/annotations/instances_SPLIT.json \
#       --images data/coco/SPLIT --out data/coco/masks
dataset_type = "COCODetectionDataset"
data_root = "data/coco"
crop_size = (256, 256)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    # Images bilinearly, masks to the nearest pixel.
    dict(type="Resize", scale=crop_size, keep_ratio=False),
    dict(type="RandomFlip", prob=0.5),
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
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="train2014", seg_map_path="masks/train2014"),
        ann_file="masks/train2014.txt",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,  # masks differ in size
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="val2014", seg_map_path="masks/val2014"),
        ann_file="masks/val2014.txt",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
