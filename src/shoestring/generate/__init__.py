"""Room 4: sampling and the decoding engine."""
