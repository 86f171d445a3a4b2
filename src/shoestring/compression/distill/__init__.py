"""Distilling: a student learns the next-token distributions of a teacher of the same vocabulary."""
