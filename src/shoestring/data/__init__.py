"""Room 1: documents, tokenizers, chat templates, shards, packing and the resumable loader."""
