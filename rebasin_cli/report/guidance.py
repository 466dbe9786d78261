"""What to type next: one reason and one command that can be pasted, chosen by what was just measured.

Every verb takes its advice from here, so that two of them never say different things about the same situation. The
figures behind the advice are in docs/matching.md and docs/interpolation.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import split_name
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.options import options_of, words_of
from rebasin_cli.report.layout import Lines, text
from rebasin_cli.report.text import counted, number, shell
from rebasin_cli.report.verdict import finding
from rebasin_cli.verbs.align import AlignResult
from rebasin_cli.verbs.interpolate_result import InterpolateResult
from rebasin_cli.verbs.merge import MergeOptions, MergeResult
from rebasin_cli.verbs.shared_options import DataReading
from rebasin_cli.verbs.transfer import TransferResult

if TYPE_CHECKING:
    from rebasin_cli.execution.scores import Values

MIXTURE = "15 of 20 pairs in docs/matching.md"
"""Without data, weights mixed with activations on noise gave a midpoint of lower loss than weights on so many."""
LITTLE_MORE_THAN_CHANCE = 1.25
"""Weights say little where the gain of the similarity is less than this many times the gain by chance.

Of the four trained pairs in `matching.chance` one is below (1.05): on it, activations merge far better than weights."""
DATA, TRAINING_DATA, LOSS, GENERATED = "DATA", "TRAINING_DATA", "FILE.py:FUNCTION", "generated"
WITHOUT_DATA = "Training data are best; without any, inputs that the networks make stand in for them."
"""Why `generated` is advised for statistics. Measured in docs/generated.md."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A command, and why; `reason` is empty where the command is simply the next step."""

    command: Sequence[object]
    reason: str = ""

    @property
    def lines(self) -> list[str]:
        """As lines of the report."""
        return [*([self.reason] if self.reason else []), f"next: {shell(self.command)}"]


def after_align(result: AlignResult) -> Lines:
    """What this pair needs next, on the data of the run where it had some."""
    if result.out is None:
        return text("Nothing was written (dry run).")
    return _said([_the_line(result), _middle_without_data(result), _other_method(result)])


def after_interpolate(result: InterpolateResult) -> Lines | None:
    """What the line suggests: to keep its middle where that is as good as the ends, else another alignment."""
    if result.on_generated:
        return _said([_average(result)])
    if result.data is None and result.running_statistics and result.recalibration is None:
        return _said([_recalibrated(result)])
    if result.data is None or not result.labelled:
        return None
    curve = "matched" if "matched" in result.curves else "naive"
    found = finding(result, curve)
    if found == "none":
        return _said([_average(result)])
    height, error = result.barrier[curve].loss, result.barrier[curve].loss_standard_error
    fits = result.recalibration is not None or not result.running_statistics
    above = found == "there" and height is not None and error is not None and height > 2 * error
    if curve == "matched" and above and fits and result.aligned_by != "learned":
        return _said([_learned(result)])
    return None


def after_transfer(result: TransferResult) -> Lines | None:
    """What a transfer needs next: data to judge it by, or another scale."""
    if not result.scores:
        return text("Only data show whether the fine-tuning works on NEW_BASE: give --data DATA.")
    naive, moved, base = (result.scores.get(name) for name in ("naive", "transferred", "new_base"))
    if _clearly_better(naive, moved):
        return text("On these data the change does better without alignment (--align none).")
    if _clearly_better(base, moved):
        return text("On these data NEW_BASE does better without the change: try a smaller --scale.")
    return None


def _clearly_better(one: Values | None, other: Values | None) -> bool:
    """Whether an accuracy exceeds another one by more than two standard errors of the difference, taken as unpaired."""
    if one is None or other is None or one.accuracy is None or other.accuracy is None:
        return False
    errors = (one.accuracy_standard_error or 0.0, other.accuracy_standard_error or 0.0)
    return one.accuracy - other.accuracy > 2 * math.hypot(*errors)


def after_merge(result: MergeResult) -> Lines | None:
    """Statistics that fit the merged weights, where they were averaged; else a check of the result on data."""
    if result.out is None:
        return None
    given = [word for entry in options_of(MergeOptions) for word in words_of(entry, result.given.get(entry.name))]
    words = ["rebasin", "merge", *(one.path for one in result.inputs), *given]
    if result.running_statistics and result.recalibration is None:
        layers = counted(result.running_statistics, "BatchNorm layer")
        reason = f"The averaged statistics of {layers} do not fit the merged weights."
        held_out = result.data is not None and not is_generated(str(result.given.get("data")))
        training = TRAINING_DATA if held_out else GENERATED
        reason = reason if held_out else f"{reason} {WITHOUT_DATA}"
        return _said([Advice([*words, "--recalibrate", training, *_over(result.out, "recalibrated")], reason)])
    return None


def _said(advice: Sequence[Advice | None]) -> Lines:
    return text(*(line for one in advice if one is not None for line in one.lines))


def _other_method(result: AlignResult) -> Advice | None:
    """Another method, where this one had little to go by."""
    if not result.groups:
        words = [*_model(["rebasin", "trace", "--model", result.model], result), "-v"]
        return Advice(words, "The reason is given for every tensor.")
    if result.method != "weight" or result.already_aligned or result.distance.after <= 1e-6 * result.distance.before:
        return None
    if result.architecture.larger_classes and result.symmetries is None:
        reason = "More than permutations keeps this model's function: rotations and other maps may bring B closer to A."
        return Advice([*_align(result), *_over(result.out, "mapped"), "--symmetries", "all"], reason)
    if result.architecture.attention:
        reason = "On the transformers in docs/matching.md, permutations learned from data merge better than by weights."
        data = _on(result.data) or ["--data", TRAINING_DATA]
        more = [] if result.symmetries is None else ["--symmetries", result.symmetries.searched]
        return Advice([*_align(result), *_over(result.out, "learned"), *more, "--method", "learned", *data], reason)
    chance = result.chance
    if chance is not None and chance.ratio < LITTLE_MORE_THAN_CHANCE:
        reason = (
            f"The weights say little: matching raised the cosine by {number(chance.gain)} in a short search, and by "
            f"{number(chance.gain_by_chance)} on shuffled weights. "
            f"Mixed with activations, weights merged better on {MIXTURE}."
        )
        data = _on(result.data, without=("loss",))
        return Advice(
            [*_align(result), *_over(result.out, "mixed"), "--method", "activation", "--mix", "0.2", *data], reason
        )
    return None


def _the_line(result: AlignResult) -> Advice:
    """The sweep between the two networks."""
    if result.mismatched:
        reason = (
            "The heads have different sizes, so no loss can be given for both ends; a network between has B's head."
        )
        name = f"average{split_name(result.b)[1]}"
        own = ["--ignore-mismatched-sizes", "--lam", 0.5, "--save", name]
        return Advice([*_of_report(result.report, result), *own], reason)
    words = [*_of_report(result.report, result), "--steps", 10, *(_on(result.data) or ["--data", DATA])]
    if result.data is not None and result.data.get("real_targets") and result.data.get("loss") is None:
        words += ["--loss", LOSS]
    layers = result.architecture.running_statistics
    if not layers:
        return Advice(words)
    reason = f"Networks on the line need running statistics of their own in {counted(layers, 'BatchNorm layer')}."
    training = TRAINING_DATA if result.data is None else result.data["name"]
    return Advice([*words, "--recalibrate", training], reason)


def _middle_without_data(result: AlignResult) -> Advice | None:
    """The average of a pair whose networks between need statistics, where there are no data for those."""
    if result.data is not None or result.mismatched or not result.architecture.running_statistics:
        return None
    words = [*_of_report(result.report, result), "--lam", 0.5, "--save", f"average{split_name(result.b)[1]}"]
    return Advice([*words, "--recalibrate", GENERATED], WITHOUT_DATA)


def _recalibrated(result: InterpolateResult) -> Advice | None:
    """The network that was saved, once more, with statistics that fit its weights."""
    if len(result.saved) != 1 or len(result.lam) != 1 or len(result.checkpoints) > 2:
        return None
    layers = counted(result.running_statistics, "BatchNorm layer")
    reason = f"The averaged statistics of {layers} do not fit the weights that were saved. {WITHOUT_DATA}"
    words = [*_line_again(result), "--lam", result.lam[0], *([] if result.mode == "lerp" else ["--mode", result.mode])]
    return Advice([*words, "--save", result.saved[0], "--force", "--recalibrate", GENERATED], reason)


def _average(result: InterpolateResult) -> Advice | None:
    """Saving the middle; None where a network was asked for already, or there are several middles."""
    if result.lam or result.saved or len(result.checkpoints) > 2:
        return None
    words = _line_again(result)
    words += ["--lam", 0.5, *([] if result.mode == "lerp" else ["--mode", result.mode])]
    if result.recalibration is not None:  # without --data there is no other evaluation in the way
        words += ["--recalibrate", result.run.get("recalibrate") or result.run["data"]]
        words += [*_reading(result.run, without=("loss", "limit")), *(["--repair"] if result.run["repair"] else [])]
    return Advice([*words, "--save", f"average{split_name(result.b)[1]}"])


def _line_again(result: InterpolateResult) -> list[object]:
    """The command of the sweep, as far as it says which line."""
    if result.report is not None:
        return _of_report(result.report, result)
    words = _model(["rebasin", "interpolate", *result.checkpoints, "--model", result.model], result)
    key, ema = _states(result, result.a)
    return [*words, *([] if key is None else ["--key", key]), *(["--ema"] if ema else [])]


def _learned(result: InterpolateResult) -> Advice:
    """Learning the permutations of the pair, on the training data where the sweep had some."""
    words = _model(["rebasin", "align", result.a, result.b, "--model", result.model], result)
    for letter, path in (("a", result.a), ("b", result.b)):
        words += _state(letter, *_states(result, path))
    data = [result.run.get("recalibrate") or TRAINING_DATA, *_reading(result.run, without=("limit",))]
    reason = "Permutations learned from data may lower the barrier that is left."
    return Advice([*words, *_over(result.aligned, "learned"), "--method", "learned", "--data", *data], reason)


def _states(result: InterpolateResult, path: Path) -> tuple[str | None, bool]:
    """Which state of a file was read, as (key, ema)."""
    key, ema = result.run.get("states", {}).get(str(path), (None, False))
    return key, ema


def _of_report(report: Path | None, result: AlignResult | InterpolateResult) -> list[object]:
    """A sweep of the pair of this report, which needs no name if it is found without one."""
    here = report is None or report.parent.resolve() == Path.cwd()
    return ["rebasin", "interpolate", *([] if here else ["--report", report]), *_trust(result)]


def _trust(result: AlignResult | InterpolateResult) -> list[object]:
    """A report names no code that is run, so the user trusts it again."""
    return ["--trust-remote-code"] if result.trust_remote_code else []


def _align(result: AlignResult) -> list[object]:
    """The command of this run, as far as its result says what was given."""
    words = _model(["rebasin", "align", result.a, result.b, "--model", result.model], result)
    for letter in "ab":
        words += _state(letter, result.state[letter].get("key"), result.state[letter].get("ema"))
    return words


def _over(out: Path | None, name: str) -> list[object]:
    """The output in place of the present one; a directory is never replaced, so it gets another name."""
    if out is not None and out.is_dir():
        return ["-o", out.with_name(f"{out.name}-{name}")]
    return ["-o", out, "--force"]


def _state(letter: str, key: str | None, ema: bool | None) -> list[object]:
    """Which state of a file is aligned."""
    return [*([] if key is None else [f"--key-{letter}", key]), *([f"--ema-{letter}"] if ema else [])]


def _on(data: Mapping[str, Any] | None, without: Sequence[str] = ()) -> list[object]:
    """The data of an alignment, and how they were read; no words where there were none."""
    return [] if data is None else ["--data", data["name"], *_reading(data, without)]


def _reading(given: Mapping[str, Any], without: Sequence[str] = ()) -> list[object]:
    """How data are read, where not by default."""
    return [
        word
        for entry in options_of(DataReading)
        if entry.name in given and entry.name not in without
        for word in words_of(entry, given[entry.name])
    ]


def _model(words: list[object], result: AlignResult | InterpolateResult) -> list[object]:
    """The words with the options that build the model and run it."""
    for name, value in result.model_args.items():
        words += ["--model-arg", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    for given in result.inputs:
        words += ["--input", given]
    if result.input_file is not None:
        words += ["--input-file", result.input_file]
    return [*words, *_trust(result)]
