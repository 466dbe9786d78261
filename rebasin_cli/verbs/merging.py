"""The run of `merge`: open, see who shares a base, align, verify, choose weights, recalibrate, evaluate, write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rebasin_cli import __version__
from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.checkpoint.relaid import Layout, check_layout
from rebasin_cli.checkpoint.write import bytes_needed, check_output, notes_on_output
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.data.ranks import launched, ranks_for
from rebasin_cli.errors import CheckpointError, ModelError, NumericalError, RebasinError, ResourceError, few, quoted
from rebasin_cli.execution.chance import no_better_than_chance
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.lams import Lams
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, Network
from rebasin_cli.execution.pair import Source
from rebasin_cli.execution.quantizers import quantizer_warning
from rebasin_cli.execution.recalibration import batch_norms
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.scores import Values
from rebasin_cli.execution.several import Several, open_several
from rebasin_cli.execution.shared_weights import mismatches_of
from rebasin_cli.execution.spectral_norm import spectral_sites
from rebasin_cli.execution.understanding import understand
from rebasin_cli.execution.weight_arithmetic import narrow_dtypes
from rebasin_cli.execution.weights import Weights
from rebasin_cli.merging.expected import alignment_work, multiply_adds_per_second, pair_work, tensor_bytes
from rebasin_cli.merging.joint import Tensors
from rebasin_cli.merging.merged import Given, Merged, Recipe
from rebasin_cli.merging.saving import save_merged
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_reports import states_of
from rebasin_cli.verbs.cost import PhaseClock, available_bytes, peak_rss_bytes, spare_memory
from rebasin_cli.verbs.generated_inputs import CORRECTED, save_inputs
from rebasin_cli.verbs.merge import (
    AUTO,
    OF_THE_FILES,
    Expected,
    MergedPoint,
    MergeInput,
    MergeOptions,
    MergeResult,
    is_same_file,
    parse_size,
    parse_weights,
)
from rebasin_cli.verbs.merge_alignment import MergeAlignment
from rebasin_cli.verbs.merge_data import MergeData, SoupCandidates
from rebasin_cli.verbs.merge_recipe import write_recipe
from rebasin_cli.verbs.networks import Networks, model_choice
from rebasin_cli.verbs.shared_options import NetworkOptions
from rebasin_cli.verbs.verification import measure, spec_warnings

if TYPE_CHECKING:
    pass


class MergeRun:
    """One merge; every step stores what the next ones need.

    Args:
        hashes: SHA-256 that files must have, where a recipe says so.
    """

    def __init__(
        self, options: MergeOptions, lams: Lams | None, progress: Progress, hashes: Mapping[Path, str]
    ) -> None:
        self.options, self.lams, self.hashes = options, lams, hashes
        _, world, local = launched()
        device = resolve_device(options.device)
        if device.type == "cuda" and world > 1 and device.index is None:
            device = resolve_device(f"cuda:{local}")
        self.device = device
        self.ranks = ranks_for(device)
        self.progress: Progress = progress if self.ranks.first else Silent()
        self.warnings: list[str] = []
        self.clock = PhaseClock("read", "trace", "align", "verify", "measure", "write")
        self.count = len(options.checkpoints)
        self.alignment: MergeAlignment | None = None
        self.verified: FunctionCheck | None = None
        self.adjustment: Adjustment = NO_ADJUSTMENT
        self.by_key: Mapping[str, float] = {}
        self.similarities = 0
        self.reference = 0
        self.sha256: str | None = None

    def run(self) -> MergeResult:
        """All steps. If one raises a RebasinError, nothing has been written."""
        spare_memory()  # what one checkpoint left must not add to what the next one needs
        if self.options.dry_run:
            return self._dry_run()
        error: RebasinError | None = None
        try:
            self._open()
        except RebasinError as caught:
            error = caught
        self.ranks.agree(error)  # no process writes before all have looked at the outputs
        self._align()
        with self.clock.phase("measure"):
            self._combine()
            self._measure()
        with self.clock.phase("write"):
            self._write_once()
        return self._result()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The checkpoints, then the base."""
        return (*self.options.checkpoints, *([] if self.options.base is None else [self.options.base]))

    @cached_property
    def sources(self) -> list[Source]:
        states = states_of(self.paths, self.options.key, self.options.ema)
        return [Source(path, *states[path]) for path in self.paths]

    @cached_property
    def network_options(self) -> NetworkOptions:
        """The options about the model, which is known by now."""
        return NetworkOptions(**{entry.name: getattr(self.options, entry.name) for entry in fields(NetworkOptions)})

    def _open(self) -> None:
        """Open the files by their headers, check what those tell, then read every tensor once."""
        options = self.options
        self.networks: Networks | None = None
        if options.align == "none":  # then nothing has to be known of the model but its tensors
            self.progress.phase("reading")
            with self.clock.phase("read"):
                several = self._open_headers()
                several.check(self.progress)
        else:
            self.networks = Networks.open(
                self.sources,
                self.network_options,
                self.progress,
                self.clock,
                before_reading=self._check_headers,
            )
            self.warnings += spec_warnings(self.networks.soundness)
        self.data = MergeData(
            options,
            model_choice(self.network_options),
            self.subject,
            self.device,
            self.ranks,
            self.progress,
            self.weights[: self.count],
        )
        self.warnings += self.data.warnings

    def _open_headers(self) -> Several:
        several = open_several(self.sources, model_choice(self.network_options), ignore_extra=self.options.ignore_extra)
        self._check_headers(several)
        return several

    def _check_headers(self, several: Several) -> None:
        """Refuse what headers and hashes tell, before the first tensor is read."""
        first = several.weights[0]
        if isinstance(first.checkpoint, DirectoryCheckpoint):  # the optimizer's states are not those of the result
            first = first.seen_in(first.checkpoint.without_states())
        self.weights, self.subject = (first, *several.weights[1:]), several.subject
        options = self.options
        for path, held_file in zip(self.paths, several.weights, strict=True):
            wanted = self.hashes.get(path)
            if wanted is not None and held_file.checkpoint.sha256() != wanted:
                raise CheckpointError(
                    f"{path}: not the file of the recipe {options.recipe} (SHA-256 differs)",
                    path=path,
                    hint="a recipe repeats a merge of the same files: merge these with a command of their own",
                    slug="changed",
                )
        for number, path in enumerate(options.checkpoints):
            if any(is_same_file(path, other) for other in options.checkpoints[:number]):
                self.warnings.append(f"{path} is given twice, so it counts twice")
        self._check_shapes(several)
        if self.lams is not None:
            self.by_key = self.lams.by_key(several.subject.shapes, several.subject.ties)
        check_layout(first.checkpoint, self.layout, options.out)
        if not options.dry_run:
            check_output(
                options.out,
                several.files,
                kept=several.files,
                force=options.force,
                bytes_needed=self._bytes_needed(first),
                mkdir=options.mkdir,
                like=first.checkpoint,
            )
        needed, available = self._tensor_bytes(several), available_bytes()
        if available is not None and needed > available:
            raise ResourceError(
                f"the merge needs about {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are available",
                hint="--align reference without --data needs the least",
                slug="memory",
            )

    def _check_shapes(self, several: Several) -> None:
        """Refuse tensors of other sizes, and tensors that a loader would fill itself: there is nothing to merge."""
        opened = [weights.checkpoint for weights in several.weights]
        for weights in several.weights:
            path = weights.checkpoint.path
            for apart in mismatches_of(weights.checkpoint, opened[0], several.subject):
                raise ModelError(
                    f"{path}: shape mismatch: {quoted(apart.key)} has shape {list(apart.in_a)}, and "
                    f"{list(apart.in_b)} in {opened[0].path}",
                    path=path,
                    hint="checkpoints of one model are merged: give all the same sizes",
                    slug="shapes",
                )
            missing = [key for key in weights.made if several.subject.ties.get(key, key) in several.subject.parameters]
            if missing:
                raise ModelError(
                    f"{path}: lacks {few(missing)}, which its loader would initialize, so there is nothing to merge",
                    path=path,
                    hint="name the model without these layers in --model, or a checkpoint that has them",
                    slug="missing-key",
                )
            if weights.note:
                self.warnings.append(f"{path}: {weights.note}")

    def _bytes_needed(self, first: Weights) -> int:
        return bytes_needed(first.checkpoint, self.options.out, self.layout)

    @cached_property
    def layout(self) -> Layout:
        """How the output differs from the first checkpoint."""
        first = self.weights[0]
        copies = frozenset(first.keys_in_file.copies)
        beside = bool(first.checkpoint.entries_beside()) or bool(copies)
        return Layout(self.options.dtype, parse_size(self.options.max_shard_size), beside, copies)

    def _dry_run(self) -> MergeResult:
        """Everything that headers tell, and the cost; no tensor is read."""
        options = self.options
        several = self._open_headers()
        seconds, units = None, 0
        if options.align != "none":
            understood = understand(
                self.subject,
                model_choice(self.network_options),
                spec_file=options.spec,
                pins=options.pins,
                rules=options.rules,
                strict=options.strict,
            )
            units = understood.spec.units
            work = pair_work(understood.spec, self._parameter_shapes)
            total = alignment_work(
                work, options.align, len(self.paths), options.effort, all_pairs=options.reference == AUTO
            )
            seconds = total / multiply_adds_per_second()
            self.similarities = work.similarities
        expected = Expected(
            self._tensor_bytes(several) + 2 * self.similarities,
            seconds,
            self._bytes_needed(several.weights[0]),
        )
        weights = self._weights()
        inputs = tuple(
            MergeInput(path, None, weight, 0, None, None)
            for path, weight in zip(options.checkpoints, weights, strict=True)
        )
        return self._result_of(inputs, units=units, expected=expected)

    @property
    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: self.subject.shapes[key] for key in self.subject.parameters}

    def _tensor_bytes(self, several: Several) -> int:
        joint = self.options.align in ("merge-many", "cycle-consistent")
        run = self.options.data is not None or self.options.recalibrate is not None
        return tensor_bytes(several.subject.shapes, joint=joint, run=run)

    def _align(self) -> None:
        """Find the permutations of every checkpoint, and check that each still computes its function."""
        reference, options = self._reference(), self.options
        self.aligned: Sequence[Tensors] = self.weights
        if self.networks is None:
            self.reference = reference
            return
        self.alignment = MergeAlignment(options, self.networks, reference, self.device, self.ranks, self.progress)
        with self.clock.phase("align"):
            self.alignment.align()
        with self.clock.phase("verify"):
            self.verified = self.alignment.verify()
        self.warnings += self.alignment.warnings
        self.reference, self.aligned = self.alignment.reference, self.alignment.aligned

    def _reference(self) -> int:
        """The number of the checkpoint that keeps its order: the base, the one that was named, or the first."""
        options = self.options
        if options.base is not None:
            return self.count
        if options.reference in (None, AUTO):
            return 0
        named = Path(str(options.reference))
        return next(number for number, path in enumerate(options.checkpoints) if is_same_file(path, named))

    def _weights(self) -> tuple[float, ...]:
        if self.lams is not None and self.lams.single is not None:
            return 1 - self.lams.single, self.lams.single
        return self.options.merge_method.weights(parse_weights(self.options.weights), self.count)

    def _combine(self) -> None:
        """The merged network, whose weights are chosen by the data where the method does so."""
        method = self.options.merge_method
        self.ends = [Given(number, self.aligned[number]) for number in range(self.count)]
        weights = self._weights()
        if method.choose is not None:
            weights = method.choose(SoupCandidates(self.data, self.ends, lambda shares: self._mixed(tuple(shares))))
        self.merged = self._mixed(weights)
        said = quantizer_warning(self.subject.module, self.aligned)
        if said is not None:
            self.warnings.append(said)

    def _mixed(self, weights: tuple[float, ...]) -> Merged:
        options, method = self.options, self.options.merge_method
        by_key = {key: (1 - lam, lam) for key, lam in self.by_key.items()}
        return Merged(
            self.aligned[: self.count],
            None if options.base is None else self.aligned[self.count],
            self.aligned[self.reference],
            Recipe(method, weights, options.seed, method.own_options(options), by_key),
            parameters=self.subject.parameters,
            ties=self.subject.ties,
            spectral=spectral_sites(self.subject.module, self.aligned),
        )

    def _measure(self) -> None:
        """Statistics of the merged network, and what all networks score on the data."""
        self.adjustment = self.data.adjustment(self.ends, self.merged)
        self.scores: dict[str, Values] = {}
        if self.data.evaluation is not None:
            self.progress.phase("evaluating")
            networks: list[Network] = [*self.ends, self.merged]
            self.scores = self.data.points(networks, self.adjustment)
            self.warnings += self._scores_in_words()

    def _scores_in_words(self) -> list[str]:
        said = []
        for end in self.ends:
            found = self.scores[end.name]
            if not found.finite:
                raise NumericalError(
                    f"{self.paths[end.number]}: the loss is not finite on {self.options.data}",
                    path=self.paths[end.number],
                    hint="the data hold no NaN: check their range and --transform, the model, and --loss",
                )
            who = str(self.paths[end.number])
            if not is_generated(self.options.data):
                said.append(no_better_than_chance(who, found, cross_entropy=self.options.loss is None))
        if not self.scores[self.merged.name].finite:
            said.append("the result gives values that are not finite on the data")
        return [sentence for sentence in said if sentence is not None][:1]

    def _write_once(self) -> None:
        """The first process writes; all know what it has measured."""
        error: RebasinError | None = None
        self.distances: tuple[float, ...] = ()
        if self.ranks.first:
            try:
                self._write()
            except RebasinError as caught:
                error = caught
        self.ranks.agree(error)
        self.distances, self.sha256 = self.ranks.shared((self.distances, self.sha256))

    def _write(self) -> None:
        options, first = self.options, self.weights[0]
        self.progress.phase("writing")
        narrow = narrow_dtypes([first.checkpoint]) if options.dtype is None else (options.dtype,)
        if narrow and narrow != ("float32",) and narrow != ("float64",):
            self.warnings.append(
                f"merged tensors are computed in float32 or wider and rounded once to {' and '.join(narrow)}"
            )
        unknown, left = first.keys_in_file.extra, [*first.checkpoint.entries_beside(), *first.keys_in_file.copies]
        if unknown and not options.ignore_extra:
            path = first.checkpoint.path
            self.warnings.append(f"{options.out}: copied from {path}, not merged: {few(unknown, shown=8)}")
        for other in self.weights[1:]:
            if other.keys_in_file.extra and not options.ignore_extra:
                dropped = few(other.keys_in_file.extra, shown=8)
                self.warnings.append(
                    f"{other.checkpoint.path}: not merged, because the model does not have them: {dropped}"
                )
        if left:
            self.warnings.append(f"{options.out}: left out, because it is not of the result: {few(left, shown=8)}")
        self.warnings += [*first.checkpoint.notes, *notes_on_output(first.checkpoint, options.out)]
        self.sha256 = save_merged(
            self.merged,
            self.adjustment,
            first,
            options.out,
            provenance=self._provenance(),
            force=options.force,
            mkdir=options.mkdir,
            check=self._measure_distances,
            layout=self.layout,
        )
        if options.save_spec is not None and self.networks is not None:
            text = json.dumps(self.networks.understood.spec.to_json(), indent=1) + "\n"
            write_text_atomically(options.save_spec, text, options.force)
        save_inputs(self.data.maker, options.save_generated, force=options.force, mkdir=options.mkdir)
        write_recipe(options, self._result())

    def _measure_distances(self, written: Weights) -> None:
        keys = self.subject.parameters
        self.distances = tuple(measure(self.aligned[number], written, keys).distance for number in range(self.count))

    def _provenance(self) -> dict[str, str]:
        """The metadata of the output; without a time or a path, so that equal runs write equal bytes."""
        options = self.options
        found = {
            "version": __version__,
            "method": f"merge {options.method}",
            "align": options.align,
            "weights": ",".join(map(repr, self.merged.recipe.weights)),
            "seed": str(options.seed),
        }
        return found | {f"sha256.{number}": one for number, one in enumerate(self.hashes_of_inputs)}

    @cached_property
    def hashes_of_inputs(self) -> list[str]:
        """SHA-256 of each checkpoint, then of the base."""
        return [weights.checkpoint.sha256() for weights in self.weights]

    def _result(self) -> MergeResult:
        options = self.options
        found = self.alignment
        inputs = tuple(
            MergeInput(
                path,
                self.hashes_of_inputs[number],
                self.merged.recipe.weights[number],
                0 if found is None else found.moved(number),
                None if found is None else found.shares_base(number),
                self.distances[number],
            )
            for number, path in enumerate(options.checkpoints)
        )
        ends = (
            tuple(_point(path, self.scores[end.name]) for path, end in zip(options.checkpoints, self.ends, strict=True))
            if self.scores
            else None
        )
        result = _point(options.out, self.scores[self.merged.name]) if self.scores else None
        units = 0 if self.networks is None else self.networks.understood.spec.units
        return self._result_of(inputs, units=units, ends=ends, result=result)

    def _result_of(
        self,
        inputs: tuple[MergeInput, ...],
        *,
        units: int,
        expected: Expected | None = None,
        ends: tuple[MergedPoint, ...] | None = None,
        result: MergedPoint | None = None,
    ) -> MergeResult:
        options, written = self.options, expected is None
        statistics = None if not written else self.data.statistics
        method = "REPAIR" if options.repair else "running statistics, cumulative average"
        method += CORRECTED if statistics is not None and statistics.generated is not None else ""
        own = options.merge_method.own_options(options)
        return MergeResult(
            inputs=inputs,
            base=options.base,
            base_sha256=self.hashes_of_inputs[self.count] if written and options.base is not None else None,
            reference=self.paths[self.reference],
            align=options.align,
            method=options.method,
            cycles=0 if self.alignment is None else self.alignment.cycles,
            units=units,
            ends=ends,
            result=result,
            out=options.out if written else None,
            recipe=options.recipe_path if written else None,
            verified=self.verified,
            model=str(options.model),
            model_args=dict(self.subject.factory.args),
            settings={
                "match_method": options.match_method,
                "effort": options.effort,
                "seed": options.seed,
                "lam": options.lam,
                **({} if own is None else vars(own)),
            },
            given=options.given(without=OF_THE_FILES),
            data=None if not written or self.data.evaluation is None else self.data.evaluation.description,
            recalibration=None if statistics is None else f"{method}, estimated on {statistics.description}",
            running_statistics=len(batch_norms(self.subject.module)),
            sha256=self.sha256,
            expected=expected,
            seconds=self.clock.seconds(),
            peak_rss_bytes=peak_rss_bytes(),
            warnings=tuple(dict.fromkeys(self.warnings)),
            labelled=not (written and self.data.unlabelled),
            generated=self.data.maker.facts if written else None,
        )


def _point(path: Path, found: Values) -> MergedPoint:
    return MergedPoint(
        path,
        found.loss,
        found.accuracy,
        found.top5,
        found.n,
        found.finite,
        found.loss_standard_error,
        found.accuracy_standard_error,
    )
