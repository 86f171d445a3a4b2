"""Room 4: the one training loop and what it is made of."""
