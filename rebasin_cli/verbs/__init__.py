"""One file a verb: typed functions that do the work and return frozen results; they never print."""
