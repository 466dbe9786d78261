"""Task vectors (fine-tuned minus base weights) and metrics between pairs of them."""
