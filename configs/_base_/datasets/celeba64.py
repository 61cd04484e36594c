# 18,686 aligned faces of CelebA at 64x64, <identity>_<number>.jpg; split 80/10/10 by identity.
dataset_type = "FaceFolderDataset"
data_root = "data/celeba64/images.zip"
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split="train", flip=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="val"),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="test"),
)
val_evaluator = dict(type="VAEMetric")
test_evaluator = val_evaluator
