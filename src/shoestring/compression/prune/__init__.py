"""Weights of a model made zero, or whole parts of it taken out."""
