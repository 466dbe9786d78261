"""Derives from a recorded forward pass which axes must be permuted together."""
