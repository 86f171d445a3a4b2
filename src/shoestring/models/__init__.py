"""Room 3: the decoder, its builder, families, and model folders on disk."""
