_base_ = "mmseg::segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py"
custom_imports = dict(imports=["pixeldcl_plugin"], allow_failed_imports=False)
