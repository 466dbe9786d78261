"""The model a verb works on: built without its weights, with an input to run it on and the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import UsageError
from rebasin_cli.execution.usable_input import first_usable
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import ModelFactory, load_factory
from rebasin_cli.model.input_guess import refusal
from rebasin_cli.model.input_option import (
    InputSpec,
    draw,
    further_input,
    in_unit_range,
    parse_input,
    read_input_file,
    with_masks_off,
)
from rebasin_cli.model.state import parameter_keys, state_shapes, ties
from rebasin_cli.tracing.passes import Passes


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the user said about the model, as the options of the same names say it.

    Args:
        spec: `torchvision:NAME`, `path/file.py:callable`, …
        args: keyword arguments of the model's constructor.
        inputs: texts such as `1,3,224,224` or `ids=1,16:int64`; empty where the zoo knows the input.
        input_file: an `.npz` file with the input instead.
        seed: decides the values of a drawn input.
        trace_calls: names of other methods of the model that are traced too.
        also_inputs: texts such as `ids=1,16:int64; task="b"`, each a further input that is traced too.
        trust_remote_code: run Python code that lies in the model's directory.
    """

    spec: str
    args: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    input_file: Path | None = None
    seed: int = 0
    trace_calls: Sequence[str] = ()
    also_inputs: Sequence[str] = ()
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """The model, weightless, and what is known about it before it has run."""

    factory: ModelFactory
    module: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    parameters: tuple[str, ...]
    note: str | None
    load_maps: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def elements(self) -> int:
        """Number of parameter elements, tied ones counted once."""
        return sum(prod(self.shapes[key]) for key in self.parameters)

    def weightless(self) -> nn.Module:
        """The module, for code that runs it on weights of its own and leaves it as it was."""
        return self.module


def open_subject(choice: ModelChoice, file_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Subject:
    """Build the model without weights, with the class count of the checkpoint whose shapes are given.

    Raises:
        UsageError, ModelError, ResourceError: the spec cannot be resolved or the model cannot be built.
    """
    factory = load_factory(choice.spec, choice.args, seed=choice.seed, trust_remote_code=choice.trust_remote_code)
    note = factory.source.note
    if file_shapes is not None:
        factory, adapted = factory.adapt_to(file_shapes)
        note = "; ".join(sentence for sentence in (note, adapted) if sentence) or None
    module = factory.build_weightless()
    return Subject(factory, module, state_shapes(module), ties(module), parameter_keys(module), note)


def example_for(choice: ModelChoice, subject: Subject) -> ExampleInput:
    """The user's input where one was given, else the one the zoo knows, else the first guess that the model takes.

    Where only shapes are known, the numbers are drawn in several ways until the model gives numbers for them.

    Raises:
        UsageError: both kinds of input were given, or one is malformed.
        ModelError: no input was given and none is known.
    """
    if choice.inputs and choice.input_file is not None:
        raise UsageError("--input and --input-file cannot both be given")
    if choice.input_file is not None:
        return read_input_file(choice.input_file)
    if choice.inputs:
        specs = [parse_input(text) for text in choice.inputs]
        drawn = draw(specs, subject.module, choice.seed)
        return first_usable(subject.module, _different(drawn, specs, choice, subject)) or drawn
    candidates = subject.factory.input_candidates(subject.module)
    if len(candidates) == 1:
        return candidates[0]
    found = first_usable(subject.module, _accepted(candidates, subject))
    return found or subject.factory.example_input(subject.module)


def passes_for(choice: ModelChoice, subject: Subject, first: ExampleInput) -> Passes:
    """What is traced besides one forward pass.

    Raises:
        UsageError: a text cannot be read, or the model has no such method.
    """
    also = tuple(further_input(text, first, subject.module, choice.seed) for text in choice.also_inputs)
    passes = Passes(tuple(choice.trace_calls), also)
    passes.check(subject.module)
    return passes


def _accepted(candidates: Sequence[ExampleInput], subject: Subject) -> Iterator[ExampleInput]:
    """The candidates whose shapes the model takes, found as they are asked for; then the same in [0, 1)."""
    accepted = []
    for candidate in candidates:
        if refusal(subject.module, candidate) is None:
            accepted.append(candidate)
            yield candidate
    yield from map(in_unit_range, accepted)


def _different(
    drawn: ExampleInput, specs: Sequence[InputSpec], choice: ModelChoice, subject: Subject
) -> Iterator[ExampleInput]:
    """The same shapes drawn in other ways: floats in [0, 1), integers valid for every table, nothing marked as true."""
    yield drawn
    small = draw(specs, subject.module, choice.seed, smallest_table=True)
    for base in (drawn, small):
        yield base
        yield in_unit_range(base)
        yield with_masks_off(base)
        yield with_masks_off(in_unit_range(base))
