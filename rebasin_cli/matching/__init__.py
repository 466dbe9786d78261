"""Named tensors and a permutation spec in, permutations out.

`method` and `methods/` are what the rest of the package calls; `search` is the search by weights behind most of them.
"""
