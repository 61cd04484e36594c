# Adam at 1e-3 as in the paper, decayed to 1e-5 by half a cosine.
optimizer = dict(type="Adam", lr=1e-3)
optim_wrapper = dict(type="OptimWrapper", optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=80000, val_interval=8000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
