"""The data of a sweep: what the networks are evaluated on, and what their statistics are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from rebasin_cli.data import BatchSource
from rebasin_cli.data.source import ModelView
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.chance import no_better_than_chance
from rebasin_cli.execution.data_inputs import Classes, model_view
from rebasin_cli.execution.generated.maker import InputMaker, maker_of
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.subject import ModelChoice, example_for
from rebasin_cli.interpolation.models import SweepModels
from rebasin_cli.interpolation.sweep import Sweep, SweepPoint
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.progress import Progress


@dataclass(frozen=True, slots=True)
class SweepData:
    """`evaluation` is None where networks are only saved, `statistics` where nothing is recalibrated.

    `unlabelled` data have no target at all, so that outputs are compared with those of the ends.
    """

    evaluation: BatchSource | None
    statistics: BatchSource | None
    unlabelled: bool = False

    def identity(self) -> dict[str, Any]:
        """Everything about the data that decides the numbers; as a digest, because a list of files can be long."""
        return {
            "evaluation": _digest(self.evaluation),
            "statistics": _digest(self.statistics),
        }


def _digest(source: BatchSource | None) -> str | None:
    if source is None:
        return None
    return hashlib.sha256(source.fingerprint.encode("utf-8", "surrogateescape")).hexdigest()


def classes_of(models: SweepModels, *, labelled: bool) -> Classes:
    """Counts the classes of the first network of a sweep; `labelled` data must fit its outputs."""

    def slot() -> ModelSlot:
        models.slot.load(models.networks.first)
        return models.slot

    return Classes(slot, labelled=labelled)


def chance_warnings(
    curves: Mapping[str, Sequence[SweepPoint]], files: Mapping[str, Sequence[Path]], *, cross_entropy: bool
) -> list[str]:
    """A sentence for each curve whose ends classify no better than by chance, about the first such end.

    Args:
        files: along each curve.
        cross_entropy: the loss is that, and not the user's.
    """
    found: dict[str, None] = {}
    for curve, points in curves.items():
        ends = [(files[curve][point.segment + int(point.lam)], point) for point in points if point.at_end]
        said = (no_better_than_chance(str(path), point, cross_entropy=cross_entropy) for path, point in ends)
        found |= dict.fromkeys([text for text in said if text is not None][:1])
    return list(found)


def language_figures(data: SweepData, sweep: Sweep) -> dict[str, Any] | None:
    """Perplexity and bits per byte of every point, and the barriers in bits per byte; None where the data are no text.

    The loss is in nats per token: `exp(loss)` is the perplexity, and `loss / ln 2` bits go for `bytes_per_token`.
    """
    facts = None if data.evaluation is None else data.evaluation.text
    if facts is None:
        return None

    def bits(loss: float | None) -> float | None:
        return None if loss is None else loss / log(2) / facts.bytes_per_token

    return {
        "tokenizer": facts.tokenizer,
        "tokens": facts.tokens,
        "bytes": facts.bytes,
        "bytes_per_token": facts.bytes_per_token,
        "curves": {
            curve: [
                {
                    "segment": point.segment,
                    "lam": point.lam,
                    "perplexity": None if point.loss is None or point.loss > 700 else exp(point.loss),
                    "bits_per_byte": bits(point.loss),
                }
                for point in points
            ]
            for curve, points in sweep.curves.items()
        },
        "barrier_bits_per_byte": {curve: bits(barrier.loss) for curve, barrier in sweep.barrier.items()},
        "barrier_bits_per_byte_standard_error": {
            curve: bits(barrier.loss_standard_error) for curve, barrier in sweep.barrier.items()
        },
    }


def sweep_view(
    models: SweepModels,
    choice: ModelChoice,
    transform: str | None,
    classes: Classes,
    *,
    stated: bool,
    ends: Sequence[Path],
    progress: Progress,
) -> tuple[ModelView, InputMaker]:
    """What reading the data needs to know about the model, and what makes inputs without data.

    Args:
        transform: the user's image transform; None for that of the model.
        stated: the user stated the input.
        ends: the checkpoints that make inputs without data.
    """
    example = _example(models, choice)
    networks = [models.weights[path] for path in dict.fromkeys(ends)]
    maker = maker_of(models.subject, networks, example, models.slot.device, progress=progress)
    view = model_view(
        models.subject,
        models.slot.module,
        choice.spec,
        example=example,
        stated=stated,
        transform=transform,
        classes=classes,
        folders=[path for row in models.curves.values() for path in row],
        maker=maker,
    )
    return view, maker


def _example(models: SweepModels, choice: ModelChoice) -> ExampleInput | None:
    try:
        return example_for(choice, models.subject)
    except ModelError:  # then the data alone decide
        return None
