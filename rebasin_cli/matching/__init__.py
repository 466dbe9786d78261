"""Named tensors and a permutation spec in, permutations out."""

from rebasin_cli.matching.result import MatchResult, PassReport
from rebasin_cli.matching.weight_matching import weight_matching

__all__ = ["MatchResult", "PassReport", "weight_matching"]
