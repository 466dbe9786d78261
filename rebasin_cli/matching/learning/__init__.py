"""Learning how B is brought to A from the loss of the networks between them: one loop for permutations and for maps."""
