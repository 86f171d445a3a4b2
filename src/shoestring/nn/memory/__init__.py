"""The memory bank: past keys and values outside the parameters (Memorizing Transformers, arXiv 2203.08913)."""
