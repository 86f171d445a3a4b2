"""Room 5: chat and instruction data to supervised batches, and fine-tuning runs."""
