"""Networks of one model, opened, understood and aligned: what the verbs on many networks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.pair import Source
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.several import Several, open_several
from rebasin_cli.execution.soundness import SoundnessCheck
from rebasin_cli.execution.subject import ModelChoice, Subject
from rebasin_cli.execution.understanding import Understanding, understand
from rebasin_cli.execution.weights import Weights
from rebasin_cli.matching.result import MatchResult, OnPass
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permutations, Permuted
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.cost import PhaseClock
from rebasin_cli.verbs.shared_options import Derivation, ModelInput, NetworkReading
from rebasin_cli.verbs.verification import (
    measure,
    narrows,
    verify_closer,
    verify_groups,
    verify_same_function,
    with_spec,
)

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Effort


def model_choice(options: ModelInput) -> ModelChoice:
    """What the options say about the model: its spec, arguments and inputs, and what else is traced."""
    also = options if isinstance(options, Derivation) else Derivation()
    return ModelChoice(
        getattr(options, "model"),  # noqa: B009 - required in some verbs and optional in others
        dict(options.model_args or {}),
        options.inputs,
        options.input_file,
        getattr(options, "seed", 0),
        also.trace_calls,
        also.also_inputs,
        options.trust_remote_code,
    )


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How permutations are searched by weights; as the options of `align` with these names."""

    effort: Effort = "auto"
    max_passes: int | None = None
    time_limit: float | None = None
    seed: int = 0
    device: str = "cpu"
    starts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Aligned:
    """A network aligned to another one: `tensors` are its own, by model key, with the units in another order.

    Attributes:
        before, after: how close it was and is to the reference, over the parameters.
        check: the verification that its function is unchanged.
    """

    match: MatchResult
    tensors: Permuted
    before: Closeness
    after: Closeness
    check: FunctionCheck


@dataclass(frozen=True)
class Networks:
    """Checkpoints of one model, held against it and checked, and its axis groups, verified."""

    weights: tuple[Weights, ...]
    subject: Subject
    understood: Understanding
    soundness: SoundnessCheck
    progress: Progress = field(repr=False, compare=False)

    @staticmethod
    def open(
        sources: Sequence[Source],
        options: NetworkReading,
        progress: Progress,
        clock: PhaseClock,
        *,
        shaped_like: int = 0,
        before_reading: Callable[[Several], None] | None = None,
    ) -> Networks:
        """Open the files by their headers, check every tensor, derive the axis groups of the model and verify them.

        Args:
            clock: has the phases `read`, `trace` and `verify`.
            shaped_like: the number of the checkpoint whose number of classes the model gets.
            before_reading: refuses what the headers tell, before the first tensor is read.

        Raises:
            CheckpointError, ModelError: a file cannot be read, or does not fit the model; or the model does not run.
            NumericalError: a tensor is not finite, or the groups do not keep the function.
        """
        choice = model_choice(options)
        progress.phase("reading")
        with clock.phase("read"):
            several = open_several(sources, choice, shaped_like=shaped_like, ignore_extra=options.ignore_extra)
            if before_reading is not None:
                before_reading(several)
            several.check(progress)
        return Networks.of(several.weights, several.subject, options, progress, clock, shaped_like=shaped_like)

    @staticmethod
    def of(
        weights: tuple[Weights, ...],
        subject: Subject,
        options: NetworkReading,
        progress: Progress,
        clock: PhaseClock,
        *,
        shaped_like: int = 0,
    ) -> Networks:
        """The same for networks that are opened and checked: derive the axis groups of the model and verify them.

        Args:
            clock: has the phases `trace` and `verify`.
            shaped_like: the number of the network whose weights stand in where random ones give no finite outputs.

        Raises:
            ModelError, NumericalError: as for `open`.
        """
        choice = model_choice(options)
        if subject.note:
            progress.note(subject.note)
        progress.phase("tracing")
        with clock.phase("trace"):
            understood = understand(
                subject,
                choice,
                spec_file=options.spec,
                pins=options.pins,
                rules=options.rules,
                strict=options.strict,
            )
        progress.phase("verifying the groups")
        with clock.phase("verify"):
            understood, soundness = verify_groups(
                subject,
                understood,
                weights[shaped_like],
                str(options.spec or choice.spec),
                seed=options.seed,
                cache=options.cache,
                narrow=narrows(options),
            )
        return Networks(weights, subject, understood, soundness, progress)

    def search(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        settings: SearchSettings,
        on_pass: OnPass | None = None,
    ) -> MatchResult:
        """The permutations that bring `b` closest to `a`, both by model key; `a` may be no network (a mean)."""
        return search(
            self.understood.spec,
            a,
            b,
            parameters=self.subject.parameters,
            effort=settings.effort,
            starts=settings.starts,
            max_passes=settings.max_passes,
            time_limit=settings.time_limit,
            seed=settings.seed,
            device=resolve_device(settings.device),
            on_pass=on_pass,
        )

    def permuted(self, b: Mapping[str, Tensor], permutations: Permutations) -> Permuted:
        """A network with its units in another order."""
        return Permuted(b, self.understood.spec, permutations, self.subject.ties)

    def verify(self, b: Mapping[str, Tensor], permuted: Permuted, *, seed: int) -> FunctionCheck:
        """Check that a network and the permuted one compute the same function.

        Raises:
            NumericalError: they do not.
        """
        if permuted.moves_nothing:
            return with_spec(FunctionCheck.nothing_moved(), self.soundness)
        with self.understood.passes.joined(self.subject.module):
            check = verify_same_function(self.subject.weightless, self.understood.example, b, permuted, seed=seed)
        return with_spec(check, self.soundness)

    def align(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        settings: SearchSettings,
        on_pass: OnPass | None = None,
    ) -> Aligned:
        """Align `b` to `a` by weights, and verify that its function is unchanged and its similarity not lower.

        Raises:
            NumericalError: a check failed.
        """
        match = self.search(a, b, settings, on_pass)
        tensors = self.permuted(b, match.permutations)
        before = measure(a, b, self.subject.parameters)
        after = before if tensors.moves_nothing else measure(a, tensors, self.subject.parameters)
        verify_closer(before, after)
        return Aligned(match, tensors, before, after, self.verify(b, tensors, seed=settings.seed))
