"""The run of `metrics`: check, open, align, measure and write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rebasin_cli.checkpoint import split_name, write_text_atomically
from rebasin_cli.data.ranks import launched, ranks_for
from rebasin_cli.errors import ModelError, NumericalError, RebasinError, few
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.pair import Source, open_sources
from rebasin_cli.execution.several import open_several
from rebasin_cli.execution.subject import Subject
from rebasin_cli.interpolation.result_file import check_result_file, read_document, refuse_other
from rebasin_cli.permutation import Permutations, Permuted, is_identity
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.task_vectors.by_name import common_tensors
from rebasin_cli.task_vectors.measure import (
    Measured,
    NetworkSums,
    TensorPart,
    assemble,
    tensor_part,
    undetermined_tensors,
)
from rebasin_cli.task_vectors.metric import Metric
from rebasin_cli.task_vectors.vectors import TaskVector, pairs_of
from rebasin_cli.verbs.cost import PhaseClock
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.generated_inputs import save_inputs, saved_output
from rebasin_cli.verbs.metrics import AlignedNetwork, MetricsOptions, MetricsResult, pair_names, pairwise_name
from rebasin_cli.verbs.metrics_files import SCHEMA, Journal, merged, read_pairwise
from rebasin_cli.verbs.networks import Networks, SearchSettings, model_choice
from rebasin_cli.verbs.output_paths import check_outputs, optional_path
from rebasin_cli.verbs.shared_options import NetworkOptions
from rebasin_cli.verbs.task_vector_files import TaskVectorFiles
from rebasin_cli.verbs.verification import measure, spec_warnings

if TYPE_CHECKING:
    from rebasin_cli.verbs.metrics_data import NetworkData

Tensors = Mapping[str, Tensor]

FORM = 1
"""Changes when the parts that a journal keeps are other ones."""

ASKED = (
    *("model", "model_args", "inputs", "align", "perm_matching", "max_passes", "effort", "seed", "per_layer", "pins"),
    *("limit", "batch_size", "transform", "class_order", "loss", "skip_corrupt", "activation_layer", "key", "ema"),
)
"""Options that decide the results, besides the files."""

FAR = 0.5
"""A task vector longer than this many times its base is reported."""


class MetricsRun:
    """One run. Each step sets what the next ones need."""

    def __init__(self, options: MetricsOptions, files: TaskVectorFiles, metrics: Sequence[Metric]) -> None:
        self.options, self.files, self.metrics = options, files, tuple(metrics)
        self.progress: Progress = (options.progress or Silent()) if launched()[0] == 0 else Silent()
        self.warnings: list[str] = []
        self.fallback: str | None = None
        self.networks: Networks | None = None
        self.subject: Subject | None = None
        self.data: NetworkData | None = None
        self.left_out: tuple[str, ...] = ()
        self.alignment: tuple[AlignedNetwork, ...] = ()
        self.clock = PhaseClock("read", "trace", "verify", "match", "measure")

    def run(self) -> MetricsResult:
        """All steps. An interrupted run keeps the tensors that are done; one that cannot succeed leaves no files."""
        self._check_outputs()
        device = resolve_device(self.options.device)
        self.ranks = ranks_for(device)
        self._open()
        self._open_data()
        self._identify()
        earlier = self._complete()
        if earlier is not None:
            self.progress.note(f"run already complete: {self.out}")
            return earlier
        self._make_vectors()
        if self.options.mkdir and self.ranks.first:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.out, self.identity) if self.ranks.first else None
        try:
            parts, ranks = self._measure(), self.ranks
            with self.clock.phase("measure"):
                sums = {} if self.data is None else self.data.sums(self.tuned, ranks, self.journal, self.progress)
        except RebasinError:
            self._drop_journal()
            raise
        finally:
            if self.journal is not None:
                self.journal.close()
        return self._finish(parts, sums)

    def _drop_journal(self) -> None:
        if self.journal is not None and not self.journal.parts:
            self.journal.remove()

    @property
    def out(self) -> Path:
        options = self.options
        if options.out is not None:
            return options.out
        if options.layout == "pairwise":
            return Path(pairwise_name(self.files.labels, options.benchmark, aligned=self._aligned))
        return Path(f"{split_name(options.base)[0] or options.base.resolve().name}-metrics.json")

    @property
    def _aligned(self) -> bool:
        """Whether task vectors are those of aligned networks."""
        return self.options.aligns and self.fallback is None

    def _check_outputs(self) -> None:
        """Refuse outputs before any input is read."""
        options = self.options
        data = (optional_path(text) for text in self.files.data.values())
        inputs = (*self.files.all, *(path for path in (*data, options.input_file, options.spec) if path is not None))
        check_outputs({"result": self.out}, inputs, force=True, mkdir=options.mkdir)
        others = dict(options.also_written)
        if options.save_spec is not None:
            others["spec"] = options.save_spec
        others |= saved_output(options.save_generated)
        check_outputs(others, inputs, force=options.force, mkdir=options.mkdir)
        check_outputs({"result": self.out, **others}, (), force=True, mkdir=options.mkdir)
        if options.layout == "document":
            check_result_file(self.out, self._asked(), force=options.force, schema=SCHEMA)
        elif self.out.exists() and not options.force:
            read_pairwise(self.out)

    def _asked(self) -> dict[str, Any]:
        """The part of the run's identity that the command line gives."""
        options, files = self.options, self.files
        found: dict[str, Any] = {
            "form": FORM,
            "metrics": [metric.name for metric in self.metrics],
            "checkpoints": {label: str(path) for label, path in files.tuned.items()},
            "bases": {label: str(path) for label, path in files.bases.items()},
            "data": dict(files.data),
        }
        found |= {name: getattr(options, name) for name in ASKED}
        return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]

    def _open(self) -> None:
        """Open all checkpoints through the model; where that fails, or there is none, by the names of their tensors."""
        options = self.options
        self.sources = [Source(path, options.key, options.ema) for path in self.files.all]
        if options.model is not None:
            try:
                self._open_by_model()
                return
            except (ModelError, NumericalError) as error:
                if options.data or (isinstance(error, NumericalError) and error.slug == "non-finite"):
                    raise
                self._fall_back(error)
        self.progress.phase("reading")
        with self.clock.phase("read"):
            self.checkpoints = dict(zip(self.files.all, open_sources(self.sources), strict=True))
            first = self.files.bases[self.files.reference]
            order = [first, *(path for path in self.files.all if path != first)]
            common = common_tensors([self.checkpoints[path] for path in order], self.progress)
        self.keys, self.left_out = tuple(sorted(common.keys)), common.left_out
        self.tensors: dict[Path, Tensors] = dict(zip(order, common.tensors, strict=True))
        if self.left_out:
            self.warnings.append(f"left out, because not all checkpoints have them in one shape: {few(self.left_out)}")

    def _fall_back(self, error: RebasinError) -> None:
        said = error.message if str(self.options.model) in error.message else f"{self.options.model}: {error.message}"
        said = f"{said} ({error.hint})" if error.hint else said
        if self.options.aligns:
            self.fallback = said
            self.warnings.append(f"nothing is aligned: {said}")
            self._check_outputs()  # the default name of the results says whether networks were aligned
        else:
            self.warnings.append(f"tensors are compared by name, without the model: {said}")

    def _open_by_model(self) -> None:
        options = self.options
        shaped_like = self.files.all.index(self.files.bases[self.files.reference])
        if options.aligns:
            named = {entry.name: getattr(options, entry.name) for entry in fields(NetworkOptions)}
            opened = Networks.open(
                self.sources, NetworkOptions(**named), self.progress, self.clock, shaped_like=shaped_like
            )
            self.networks, self.subject, weights = opened, opened.subject, opened.weights
        else:
            self.progress.phase("reading")
            with self.clock.phase("read"):
                several = open_several(
                    self.sources,
                    model_choice(options),
                    shaped_like=shaped_like,
                    ignore_extra=options.ignore_extra,
                )
                several.check(self.progress)
            self.subject, weights = several.subject, several.weights
        if self.subject.note:
            self.warnings.append(self.subject.note)
        self.tensors = dict(zip(self.files.all, weights, strict=True))
        self.checkpoints = {path: held.checkpoint for path, held in zip(self.files.all, weights, strict=True)}
        shapes, ties = self.subject.shapes, self.subject.ties
        self.keys = tuple(
            key
            for key in sorted(shapes)
            if key not in ties and all(key in held and _fractions(held[key]) for held in weights)
        )

    def _open_data(self) -> None:
        """Open the data of the networks, where metrics need some, before the long work."""
        if self.subject is None or not any(metric.needs_data for metric in self.metrics):
            return
        from rebasin_cli.verbs.metrics_data import NetworkData

        tensors = {label: self.tensors[path] for label, path in self.files.tuned.items()}
        self.data = NetworkData.open(self.options, self.files, self.metrics, self.subject, tensors, self.progress)
        self.metrics = self.data.metrics

    def _identify(self) -> None:
        hashes = {path: checkpoint.sha256() for path, checkpoint in self.checkpoints.items()}
        self.sha256 = {str(path): hashes[path] for path in self.files.all}
        first: dict[str, str] = {}
        for label, path in self.files.tuned.items():
            other = first.setdefault(hashes[path], label)
            if other != label:
                self.warnings.append(f"{label} and {other} are the same file")
        self.base_hash = {label: hashes[path] for label, path in self.files.bases.items()}
        self.identity = {**self._asked(), "sha256": self.sha256, "files": self._user_files()}
        if self.data is not None:
            self.identity["batches"] = self.data.identity()

    def _user_files(self) -> dict[str, str]:
        """The other files that the numbers depend on, with what changes when they do."""
        from rebasin_cli.data.source import file_identity

        options = self.options
        named = {text.rpartition(":")[0] for text in (options.model, options.loss, *self.files.data.values()) if text}
        named |= {text for text in self.files.data.values() if text}
        paths = [Path(name) for name in sorted(named) if name and Path(name).is_file()]
        others = (options.spec, options.input_file, options.class_map, *options.rules)
        return {str(path): file_identity(path) for path in (*paths, *(one for one in others if one is not None))}

    def _complete(self) -> MetricsResult | None:
        """The results of the same run, where the results file has them all."""
        if self.options.force or self.options.layout != "document" or not self.out.exists():
            return None
        found = read_document(self.out, SCHEMA)
        if found is None:
            return None
        refuse_other(self.out, found["run"], self.identity)
        warnings = json.loads(self.out.read_text(encoding="utf-8")).get("warnings", ())
        return result_from(found, warnings)

    def _make_vectors(self) -> None:
        """The task vector of each label, aligned where that was asked for."""
        moved = self._align() if self.networks is not None else {}
        bases: dict[tuple[str, bool], Tensors] = {}
        self.tuned: dict[str, Tensors] = {}
        self.vectors: list[TaskVector] = []
        for label in self.files.labels:
            tuned, base = self.tensors[self.files.tuned[label]], self.tensors[self.files.bases[label]]
            permutations = moved.get(self.base_hash[label])
            if permutations is not None and self.networks is not None:
                tuned, base = (self.networks.permuted(one, permutations) for one in (tuned, base))
            base = bases.setdefault((self.base_hash[label], isinstance(base, Permuted)), base)
            self.tuned[label] = tuned
            self.vectors.append(TaskVector(tuned, base))

    def _align(self) -> dict[str, Permutations]:
        """The permutations of the networks of each base that is not the reference's, by that base's hash.

        Networks of one base are permuted alike, as the first of them is matched to the reference: their units
        correspond already. For the same reason those of the reference's base stay as they are.
        """
        files, settings = self.files, self._settings()
        assert self.networks is not None
        reference = self.tensors[files.tuned[files.reference]]
        found: dict[str, Permutations] = {}
        done: list[AlignedNetwork] = []
        self.progress.phase("matching")
        with self.clock.phase("match"):
            for label in files.labels:
                base = self.base_hash[label]
                if base == self.base_hash[files.reference]:
                    continue
                tuned = self.tensors[files.tuned[label]]
                if base not in found:
                    aligned = self.networks.align(reference, tuned, settings)
                    found[base] = aligned.match.permutations
                    before, after, check = aligned.before, aligned.after, aligned.check
                else:
                    parameters = self.networks.subject.parameters
                    permuted = self.networks.permuted(tuned, found[base])
                    before, after = (measure(reference, one, parameters) for one in (tuned, permuted))
                    check = self.networks.verify(tuned, permuted, seed=settings.seed)
                done.append(
                    AlignedNetwork(
                        label,
                        files.bases[label],
                        sum(0 if is_identity(perm) else _moved(perm) for perm in found[base].values()),
                        sum(perm.numel() for perm in found[base].values()),
                        {"before": before.cosine, "after": after.cosine},
                        check.max_in_noise_floors,
                    )
                )
        self.alignment = tuple(done)
        if done:
            self.warnings += spec_warnings(self.networks.soundness, self.networks.understood.given_up)
        if not done:
            self.progress.note(
                "all networks share one base, so their units correspond already: nothing is permuted, and the metrics "
                "are those without alignment"
            )
        return found

    def _settings(self) -> SearchSettings:
        options = self.options
        effort: Any = options.effort
        return SearchSettings(effort, options.max_passes, None, options.seed, options.device)

    def _measure(self) -> list[TensorPart]:
        """The parts of all tensors; each process measures its share, in rounds."""
        self.progress.phase("measuring")
        ranks = self.ranks
        done: dict[str, TensorPart] = ranks.shared({} if self.journal is None else dict(self.journal.parts))
        if done:
            self.progress.note(f"resuming {self.out}: {len(done)} of {len(self.keys)} tensors are done")
        self.resumed = bool(done)
        sizes = {key: prod(self.tensors[self.files.all[0]][key].shape) for key in self.keys}
        left = sorted((key for key in self.keys if key not in done), key=lambda key: -sizes[key])
        total, reached = sum(sizes.values()), sum(sizes[key] for key in done if key in sizes)
        with self.clock.phase("measure"):
            for start in range(0, len(left), ranks.world):
                mine = left[start + ranks.rank] if start + ranks.rank < len(left) else None
                part = self._part_of(mine)
                for one in ranks.gathered(part):
                    if one is not None:
                        done[one.key] = one
                        reached += sizes[one.key]
                        if self.journal is not None:
                            self.journal.add(one)
                self.progress.step(reached, total, left[start])
        return [done[key] for key in self.keys]

    def _part_of(self, key: str | None) -> TensorPart | None:
        """The part of this process's tensor of a round; an error of one process is that of all."""
        error: RebasinError | None = None
        part = None
        try:
            part = None if key is None else tensor_part(self.vectors, key, self.metrics)
        except RebasinError as caught:
            error = caught
        self.ranks.agree(error)
        return part

    def _finish(self, parts: Sequence[TensorPart], sums: NetworkSums) -> MetricsResult:
        options, labels = self.options, self.files.labels
        measured = assemble(self.metrics, parts, len(pairs_of(len(labels))), sums, per_layer=options.per_layer)
        self._warn_of_far(parts)
        self.warnings += [] if self.data is None else self.data.warnings
        undetermined = undetermined_tensors(parts)
        if undetermined:
            self.warnings.append(
                f"left out of metrics of singular subspaces, because some are not determined (low rank): "
                f"{few(undetermined)}"
            )
        result = MetricsResult(
            model_name=options.model_name or options.model or split_name(options.base)[0],
            datasets=labels,
            n_datasets=len(labels),
            layer_wise=options.per_layer,
            perm_matching=self._aligned,
            fallback=self.fallback,
            metrics={one.metric.name: _rendered(one, labels) for one in measured},
            model=options.model,
            base=options.base,
            checkpoints=dict(self.files.tuned),
            bases=dict(self.files.bases),
            align="reference" if options.aligns else "none",
            reference=self.files.reference,
            alignment=self.alignment,
            tensors=len(self.keys),
            left_out=self.left_out,
            undetermined=tuple(undetermined),
            data={label: text for label, text in self.files.data.items() if text is not None},
            generated=None if self.data is None else self.data.maker.facts,
            sha256=self.sha256,
            seed=options.seed,
            run=self.identity,
            out=self.out,
            seconds=self.clock.seconds(),
            warnings=tuple(self.warnings),
            resumed=self.resumed,
        )
        self._write(result)
        if self.networks is not None and options.save_spec is not None and self.ranks.first:
            text = json.dumps(self.networks.understood.spec.to_json(), indent=1) + "\n"
            write_text_atomically(options.save_spec, text, options.force)
        if self.data is not None and self.ranks.first:
            save_inputs(self.data.maker, options.save_generated, force=options.force, mkdir=options.mkdir)
        return result

    def _warn_of_far(self, parts: Sequence[TensorPart]) -> None:
        """Report a checkpoint that is farther from its base than the base is long: hardly a fine-tuning of it."""
        pairs = pairs_of(len(self.files.labels))
        sizes: dict[str, float] = {}
        for number, label in enumerate(self.files.labels):
            place = next(place for place, pair in enumerate(pairs) if number in pair)
            mine = [part.sums[place] for part in parts]
            length = sqrt(sum(s.square_a if pairs[place][0] == number else s.square_b for s in mine))
            if self.base_hash[label] not in sizes:
                base = self.tensors[self.files.bases[label]]
                sizes[self.base_hash[label]] = sqrt(measure(base, base, self.keys).square_a)
            size = sizes[self.base_hash[label]]
            if length == 0:
                self.warnings.append(
                    f"{label} does not differ from its base: its task vector is 0, and angles and ratios say nothing"
                )
            if length > FAR * size:
                self.warnings.append(
                    f"{label} differs from its base by {length / size:.2g} times the base's length: it may be a "
                    "fine-tuning of another base (--base-of LABEL=PATH), or have its units in another order"
                )

    def _write(self, result: MetricsResult) -> None:
        """Write the results; those of the pairwise layout are merged into a file of the same checkpoints."""
        if not self.ranks.first:
            return
        if self.options.layout == "pairwise":
            content = result.pairwise()
            if self.out.exists() and not self.options.force:
                content = merged(self.out, content)
            text = pretty(content)
        else:
            text = pretty(envelope("metrics", result, warnings=result.warnings))
        write_text_atomically(self.out, text, True)
        if self.journal is not None:
            self.journal.remove()


def _fractions(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _moved(perm: Tensor) -> int:
    return int((perm != torch.arange(perm.numel())).sum())


def _rendered(one: Measured, labels: Sequence[str]) -> dict[str, Any]:
    names = pair_names(labels)
    matrix: list[list[float | None]] = [[None] * len(labels) for _ in labels]
    for (i, j), value in zip(pairs_of(len(labels)), one.values, strict=True):
        matrix[i][j] = value
    found: dict[str, Any] = {"matrix": matrix, "pairs": dict(zip(names, one.values, strict=True))}
    if one.layers:
        found["per_layer"] = dict(zip(names, one.layers, strict=True))
    return found


def result_from(found: Mapping[str, Any], warnings: Sequence[str]) -> MetricsResult:
    """The result that a results file holds."""
    given = {name: value for name, value in found.items() if name in {entry.name for entry in fields(MetricsResult)}}
    for name in ("checkpoints", "bases"):
        given[name] = {label: Path(path) for label, path in given[name].items()}
    for name in ("base", "out"):
        given[name] = Path(given[name])
    for name in ("datasets", "left_out", "undetermined"):
        given[name] = tuple(given[name])
    given["alignment"] = tuple(AlignedNetwork(**{**one, "base": Path(one["base"])}) for one in given["alignment"])
    return MetricsResult(**given, warnings=tuple(warnings), resumed=True)
