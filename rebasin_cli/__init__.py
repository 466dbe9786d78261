"""Compare, align, merge and interpolate trained networks."""

__version__ = "0.1.0"
