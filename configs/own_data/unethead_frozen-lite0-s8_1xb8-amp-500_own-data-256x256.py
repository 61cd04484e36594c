# The encoder stays as ImageNet left it, and the decoder alone is trained: minutes on a CPU.
_base_ = "./unethead_lite0-s8_1xb8-amp-500_own-data-256x256.py"
model = dict(backbone=dict(type="FrozenTIMMBackbone"))
