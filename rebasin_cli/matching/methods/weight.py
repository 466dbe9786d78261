"""Weight matching (Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2022, section 3.2): the weights alone decide.

It maximises `sum over parameters <A, B permuted>`. Data and the model only add starts to the search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Method

if TYPE_CHECKING:
    from rebasin_cli.matching.result import MatchResult


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.search import match_weights

    return match_weights(task)


def _maps(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.symmetries.match import match_maps

    return match_maps(task)


METHOD = Method(
    name="weight",
    help="Maximize the similarity of the weights. Needs no data; with data, the search also starts from activations.",
    match=_match,
    maps=_maps,
)
