"""One forward pass, recorded as a list of operations."""
