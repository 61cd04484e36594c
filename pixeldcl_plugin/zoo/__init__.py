"""Models by name, with released weights."""
