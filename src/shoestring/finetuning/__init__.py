"""Fine-tuning on your own examples: LoRA, DoRA, LoRA on a quantized base, or every weight."""
