"""Reading GGUF files: a strict parser, dequantization, tokenizers, conversion to a Hugging Face folder."""
