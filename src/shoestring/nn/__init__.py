"""Room 2: the parts a decoder is made of."""
