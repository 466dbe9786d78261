"""Many networks made into one: who shares a base, who is aligned to whom, and how weights are combined."""
