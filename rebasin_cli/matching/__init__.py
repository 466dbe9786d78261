"""Named tensors and a permutation spec in, permutations out."""

from rebasin_cli.matching.activation_matching import activation_matching, match_activations
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import Candidate, MatchResult, PassReport
from rebasin_cli.matching.search import search
from rebasin_cli.matching.weight_matching import weight_matching

__all__ = [
    "Candidate",
    "MatchResult",
    "PassReport",
    "activation_matching",
    "match_activations",
    "prepare",
    "search",
    "weight_matching",
]
