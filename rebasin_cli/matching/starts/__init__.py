"""Starts of the search by weights."""
