"""One model over several machines: each holds a range of layers, and hidden states pass from one to the next."""
