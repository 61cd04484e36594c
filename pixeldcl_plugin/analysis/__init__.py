"""The checkerboard examined in trained models."""
