_base_ = "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py"
custom_imports = dict(imports=["pixeldcl_plugin"], allow_failed_imports=False)
