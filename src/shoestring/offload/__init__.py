"""Models larger than memory: layers stream from disk through a few buffers, for training and for decoding."""
