_base_ = "mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py"
custom_imports = dict(imports=["pixeldcl_plugin"], allow_failed_imports=False)
