"""The search for maps of all classes: what brings B closest to A without changing what B computes."""
