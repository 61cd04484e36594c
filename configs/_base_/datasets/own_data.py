# A folder of images and masks with classes.txt (docs/own_data.md). The number of classes, their names and
# colours follow from it. These four are set on the command line, such as --cfg-options data_root=DIR.
data_root = None
masks = None  # "indices" or "colors" reads every mask so
val_fraction = 0.2  # where the folder has no splits of its own
split_seed = 0
dataset_type = "FolderSegDataset"
crop_size = (256, 256)
# Images of any size are brought to 320 pixels on the longer side. Predictions are judged at their own size.
scale = (320, 320)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadMask"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadMask"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(side, side), keep_ratio=True) for side in (240, 320, 400)],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="LoadMask")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
folder = dict(
    type=dataset_type, data_root=data_root, masks=masks, val_fraction=val_fraction, split_seed=split_seed
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(**folder, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,  # images differ in size
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**folder, split="val", pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**folder, split="test", pipeline=test_pipeline),
)
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
