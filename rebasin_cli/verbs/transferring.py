"""The run of `transfer`: open, align the bases, verify, move the change along, evaluate and write."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.write import bytes_needed, check_output, notes_on_output, write_like
from rebasin_cli.errors import OutputError, UsageError, few
from rebasin_cli.execution.closeness import Closeness, check_finite, same_bits
from rebasin_cli.execution.own_heads import open_finetuning
from rebasin_cli.execution.pair import Source, check_weights
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.shared_weights import check_heads
from rebasin_cli.execution.weight_arithmetic import rounded
from rebasin_cli.execution.weights import Weights
from rebasin_cli.matching.common_base import UnitTest, units_in_order
from rebasin_cli.permutation import Permutations, identity
from rebasin_cli.progress import Progress
from rebasin_cli.task_vectors.lora import Adapter, adapter_directory, check_own, config_for
from rebasin_cli.task_vectors.transferred import Transferred
from rebasin_cli.verbs.cost import PhaseClock
from rebasin_cli.verbs.evaluating import evaluate_on
from rebasin_cli.verbs.generated_inputs import save_inputs
from rebasin_cli.verbs.leftovers import find_leftovers
from rebasin_cli.verbs.networks import Aligned, Networks, SearchSettings, model_choice
from rebasin_cli.verbs.transfer import BasesAligned, Change, TransferOptions, TransferResult
from rebasin_cli.verbs.verification import measure, verify_loaded, verify_permuted, verify_same_function, with_spec

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Effort

Tensors = Mapping[str, Tensor]

DOUBTFUL = 0.5
"""Correlation of the units of a fine-tuning and its base up to which it does not look like one."""


class Task(abc.ABC):
    """A fine-tuning, opened: full weights, or an adapter.

    Attributes:
        networks: OLD_BASE, NEW_BASE and perhaps more, with the axis groups of their model.
        old, new: the bases.
        layout: the checkpoint like which the output is written.
        own: tensors that only the fine-tuning has in this size.
        notes: what has to be known about what was opened.
    """

    networks: Networks
    old: Weights
    new: Weights
    layout: Checkpoint
    own: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def on_old(self) -> Tensors:
        """The fine-tuned network, on OLD_BASE."""

    @abc.abstractmethod
    def verify(self, permutations: Permutations, seed: int) -> FunctionCheck:
        """Check that the fine-tuned network computes the same with its units in the order of NEW_BASE."""

    @abc.abstractmethod
    def on_new(self, permutations: Permutations, scale: float) -> Tensors:
        """The fine-tuning on NEW_BASE, a whole network."""

    @abc.abstractmethod
    def write(
        self, permutations: Permutations, options: TransferOptions, out: Path, provenance: Mapping[str, str]
    ) -> str:
        """Write what was carried over, verified, and return its SHA-256."""

    def common_base(self, seed: int) -> UnitTest | None:
        """The test whether OLD_BASE and the fine-tuning have a common base; None where there is nothing to doubt."""
        return None


class FullWeights(Task):
    """A fine-tuning that is a checkpoint of the whole model."""

    def __init__(self, options: TransferOptions, progress: Progress, clock: PhaseClock) -> None:
        progress.phase("reading")
        with clock.phase("read"):
            found = open_finetuning(
                _source(options.finetuned, options),
                (_source(options.old_base, options), _source(options.new_base, options)),
                model_choice(options),
                ignore_extra=options.ignore_extra,
                ignore_mismatched_sizes=options.ignore_mismatched_sizes,
            )
            check_weights((found.bases[0], found.finetuned, found.bases[1]), found.subject, progress)
        self.old, self.new, self.finetuned, self.own = found.bases[0], found.bases[1], found.finetuned, found.own
        three = (self.old, self.finetuned, self.new)
        self.networks = Networks.of(three, found.subject, options, progress, clock, shaped_like=1)
        for checkpoint, one in found.sizes:
            check_heads((one,), self.networks.understood.spec, checkpoint)
        self.target = self.finetuned if self.own else self.new
        self.layout = self.target.checkpoint
        self.notes = self._notes(options)

    def _notes(self, options: TransferOptions) -> tuple[str, ...]:
        said = []
        if self.own:
            said.append(
                f"the fine-tuning's own, permuted like what they read: {few(self.own, shown=6)}; the output has the "
                "layout of the fine-tuning, which has the configuration of its head"
            )
        extra = self.finetuned.keys_in_file.extra
        path = self.finetuned.checkpoint.path
        if extra and not self.own:
            said.append(f"{path}: not carried over, because the model does not have them: {few(extra, shown=6)}")
        if self.own:
            left = find_leftovers(
                {key: tuple(self.finetuned.checkpoint.infos[key].shape) for key in extra},
                {},
                self.networks.understood.spec,
                self.networks.subject.shapes,
            )
            left.refuse(path, tensors=len(self.finetuned), strict=options.strict, ignore_extra=options.ignore_extra)
            said += left.warnings(path, ignore_extra=options.ignore_extra)
        return tuple(said)

    def on_old(self) -> Tensors:
        return self.finetuned

    def verify(self, permutations: Permutations, seed: int) -> FunctionCheck:
        permuted = self.networks.permuted(self.finetuned, permutations)
        return self.networks.verify(self.finetuned, permuted, seed=seed)

    def on_new(self, permutations: Permutations, scale: float) -> Tensors:
        old, tuned = (self.networks.permuted(one, permutations) for one in (self.old, self.finetuned))
        return Transferred(old, tuned, self.new, scale=scale, own=self.own)

    def common_base(self, seed: int) -> UnitTest | None:
        subject = self.networks.subject
        return units_in_order(
            self.networks.understood.spec, self.old, self.finetuned, parameters=subject.parameters, seed=seed
        )

    def write(
        self, permutations: Permutations, options: TransferOptions, out: Path, provenance: Mapping[str, str]
    ) -> str:
        target, result = self.target, self.on_new(permutations, options.scale)
        ties = self.networks.subject.ties

        def transform(key: str, tensor: Tensor) -> Tensor:
            first = key if key in result else ties.get(key, key)
            return rounded(result[first], tensor.dtype, f"{out}: {target.file_name(key)}")

        in_file = target.inverse_of(transform)

        def check(written: Checkpoint) -> None:
            seen = target.seen_in(written)
            verify_permuted(target, seen, in_file)
            verify_loaded(target, seen, transform)
            for key in seen:
                check_finite(seen[key], target.file_name(key), out)

        return write_like(
            target.checkpoint,
            out,
            in_file,
            provenance=provenance,
            force=options.force,
            check=check,
            mkdir=options.mkdir,
        )


class LowRank(Task):
    """A fine-tuning that is a LoRA adapter."""

    def __init__(self, folder: Path, options: TransferOptions, progress: Progress, clock: PhaseClock) -> None:
        if options.key is not None or options.ema:
            raise UsageError("--key and --ema have no effect on an adapter and its bases")
        sources = (_source(options.old_base, options), _source(options.new_base, options))
        self.networks = Networks.open(sources, options, progress, clock, shaped_like=1)
        self.old, self.new = self.networks.weights
        self.adapter = Adapter.open(folder, self.networks.subject)
        check_own(self.adapter, ignore_mismatched_sizes=options.ignore_mismatched_sizes)
        if self.adapter.dora and options.scale != 1.0:
            raise UsageError(
                "--scale has no effect on an adapter with magnitudes (DoRA), whose change is not linear",
                hint="merge the adapter into its base first, and give the merged checkpoint",
            )
        for key, tensor in self.adapter.tensors().items():
            check_finite(tensor, key, folder)
        self.own = self.adapter.own
        self.layout = self.adapter.checkpoint.with_files(config_for(self.adapter.config, options.new_base))
        if options.out is not None and not self.layout.makes_directory(options.out):
            raise OutputError(
                f"{options.out}: an adapter is a directory with its configuration",
                path=options.out,
                hint="name a directory with -o",
                slug="suffix",
            )
        self.notes = (f"the adapter's configuration names {options.new_base} as its base",)

    def on_old(self) -> Tensors:
        return self.adapter.merged(self.old, self.adapter.tensors())

    def _permuted(self, permutations: Permutations) -> dict[str, Tensor]:
        return self.adapter.permuted(self.networks.understood.spec, permutations, self.networks.subject.ties)

    def verify(self, permutations: Permutations, seed: int) -> FunctionCheck:
        old = self.networks.permuted(self.old, permutations)
        if old.moves_nothing:
            return with_spec(FunctionCheck.nothing_moved(), self.networks.soundness)
        understood, subject = self.networks.understood, self.networks.subject
        permuted = self.adapter.merged(old, self._permuted(permutations))
        with understood.passes.joined(subject.module):
            check = verify_same_function(subject.weightless, understood.example, self.on_old(), permuted, seed=seed)
        return with_spec(check, self.networks.soundness)

    def _on_new(self, permutations: Permutations, scale: float) -> dict[str, Tensor]:
        old = self.networks.permuted(self.old, permutations)
        return self.adapter.transferred(self._permuted(permutations), old, self.new, scale)

    def on_new(self, permutations: Permutations, scale: float) -> Tensors:
        return self.adapter.merged(self.new, self._on_new(permutations, scale))

    def write(
        self, permutations: Permutations, options: TransferOptions, out: Path, provenance: Mapping[str, str]
    ) -> str:
        tensors = self._on_new(permutations, options.scale)

        def transform(key: str, tensor: Tensor) -> Tensor:
            return rounded(tensors[key], tensor.dtype, f"{out}: {key}")

        def check(written: Checkpoint) -> None:
            for key in tensors:
                wanted = transform(key, self.layout.tensor(key))
                if not same_bits(written.tensor(key), wanted):
                    raise OutputError(f"{out}: tensor {key!r} was not written as it was computed", path=out)
                check_finite(wanted, key, out)

        return write_like(
            self.layout, out, transform, provenance=provenance, force=options.force, check=check, mkdir=options.mkdir
        )


class Transfer:
    """One run."""

    def __init__(self, options: TransferOptions, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.clock = PhaseClock("read", "trace", "match", "verify", "write")

    def run(self) -> TransferResult:
        """All steps. If one raises a RebasinError, nothing has been written."""
        options = self.options
        folder = adapter_directory(options.finetuned)
        task: Task
        if folder is None:
            task = FullWeights(options, self.progress, self.clock)
        else:
            task = LowRank(folder, options, self.progress, self.clock)
        self._check_output(task)
        settings = SearchSettings(cast("Effort", options.effort), seed=options.seed, device=options.device)
        self.progress.phase("matching")
        with self.clock.phase("match"):
            aligned = None if options.align == "none" else task.networks.align(task.new, task.old, settings)
            permutations = identity(task.networks.understood.spec) if aligned is None else aligned.match.permutations
        self.progress.phase("verifying")
        with self.clock.phase("verify"):
            verified = task.verify(permutations, options.seed)
        networks = self._networks(task, permutations)
        found = evaluate_on(
            task.networks,
            options,
            networks,
            self.progress,
            reference="finetuned",
            makers=("finetuned", "new_base" if "new_base" in networks else "transferred"),
        )
        change = self._change(task)
        digest = self._write(task, permutations) if options.out is not None and not options.dry_run else None
        if digest is not None:
            save_inputs(found.maker, options.save_generated, force=options.force, mkdir=options.mkdir)
        nothing = with_spec(FunctionCheck.nothing_moved(), task.networks.soundness)
        return TransferResult(
            old_base=options.old_base,
            finetuned=options.finetuned,
            new_base=options.new_base,
            model=options.model,
            scale=options.scale,
            lora=folder is not None,
            aligned=_bases(task, aligned),
            change=change,
            own=task.own,
            verified=nothing if aligned is None else aligned.check,
            verified_finetuned=verified,
            data=options.data,
            scores=found.scores,
            out=options.out if digest is not None else None,
            seed=options.seed,
            sha256={**self._digests(task), "out": digest},
            seconds=self.clock.seconds(),
            warnings=self._warnings(task, aligned, change),
            labelled=found.labelled,
            generated=found.generated,
        )

    def _check_output(self, task: Task) -> None:
        options = self.options
        if options.out is None or options.dry_run:
            return
        files = [*task.old.checkpoint.files, *task.new.checkpoint.files, *task.layout.files]
        check_output(
            options.out,
            (),
            kept=files,
            force=options.force,
            bytes_needed=bytes_needed(task.layout, options.out),
            mkdir=options.mkdir,
            like=task.layout,
        )

    def _networks(self, task: Task, permutations: Permutations) -> dict[str, Tensors]:
        """The networks that are evaluated, by name."""
        still = identity(task.networks.understood.spec)
        found: dict[str, Tensors] = {"finetuned": task.on_old()}
        if not task.own:  # else NEW_BASE has no head for these data
            found["new_base"] = task.new
        found["naive"] = task.on_new(still, self.options.scale)
        found["transferred"] = task.on_new(permutations, self.options.scale)
        return found

    def _change(self, task: Task) -> Change:
        apart: Closeness = measure(task.old, task.on_old(), task.networks.subject.parameters)
        norm = apart.square_a**0.5
        relative = apart.distance / norm if norm > 0 else 0.0
        return Change(apart.cosine, apart.distance, relative, task.common_base(self.options.seed))

    def _digests(self, task: Task) -> dict[str, str]:
        tuned = task.finetuned.checkpoint if isinstance(task, FullWeights) else task.layout
        both = {"old_base": task.old.checkpoint.sha256(), "new_base": task.new.checkpoint.sha256()}
        return {**both, "finetuned": tuned.sha256()}

    def _write(self, task: Task, permutations: Permutations) -> str:
        options = self.options
        assert options.out is not None
        provenance = {
            "rebasin.method": "transfer",
            "rebasin.align": options.align,
            "rebasin.scale": repr(options.scale),
            "rebasin.seed": str(options.seed),
            **{f"rebasin.sha256.{name}": digest for name, digest in self._digests(task).items()},
        }
        self.progress.phase("writing")
        with self.clock.phase("write"):
            digest = task.write(permutations, options, options.out, provenance)
        if options.save_spec is not None:
            text = json.dumps(task.networks.understood.spec.to_json(), indent=1) + "\n"
            write_text_atomically(options.save_spec, text, options.force)
        return digest

    def _warnings(self, task: Task, aligned: Aligned | None, change: Change) -> tuple[str, ...]:
        options = self.options
        said = list(task.notes)
        for weights in (task.old, task.new):
            said += [*weights.checkpoint.notes, *([weights.note] if weights.note else [])]
        if task.networks.subject.note:
            said.append(task.networks.subject.note)
        if change.distance == 0:
            said.append(
                f"{options.finetuned}: no parameter differs from {options.old_base}'s: nothing is to be carried over"
            )
        test = change.common_base
        if test is not None and test.correlation <= DOUBTFUL:
            said.append(
                f"{options.finetuned} does not look like a fine-tuning of {options.old_base}: their units correlate by "
                f"{test.correlation:.2f} only; see 'rebasin compare'"
            )
        if options.out is not None and not options.dry_run:
            said += notes_on_output(task.layout, options.out)
            if task.layout.others:
                left = few(task.layout.others, shown=6)
                said.append(f"{options.out}: beside the weights, unchanged from {task.layout.path}: {left}")
        if not task.networks.understood.spec.groups:
            said.append("no axis of this model can be permuted without changing its function: nothing was aligned")
        if aligned is not None and not aligned.match.converged:
            said.append("the matching stopped without converging")
        return tuple(said)


def _source(path: Path, options: TransferOptions) -> Source:
    return Source(path, options.key, options.ema)


def _bases(task: Task, aligned: Aligned | None) -> BasesAligned:
    units = task.networks.understood.spec.units
    if aligned is None:
        apart = measure(task.new, task.old, task.networks.subject.parameters)
        cosine = {"before": apart.cosine, "after": apart.cosine}
        return BasesAligned(0, units, cosine, {"before": apart.distance, "after": apart.distance}, False)
    before, after, match = aligned.before, aligned.after, aligned.match
    return BasesAligned(
        match.moved_units,
        units,
        {"before": before.cosine, "after": after.cosine},
        {"before": before.distance, "after": after.distance},
        match.already_aligned and match.converged,
    )
