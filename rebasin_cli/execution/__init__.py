"""Checks that run a network on numbers: one way to make inputs, to compute in float64, and to call results equal."""
