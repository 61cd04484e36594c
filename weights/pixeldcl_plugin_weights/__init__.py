"""Files of weights that pixeldcl_plugin has released; its zoo finds them here and verifies them."""
