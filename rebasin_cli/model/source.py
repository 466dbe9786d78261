"""Where a model comes from: what every zoo and the user's own code offer alike."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.failures import did_you_mean


class Source(Protocol):
    """A callable that makes a model, found but not yet called."""

    @property
    def name(self) -> str:
        """The model spec, for every message and report."""

    @property
    def root(self) -> Path | None:
        """The user's file or directory, whose line a failure names; None where the code is a package's."""

    def construct(self, args: Mapping[str, Any]) -> object:
        """Call it. Whatever it raises and returns is judged by the factory."""

    def signature(self) -> inspect.Signature | None:
        """Its parameters, None where they cannot be known."""

    def class_count_names(self) -> tuple[str, ...]:
        """The arguments that may be a number of classes, likeliest first."""

    def switches(self) -> tuple[tuple[str, object], ...]:
        """Arguments that add or take away auxiliary parts, each with the value that is not the default."""

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """The input known for this model, None where nothing is known."""


def refuse_unknown_arguments(name: str, signature: inspect.Signature | None, args: Mapping[str, Any]) -> None:
    """Hold the arguments against a signature before anything is built.

    Raises:
        ModelError: an argument that is not taken, or a required one that is not given, by name.
    """
    if signature is None:
        return
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for argument in args:
            if argument not in named:
                raise unknown_argument(name, argument, named)
    for p in parameters:
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty and p.name not in args:
            raise ModelError(
                f"{name} needs the argument {p.name!r}", hint=f"give it with --model-arg {p.name}=…", slug="model-arg"
            )
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise ModelError(
                f"{name} takes {p.name!r} by position only", hint="wrap it in a function", slug="model-arg"
            )


def unknown_argument(name: str, argument: str, known: list[str]) -> ModelError:
    """The error for an argument that the model's constructor does not take."""
    return ModelError(
        f"{name} takes no argument {argument!r}{did_you_mean(argument, known)}",
        hint="see --model-arg" + (f"; it takes {', '.join(known)}" if known and len(known) < 12 else ""),
        slug="model-arg",
    )


def refuse_weights(name: str, args: Mapping[str, Any], *reserved: str) -> None:
    """Weights are never downloaded: the arguments that would do so are refused, unless they say no.

    Raises:
        ModelError: naming the argument.
    """
    for argument in reserved:
        if args.get(argument):
            raise ModelError(
                f"{name}: --model-arg {argument}={args[argument]} would download weights, which is never done",
                hint="weights come from the checkpoints; leave the argument out",
                slug="model-arg",
            )
