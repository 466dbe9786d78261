"""What to type next: one reason and one command that can be pasted, chosen by what was just measured.

Every verb takes its advice from here, so that two of them never say different things about the same situation. The
figures behind the advice are in docs/matching.md and docs/interpolation.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.report.layout import Lines, text
from rebasin_cli.report.text import counted, number, shell
from rebasin_cli.verbs.align import AlignResult

LITTLE_MORE_THAN_CHANCE = 1.25
"""Weights say little where the gain of the similarity is less than this many times the gain by chance.

Of the four trained pairs in `matching.chance` one is below (1.04): on it, activations merge far better than weights."""
DATA, TRAINING_DATA = "DATA", "TRAINING_DATA"


@dataclass(frozen=True, slots=True)
class Advice:
    """A command, and why; `reason` is empty where the command is simply the next step."""

    command: Sequence[object]
    reason: str = ""

    @property
    def lines(self) -> list[str]:
        """As lines of the report."""
        return [*([self.reason] if self.reason else []), f"next: {shell(self.command)}"]


def after_align(result: AlignResult, data: str | None = None) -> Lines:
    """What this pair needs next.

    Args:
        data: the value of `--data`, where there was one.
    """
    if result.out is None:
        return text("Nothing was written (dry run).")
    return text(*(line for one in (_the_line(result, data), _other_method(result, data)) if one for line in one.lines))


def _other_method(result: AlignResult, data: str | None) -> Advice | None:
    """Another method, where this one had little to go by."""
    if not result.groups:
        words = [*_model(["rebasin", "trace", "--model", result.model], result), "-v"]
        return Advice(words, "The reason is given for every tensor.")
    if result.method != "weight" or result.already_aligned or result.distance.after <= 1e-6 * result.distance.before:
        return None
    if result.architecture.attention:
        reason = "On the transformers in docs/matching.md, permutations learned from data merge better than by weights."
        return Advice([*_align(result), "--method", "learned", "--data", data or TRAINING_DATA, "--force"], reason)
    chance = result.chance
    if chance is not None and chance.ratio < LITTLE_MORE_THAN_CHANCE:
        given = [] if data is None else ["--data", data]
        reason = (
            f"The weights say little: matching raised the cosine by {number(chance.gain)} in a short search, and by "
            f"{number(chance.gain_by_chance)} on shuffled weights. Activations may match the units better."
        )
        return Advice([*_align(result), "--method", "activation", "--mix", "0.2", *given, "--force"], reason)
    return None


def _the_line(result: AlignResult, data: str | None) -> Advice:
    """The sweep between the two networks."""
    words: list[object] = ["rebasin", "interpolate"]
    if result.report is not None and result.report.parent.resolve() != Path.cwd():
        words += ["--report", result.report]
    words += ["--steps", 10, "--data", data or DATA]
    layers = result.architecture.running_statistics
    if not layers:
        return Advice(words)
    reason = f"Networks on the line need running statistics of their own in {counted(layers, 'BatchNorm layer')}."
    return Advice([*words, "--recalibrate", data or TRAINING_DATA], reason)


def _align(result: AlignResult) -> list[object]:
    """The command of this run, as far as its result says what was given."""
    words = _model(["rebasin", "align", result.a, result.b, "--model", result.model], result)
    states = {name: result.state[name] for name in "ab"}
    for name, state in states.items():
        if state.get("key") is not None:
            words += [f"--key-{name}", state["key"]]
        if state.get("ema"):
            words.append(f"--ema-{name}")
    return [*words, "-o", result.out]


def _model(words: list[object], result: AlignResult) -> list[object]:
    """The words with the options that build the model and run it."""
    for name, value in result.model_args.items():
        words += ["--model-arg", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    for given in result.inputs:
        words += ["--input", given]
    if result.input_file is not None:
        words += ["--input-file", result.input_file]
    return words
