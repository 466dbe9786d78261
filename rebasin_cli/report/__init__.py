"""Results turned into words: JSON documents and tables."""
