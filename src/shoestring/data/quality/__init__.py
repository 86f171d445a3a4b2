"""Which documents are worth training on: duplicates, near-duplicates and filters, one document in, a verdict out."""
