"""The categories, by group."""
