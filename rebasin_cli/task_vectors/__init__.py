"""Task vectors: what a fine-tuning changed, `finetuned - base`, moved to another base, and metrics between pairs."""
