"""The data of a sweep: what the networks are evaluated on, and what their statistics are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from rebasin_cli.data import BatchSource
from rebasin_cli.data.source import ModelView
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.chance import no_better_than_chance
from rebasin_cli.execution.data_inputs import Classes, model_view
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.subject import ModelChoice, example_for
from rebasin_cli.interpolation.models import SweepModels
from rebasin_cli.interpolation.sweep import Sweep, SweepPoint
from rebasin_cli.model.example_input import ExampleInput


@dataclass(frozen=True, slots=True)
class SweepData:
    """`statistics` is None where nothing is recalibrated; `classes`, where the data have no class numbers.

    `unlabelled` data have no target at all, so that outputs are compared with those of the ends.
    """

    evaluation: BatchSource
    statistics: BatchSource | None
    classes: int | None = None
    unlabelled: bool = False

    def identity(self) -> dict[str, Any]:
        """Everything about the data that decides the numbers; as a digest, because a list of files can be long."""
        return {
            "evaluation": _digest(self.evaluation.fingerprint),
            "statistics": None if self.statistics is None else _digest(self.statistics.fingerprint),
        }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def classes_of(models: SweepModels, *, labelled: bool) -> Classes:
    """Counts the classes of the first network of a sweep; `labelled` data must fit its outputs."""

    def slot() -> ModelSlot:
        models.slot.load(models.networks.first)
        return models.slot

    return Classes(slot, labelled=labelled)


def chance_warnings(
    curves: Mapping[str, Sequence[SweepPoint]], classes: int | None, *, cross_entropy: bool
) -> list[str]:
    """A sentence for the ends of the curves that classify no better than by chance; one for each curve at most.

    Args:
        cross_entropy: the loss is that, and not the user's.
    """
    found: list[str] = []
    if classes is None:
        return found
    for points in curves.values():
        for point in (point for point in points if point.lam in (0.0, 1.0)):
            who = f"the checkpoint at lam {point.segment + point.lam:g}"
            loss = point.loss if cross_entropy else None
            said = no_better_than_chance(who, accuracy=point.accuracy, loss=loss, n=point.n, classes=classes)
            if said is not None:
                found.append(said)
                break
    return list(dict.fromkeys(found))


def language_figures(data: SweepData, sweep: Sweep) -> dict[str, Any] | None:
    """Perplexity and bits per byte of every point, and the barriers in bits per byte; None where the data are no text.

    The loss is in nats per token: `exp(loss)` is the perplexity, and `loss / ln 2` bits go for `bytes_per_token`.
    """
    facts = data.evaluation.text
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
    }


def has_no_labels(source: BatchSource) -> bool:
    """Whether the first batch that holds samples has no target."""
    first = next((batch for batch in source.batches() if batch.size), None)
    return first is not None and (first.target is None or isinstance(first.target, Mapping))


def sweep_view(
    models: SweepModels, choice: ModelChoice, transform: str | None, classes: Classes, *, stated: bool
) -> ModelView:
    """What reading the data needs to know about the model.

    Args:
        transform: the user's image transform; None for that of the model.
        stated: the user stated the input.
    """
    return model_view(
        models.subject,
        models.slot.module,
        choice.spec,
        example=_example(models, choice),
        stated=stated,
        transform=transform,
        classes=classes,
        folders=[path for row in models.curves.values() for path in row],
    )


def _example(models: SweepModels, choice: ModelChoice) -> ExampleInput | None:
    try:
        return example_for(choice, models.subject)
    except ModelError:  # then the data alone decide
        return None
