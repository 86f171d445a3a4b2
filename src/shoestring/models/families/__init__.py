"""One file per family: the map to and from Hugging Face configs and weight names."""
