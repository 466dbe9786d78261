"""Records one forward pass as a list of operations."""
