"""The result of `interpolate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.verbs.document import Result

if TYPE_CHECKING:
    from rebasin_cli.data.generated_kinds import GeneratedFacts
    from rebasin_cli.interpolation.sweep import Barrier, Best, Ends, SweepPoint


@dataclass(frozen=True, slots=True)
class InterpolateResult(Result):
    """The outcome of one sweep, field for field the `data` of its JSON.

    `checkpoints` are the files along the naive curve; `a` is the first and `b` the last of them. `aligned` is B
    aligned, at the end of the matched curve, and `aligned_by` the matching method; both can be None. `recalibration` is
    None, or `{"method", "data"}`, and `running_statistics` counts the layers that have any, `spectral_norms` the
    weights under spectral norm. The ends of curves are treated like the networks between, and `ends` has the
    checkpoints both ways. `text` has perplexity and bits per byte of a language model on text (see `language_figures`),
    None for other data. `mismatched` are the tensors that do not have the same size in all checkpoints: every network
    between has those of its last one. `generated` is about inputs that are no data, and `on_generated` says that the
    networks were evaluated on them, and not only recalibrated. `n` counts the samples that every network was run on,
    `skipped` those that could not be read.
    `resumed` says that sums of an earlier run were used. It is not part of the JSON, so that an interrupted run ends
    with the same file as any other.
    """

    a: Path
    b: Path
    aligned: Path | None
    checkpoints: tuple[Path, ...]
    report: Path | None
    model: str
    model_args: Mapping[str, Any]
    data: str | None
    mode: str
    steps: int
    loss: str
    metric: str
    recalibration: Mapping[str, Any] | None
    seed: int
    amp: bool
    n: int
    skipped: int
    curves: Mapping[str, tuple[SweepPoint, ...]]
    barrier: Mapping[str, Barrier]
    best: Best | None
    saved: tuple[Path, ...]
    sha256: Mapping[str, str]
    run: Mapping[str, Any]
    progress: Mapping[str, Any]
    out: Path | None
    warnings: tuple[str, ...]
    resumed: bool
    running_statistics: int = 0
    spectral_norms: int = 0
    lam: tuple[str, ...] = ()
    ends: Ends | None = None
    best_by: str = "loss"
    inputs: tuple[str, ...] = ()
    input_file: Path | None = None
    aligned_by: str | None = None
    text: Mapping[str, Any] | None = None
    trust_remote_code: bool = False
    mismatched: tuple[str, ...] = ()
    generated: GeneratedFacts | None = None
    on_generated: bool = False

    @property
    def labelled(self) -> bool:
        """Whether losses were measured, and not distances from the outputs of the ends."""
        from rebasin_cli.execution.agreement import DISTANCE

        return self.loss != DISTANCE

    def to_json(self) -> dict[str, Any]:
        left_out = ("warnings", "resumed")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}

    @property
    def gated_barrier(self) -> Barrier:
        """The barrier that `--fail-above` applies to: that of the matched curve, or else of the naive one.

        Nothing is known of it where the data have no labels, or are none.
        """
        from rebasin_cli.interpolation.sweep import Barrier

        if not self.labelled or self.on_generated:
            return Barrier(None, None)
        return self.barrier["matched" if "matched" in self.barrier else "naive"]
