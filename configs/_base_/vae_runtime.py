# The default runtime without what is for segmentation only.
_base_ = "./default_runtime.py"
visualizer = dict(type="Visualizer")
default_hooks = dict(
    checkpoint=dict(save_best="nelbo", rule="less"),
    visualization=dict(type="ReconstructionHook"),
)
tta_model = None
