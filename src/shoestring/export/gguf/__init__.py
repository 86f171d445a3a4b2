"""A model or adapter folder as a GGUF file, checked by reading it back."""
