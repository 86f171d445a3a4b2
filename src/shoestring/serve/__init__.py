"""Room 6: the terminal chat."""
