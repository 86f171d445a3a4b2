"""Matrices of a model's blocks as products of two thin ones."""
