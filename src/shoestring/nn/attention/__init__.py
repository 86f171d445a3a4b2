"""Attention kinds, one file each; `core.py` is what they share."""
