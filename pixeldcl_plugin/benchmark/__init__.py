"""Upsamplers timed against each other."""
