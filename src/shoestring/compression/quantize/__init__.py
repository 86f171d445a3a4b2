"""`quantize`: the matrices of a model's blocks in few bits."""
