"""`compress`: several ways tried, each measured, the best that meets a target kept."""
