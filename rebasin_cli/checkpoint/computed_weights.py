"""Weights that a file does not hold as they are, but in parts from which PyTorch computes them.

Weight norm stores a direction and lengths, pruning a weight and its mask, spectral norm a weight and its singular
vectors. A model built in the same way reads such a file; any other would have to compute the weight, and nothing could
be written back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rebasin_cli.errors import quoted


@dataclass(frozen=True, slots=True)
class Stored:
    """A way to store a weight in parts.

    Args:
        what: its name.
        parts: of `layer.weight`: what follows `layer.`, with `{}` for `weight`.
        build: how a model with these parts is built.
        undo: how the network that the file was saved from gets its weight back.
    """

    what: str
    parts: tuple[str, ...]
    build: str
    undo: str

    def names(self, key: str) -> tuple[str, ...]:
        """The parts of a weight."""
        layer, dot, name = key.rpartition(".")
        return tuple(f"{layer}{dot}{part.format(name)}" for part in self.parts)


_PARAMETRIZE = "torch.nn.utils.parametrize.remove_parametrizations"
WAYS = (
    Stored(
        "weight norm",
        ("{}_g", "{}_v"),
        "torch.nn.utils.parametrizations.weight_norm",
        "torch.nn.utils.remove_weight_norm",
    ),
    Stored(
        "weight norm",
        ("parametrizations.{}.original0", "parametrizations.{}.original1"),
        "torch.nn.utils.parametrizations.weight_norm",
        _PARAMETRIZE,
    ),
    Stored("pruning", ("{}_orig", "{}_mask"), "torch.nn.utils.prune", "torch.nn.utils.prune.remove"),
    Stored(
        "spectral norm",
        ("{}_orig", "{}_u"),
        "torch.nn.utils.parametrizations.spectral_norm",
        "torch.nn.utils.remove_spectral_norm",
    ),
    Stored(
        "spectral norm",
        ("parametrizations.{}.original", "parametrizations.{}.0._u"),
        "torch.nn.utils.parametrizations.spectral_norm",
        _PARAMETRIZE,
    ),
    Stored("a parametrization", ("parametrizations.{}.original",), "torch.nn.utils.parametrize", _PARAMETRIZE),
)


def explained(missing: Sequence[str], extra: Collection[str]) -> tuple[str, str] | None:
    """What a file is whose weights lie in parts, or lie whole where the model has parts; and what to do.

    Args:
        missing: the model's keys that the file lacks.
        extra: the file's keys that the model does not have; wrappers may have put prefixes before them.
    """
    for way in WAYS:
        whole = [key for key in missing if _in(way.names(key), extra)]
        if whole:
            parts = " and ".join(map(quoted, _in(way.names(whole[0]), extra)))
            return (
                f"{quoted(whole[0])} lies in parts, as {parts} ({way.what}{_more(len(whole) - 1)}): the model would"
                " have to compute it",
                f"build the model with {way.what} ({way.build}), or take it off the network of the file ({way.undo})"
                " and save its state_dict()",
            )
    for way in WAYS:
        held = [key for key in extra if _in(way.names(key), missing)]
        if held:
            parts = " and ".join(map(quoted, _in(way.names(held[0]), missing)))
            return (
                f"{quoted(held[0])} lies whole, and the model has it in parts, as {parts} ({way.what}"
                f"{_more(len(held) - 1)})",
                f"build the model without {way.what}, or save the file from a network that has it",
            )
    return None


def _in(names: Sequence[str], keys: Collection[str]) -> tuple[str, ...]:
    """These names as they are among the keys, perhaps behind or without a prefix; empty unless all are there."""
    found = []
    for name in names:
        other = next((key for key in keys if key == name or key.endswith(f".{name}") or name.endswith(f".{key}")), None)
        if other is None:
            return ()
        found.append(other)
    return tuple(found)


def _more(count: int) -> str:
    return f", and {count:,} more" if count else ""
