"""Examples to learn from: rows of many forms, a chat template, the mask of what is learned, packed batches."""
