"""The steps of one alignment: check, read, trace, verify the spec, match, write a temporary file, verify, keep it.

Under `torchrun`, statistics of activations are taken by all processes; all else is done by the first. The others wait
for its result, so that a sweep that follows can be shared again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from rebasin_cli import __version__
from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.checkpoint.write import bytes_needed, check_output, keeps_siblings, notes_on_output
from rebasin_cli.data import BatchSource
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import NumericalError, UsageError, few
from rebasin_cli.execution.agreement import DISTANCE as DISTANCE_FROM_ENDS
from rebasin_cli.execution.chance import guessing
from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.execution.data_inputs import PairData
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.midpoint_loss import DISTANCE
from rebasin_cli.execution.pair import Pair, Source, check_all_finite, open_pair
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.shared_weights import check_heads, named
from rebasin_cli.execution.understanding import understand
from rebasin_cli.execution.weights import Weights
from rebasin_cli.maps import Frame
from rebasin_cli.matching.chance import MOST_ELEMENTS, Chance, gain_against_chance
from rebasin_cli.matching.method import PERMUTATION, data_of
from rebasin_cli.matching.methods import Matching, MatchTask, check_options_apply, find_method, match
from rebasin_cli.matching.result import PassReport
from rebasin_cli.matching.weighing import OBJECTIVES, PLAIN, check_objective, weigh
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import parameter_keys
from rebasin_cli.options import options_of
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.align import AlignOptions, AlignResult, Change, Objective
from rebasin_cli.verbs.align_reports import code_of, model_path, places, python_file
from rebasin_cli.verbs.alignment_facts import (
    already_aligned,
    architecture_of,
    mapped,
    moved_groups,
    searched_groups,
    warnings_of,
)
from rebasin_cli.verbs.cost import PhaseClock, peak_rss_bytes, release_freed_memory, spare_limited_memory
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.generated_inputs import check_saving, save_inputs
from rebasin_cli.verbs.leftovers import find_leftovers
from rebasin_cli.verbs.networks import model_choice
from rebasin_cli.verbs.output_paths import check_outputs
from rebasin_cli.verbs.permuted_copy import Rearrangement, write_permuted
from rebasin_cli.verbs.resumed import forget_state, resumable, state_file, unfinished
from rebasin_cli.verbs.saved_permutations import RecordedModel, SavedPermutations
from rebasin_cli.verbs.shared_options import DataReading
from rebasin_cli.verbs.siblings import Network, SiblingPlan, plan_siblings
from rebasin_cli.verbs.verification import (
    RoundingCheck,
    measure,
    narrows,
    spec_warnings,
    verify_closer,
    verify_groups,
    verify_not_farther,
    verify_rounded,
    verify_same_function,
    with_spec,
)
from rebasin_cli.verbs.versions import versions

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Effort

DATA_SAMPLES = 3
"""Number of inputs from the data that the result is verified on, in addition to the example."""


class Alignment:
    """One run; every step stores what the next ones need."""

    def __init__(self, options: AlignOptions, progress: Progress, ranks: Ranks = ALONE) -> None:
        self.options, self.progress, self.ranks = options, progress, ranks
        self.a, self.b = Source(options.a, *options.state_of_a), Source(options.b, *options.state_of_b)
        self.choice = model_choice(options)
        self.method = find_method(options.chosen_method)
        self.matching = Matching(
            method=self.method.name,
            effort=cast("Effort", options.effort),
            starts=options.starts or None,
            restarts=options.restarts,
            max_passes=options.max_passes,
            time_limit=options.time_limit,
            seed=options.seed,
            device=options.device,
            data=options.data,
            limit=options.limit,
            batch_size=options.batch_size,
            objective=options.objective,
            options=self.method.own_options(options),
            transform=options.transform,
            class_map=options.class_map,
            class_order=options.class_order,
            workers=options.workers,
            skip_corrupt=options.skip_corrupt,
            loss=options.loss,
            input_stated=bool(options.inputs) or options.input_file is not None,
            cache=options.cache,
            symmetries=options.symmetries,
        )
        self.data: PairData | None = None
        self.source: BatchSource | None = None
        self.clock = PhaseClock("read", "trace", "match", "verify", "write")
        self.before, self.after = Closeness(), Closeness()
        self.function = FunctionCheck.not_run("nothing has been written yet")
        self.rounding: RoundingCheck | None = None
        self.sha256: dict[str, str | None] = {"a": None, "b": None, "out": None}

    def run(self) -> AlignResult:
        """Run all steps. If one raises a RebasinError, nothing has been written."""
        self._prepare()
        with resumable(self):
            self._align_cautiously()
            result = self._result()
            if not self.options.dry_run:
                self._write_beside(result)
        return result

    def _align_cautiously(self) -> None:
        """Align; if the trace lacked operations, once more with what it says for certain."""
        try:
            self._align()
        except NumericalError as error:
            if error.slug not in ("unsound", "verification") or not self._decides_by_weights():
                raise
            self._understand(cautious=True)
            forget_state(self)
            self._align()

    def _align(self) -> None:
        """Verify the spec, match, and write; nothing is written where a verification fails."""
        self._verify_spec()
        self.progress.phase("matching")
        with self.clock.phase("match"):
            self._match()
            self.chance = self._chance()
            release_freed_memory()
        self._write()

    def _decides_by_weights(self) -> bool:
        """Whether computed values decide which operations the model runs, so that the trace may lack some."""
        trace = self.understood.trace
        return self.understood.derivation is not None and trace is not None and bool(trace.weight_decisions)

    def assist(self) -> None:
        """What the processes other than the first do: their share of the method's work, if it divides any."""
        if self.method.assist is not None:
            self._prepare()
            self.method.check_model(self.understood)
            self.method.assist(self._task())

    def _prepare(self) -> None:
        """All that comes before the matching."""
        self._check_request()
        spare_limited_memory()
        self.progress.phase("reading")
        with self.clock.phase("read"):
            self._read()
        self._understand()
        if self.matching.data is not None:
            self._open_data()

    def _understand(self, *, cautious: bool = False) -> None:
        """Find the axis groups.

        Args:
            cautious: whatever the code around a decision on computed values handles keeps its order.
        """
        options, self.cautious = self.options, cautious
        self.progress.phase("tracing")
        with self.clock.phase("trace"):
            self.understood = understand(
                self.pair.subject,
                self.choice,
                spec_file=options.spec,
                pins=options.pins,
                rules=options.rules,
                strict=options.strict,
                cautious=cautious,
            )
        check_heads(self.pair.mismatches, self.understood.spec, self.pair.a.checkpoint)
        for sentence in self.understood.unused_rules:
            self.progress.note(sentence)
        self._check_leftovers()

    def _check_leftovers(self) -> None:
        """Judge the tensors that no pass reaches."""
        b, shapes = self.pair.b, self.pair.subject.shapes
        self.leftovers = find_leftovers(
            {key: tuple(b.checkpoint.infos[key].shape) for key in b.keys_in_file.extra},
            {key: shapes[key] for key in self.understood.unreached},
            self.understood.spec,
            shapes,
        )
        self.leftovers.refuse(
            b.checkpoint.path,
            tensors=len(b),
            strict=self.options.strict,
            ignore_extra=self.options.ignore_extra,
        )
        note = self.leftovers.note(b.checkpoint.path)
        if note is not None:
            self.progress.note(note)
        unknown = self.pair.a.keys_in_file.extra
        if unknown:
            path = self.pair.a.checkpoint.path
            self.progress.note(f"{path}: not read, because the model does not have them: {few(unknown, shown=8)}")

    def _open_data(self) -> None:
        """Open the data before the long work, so that what does not fit is refused at once."""
        pair, learns = self.pair, self.method.learns and not self.options.unlabelled
        self.data = data_of(
            pair, self.understood, self.matching, self.options.model, labelled=learns, progress=self.progress
        )
        self.source = self.data.open()
        check_saving(self.data.maker, self.options.files.generated)
        self.progress.note(f"data: {self.source.description}")

    def _verify_spec(self) -> None:
        """Before the long work: the run ends here if the spec does not preserve the function."""
        self.progress.phase("verifying the groups")
        with self.clock.phase("verify"):
            self.understood, self.soundness = verify_groups(
                self.pair.subject,
                self.understood,
                self.pair.b,
                str(self.options.spec or self.options.model),
                seed=self.matching.seed,
                cache=self.options.cache,
                narrow=narrows(self.options) and (self.cautious or not self._decides_by_weights()),
            )
            if self.options.symmetries != PERMUTATION:
                self.understood = searched_groups(self)

    def _check_request(self) -> None:
        """Checks that need no file to be read."""
        options = self.options
        self.method.check(self.matching)
        check_options_apply(options, self.method)
        by_data = options.data is not None or self.method.name != "weight"
        if options.ignore_mismatched_sizes and (by_data or options.sweeps):
            raise UsageError(
                "--ignore-mismatched-sizes compares weights alone: a network with another head has other outputs",
                hint=f"leave {'--data and --method' if by_data else '--interpolate'} out",
            )
        if options.loss is not None and not self.method.learns and not options.sweeps:
            raise UsageError(f"--loss has no effect with method {self.method.name}", hint="use --method learned")
        check_objective(self.matching.objective)
        if not options.dry_run:
            inputs = [options.a, options.b]
            check_outputs(
                options.files.named(), inputs, force=options.force, mkdir=options.mkdir, replaceable=options.b
            )
        self.device = resolve_device(self.matching.device)

    def _read(self) -> None:
        """Check the headers (keys, shapes, disk space), then read every tensor once."""
        options = self.options
        self.pair: Pair = open_pair(
            self.a,
            self.b,
            self.choice,
            ignore_extra=options.ignore_extra,
            ignore_mismatched_sizes=options.ignore_mismatched_sizes,
        )
        for sentence in self._notes():
            self.progress.note(sentence)
        a, b = self.pair.a.checkpoint, self.pair.b.checkpoint
        if not options.dry_run:
            check_output(
                options.files.out,
                b.files,
                kept=a.files,
                force=options.force,
                bytes_needed=bytes_needed(b, options.files.out),
                mkdir=options.mkdir,
                like=b,
            )
        check_all_finite(self.pair, self.progress)
        self.before = measure(self.pair.a, self.pair.b, self.pair.subject.parameters)
        self.sha256.update(a=a.sha256(), b=b.sha256())

    def _notes(self) -> list[str]:
        """What was decided about the model and the files before the search."""
        a, b = self.pair.a.checkpoint, self.pair.b.checkpoint
        said = [] if self.pair.subject.note is None else [self.pair.subject.note]
        said += [*a.notes, *b.notes]
        if self.pair.mismatches:
            said.append(f"not compared, because their sizes differ: {named(self.pair.mismatches)}; the output has B's")
        return said if self.options.dry_run else [*said, *notes_on_output(b, self.options.files.out)]

    def _match(self) -> None:
        self.match = match(self._task())
        self.rearrangement = Rearrangement(
            self.match.searched or self.understood.spec,
            self.match.permutations,
            self.pair.b,
            self.pair.subject.ties,
            self.match.maps,
            self.match.frame or Frame(),
        )
        self.siblings = self._plan_siblings()

    def _plan_siblings(self) -> SiblingPlan:
        subject, b = self.pair.subject, self.pair.b
        network = Network(
            subject.shapes,
            subject.ties,
            parameter_keys(subject.module),  # also those that are not compared with A's
            self.understood.spec,
            self.rearrangement.moving,
        )
        plan = plan_siblings(b.checkpoint, b.keys_in_file, network)
        if not self.rearrangement.permutes:
            plan = plan.copies_only()
        kept = not self.options.drop_siblings and keeps_siblings(b.checkpoint, self.options.files.out)
        return plan if kept else plan.without_any()

    def _chance(self) -> Chance | None:
        """How the gain compares with that of chance, where weights alone decided and measuring it costs little."""
        subject, match = self.pair.subject, self.match
        if match.method != "weight" or not match.moved_units or subject.elements > MOST_ELEMENTS:
            return None
        return gain_against_chance(
            self.understood.spec,
            self.pair.a,
            self.pair.b,
            parameters=subject.parameters,
            seed=self.matching.seed,
            device=self.device,
        )

    def _task(self) -> MatchTask:
        return MatchTask(
            self.pair,
            self.understood,
            self.matching,
            self.options.model,
            self.device,
            self._show_pass,
            self.ranks,
            data=self.data,
            state=state_file(self),
        )

    def _show_pass(self, done: PassReport) -> None:
        """Show a finished pass, and the estimate of the seconds left."""
        self.progress.step(done.elapsed, None if done.left is None else done.elapsed + done.left, done.detail)

    def _write(self) -> None:
        if self.options.dry_run:
            self.progress.phase("verifying")
            with self.clock.phase("verify"):
                self._verify(self.rearrangement.all_of(self.pair.b))
            return
        self.progress.phase("writing")
        with self.clock.phase("write"):
            self.sha256["out"] = write_permuted(
                self.pair.b,
                self.rearrangement,
                self.options.files.out,
                provenance=self.provenance(),
                force=self.options.force,
                mkdir=self.options.mkdir,
                check=self._verify_written,
                siblings=self.siblings,
                alone=self.options.drop_siblings,
            )

    def _verify_written(self, written: Mapping[str, Tensor]) -> None:
        began = time.perf_counter()
        self.progress.phase("verifying")
        self._verify(written)
        self.clock.attribute("write", "verify", time.perf_counter() - began)

    def _verify(self, permuted: Mapping[str, Tensor]) -> None:
        """The checks that need more than B: the similarity to A, and the function."""
        if self.match.moved_units == 0:  # every tensor is B's own, bit for bit: nothing is left to verify
            self.after = self.before
            self.function = with_spec(FunctionCheck.nothing_moved(), self.soundness)
            return
        subject = self.pair.subject
        self.after = measure(self.pair.a, permuted, subject.parameters)
        by = self.match.criterion.name
        if self.match.maps is not None:
            verify_not_farther(self.before, self.after)
        elif by in OBJECTIVES and by != PLAIN:
            verify_closer(*(self._weighed(by, b) for b in (self.pair.b, permuted)))
        else:
            verify_closer(self.before, self.after)
        exact = permuted if self.rearrangement.exact else self.rearrangement.all_of(self.pair.b, rounded=False)
        with self.understood.passes.joined(subject.module):
            check = verify_same_function(
                subject.weightless,
                self.understood.example,
                self.pair.b,
                exact,
                seed=self.matching.seed,
                data=self._data_samples(),
            )
            if exact is not permuted:
                self.rounding = verify_rounded(
                    subject.weightless, self.understood.example, self.pair.b, permuted, seed=self.matching.seed
                )
        self.function = with_spec(check, self.soundness)

    def _data_samples(self) -> tuple[ExampleInput, ...]:
        """Inputs from the data, where there are some: they exercise the networks as they are used."""
        return () if self.data is None else self.data.samples(DATA_SAMPLES)

    def _weighed(self, objective: str, b: Mapping[str, Tensor]) -> Closeness:
        """How close a network is to A, weighed as an objective weighs them."""
        sides = weigh(objective, self.understood.spec, self.pair.a, b, self.pair.subject.parameters)
        return measure(sides.a, sides.b, sides.keys)

    def provenance(self) -> dict[str, str]:
        """The metadata of the output; without a time, so that equal runs write equal bytes."""
        return {
            "rebasin.version": __version__,
            "rebasin.method": self.match.method,
            "rebasin.objective": self.matching.objective,
            "rebasin.seed": str(self.match.seed),
            "rebasin.sha256.a": str(self.sha256["a"]),
            "rebasin.sha256.b": str(self.sha256["b"]),
        }

    def _result(self) -> AlignResult:
        options, match, understood = self.options, self.match, self.understood
        files, written = options.files, not options.dry_run
        groups = moved_groups(match, understood.spec)
        return AlignResult(
            a=options.a,
            b=options.b,
            out=files.out if written else None,
            report=files.report if written else None,
            permutations=files.permutations if written else None,
            spec=files.spec if written else None,
            model=options.model,
            model_args=self.pair.subject.factory.args,
            trust_remote_code=options.trust_remote_code,
            mismatched=tuple(one.key for one in self.pair.mismatches),
            input=understood.example.describe(),
            inputs=options.inputs,
            input_file=options.input_file,
            state={"a": self._state(self.a, self.pair.a), "b": self._state(self.b, self.pair.b)},
            places=places(
                files.report,
                a=options.a,
                b=options.b,
                out=files.out,
                model=model_path(options.model),
                input_file=options.input_file,
            ),
            code=code_of(files.report, filter(None, (python_file(options.model), *options.rules))),
            siblings=self.siblings.siblings,
            method=match.method,
            data=None if self.source is None else self._reading(),
            generated=None if self.source is None else self.source.generated,
            settings=self._settings(),
            timed_out=match.timed_out,
            stopped=match.stopped if match.method == "weight" else None,
            learning=match.learning,
            start=match.start,
            seed=match.seed,
            device=str(self.device),
            passes=match.passes,
            converged=match.converged,
            relative_tolerance=match.relative_tolerance,
            already_aligned=already_aligned(self),
            architecture=architecture_of(self),
            objective=Objective(
                match.objective_before,
                match.objective_after,
                tuple(match.per_pass) if match.criterion.name == PLAIN else (),
            ),
            criterion=match.criterion,
            tried=match.tried,
            chance=self.chance,
            cosine=Change(self.before.cosine, self.after.cosine),
            distance=Change(self.before.distance, self.after.distance),
            groups=groups,
            moved_units=sum(group.moved for group in groups),
            units=understood.spec.units,
            parameters=self.pair.subject.elements,
            free_fraction=understood.free_fraction,
            unknown_ops=understood.unknown_ops,
            verified=self.function,
            seconds=self.clock.seconds(),
            peak_rss_bytes=peak_rss_bytes(),
            sha256=dict(self.sha256),
            versions=versions(),
            warnings=self._warnings(),
            symmetries=mapped(match, understood.spec, options.symmetries, self.rounding),
            matched=match.permutations,
        )

    def _reading(self) -> dict[str, Any]:
        """What was read of the data, and how."""
        assert self.source is not None
        options = self.options
        return {
            "name": options.data,
            "description": self.source.description,
            **{entry.name: getattr(options, entry.name) for entry in options_of(DataReading)},
            "learned_on": self.match.learned_on if options.loss is None else options.loss,
            "real_targets": self.data is not None and self.data.real_targets,
        }

    def _settings(self) -> dict[str, Any]:
        """The settings of the search: those of every method, and the method's own."""
        own = self.matching.options
        mine = {} if own is None else vars(own)
        names = ("objective", "effort", "starts", "restarts", "max_passes", "time_limit")
        return {**{name: getattr(self.matching, name) for name in names}, **mine}

    @staticmethod
    def _state(source: Source, weights: Weights) -> dict[str, Any]:
        found = weights.checkpoint.wrapper
        return {"key": source.key, "ema": source.ema, "found": ".".join(found) if found else None}

    def _write_beside(self, result: AlignResult) -> None:
        """Write the report and, where asked for, the permutations and the spec; each of them atomically."""
        files, force = self.options.files, self.options.force
        if self.options.mkdir:
            for path in files.named().values():
                path.parent.mkdir(parents=True, exist_ok=True)
        if files.permutations is not None:
            saved = SavedPermutations(
                self.match.permutations,
                self.match.searched or self.understood.spec,
                self.pair.subject.shapes,
                self.pair.subject.ties,
                self.provenance(),
                parameter_keys(self.pair.subject.module),
                converted=self.pair.b.converted,
                model=RecordedModel.of(self.options.model, self.pair.subject.factory.args, files.permutations),
                state=(self.b.key, self.b.ema),
                maps=self.match.maps,
                frame=self.match.frame or Frame(),
            )
            saved.write(files.permutations, force=force)
        if files.spec is not None:
            write_text_atomically(files.spec, json.dumps(self.understood.spec.to_json(), indent=1) + "\n", force)
        maker = None if self.data is None else self.data.maker
        save_inputs(maker, files.generated, force=force, mkdir=self.options.mkdir)
        write_text_atomically(files.report, pretty(envelope("align", result, warnings=result.warnings)), force)

    def _warnings(self) -> tuple[str, ...]:
        """Warnings about a run that succeeded."""
        paths = () if self.source is None or self.source.generated else (self.options.a, self.options.b)
        said = [*self._notes(), *(() if self.source is None else self.source.notes)]
        said += [*self.match.notes, *guessing(paths, self.match.ends)]
        if self.match.learned_on in (DISTANCE, DISTANCE_FROM_ENDS) and self.data is not None and self.data.real_targets:
            said.append(
                f"{self.options.data}: the targets are real numbers and were not learned from: "
                "give --loss FILE.py:FUNCTION, such as a mean squared error"
            )
        if self.cautious:
            trace = self.understood.trace
            places = sorted({call.place or "compiled code" for call in trace.weight_decisions}) if trace else []
            said.append(
                f"computed values decide which operations run ({few(places, shown=3)}): "
                "the units that the code around it handles keep their order"
            )
        said += [f"no rule for {op}: the axes it touches are not permuted" for op in self.understood.unknown_ops]
        for weights in (self.pair.a, self.pair.b):
            if weights.note:
                said.append(f"{weights.checkpoint.path}: {weights.note}")
        if self.match.moved_units:
            path = self.pair.b.checkpoint.path
            said += self.leftovers.warnings(path, ignore_extra=self.options.ignore_extra)
        said += [f"{self.pair.b.checkpoint.path}: {sentence}" for sentence in self.siblings.warnings]
        if not self.understood.spec.groups:
            pinned = " that is not pinned with --pin" if self.options.pins else ""
            said.append(f"no axis of this model{pinned} can be permuted without changing its function")
        said += unfinished(self.match)
        said += warnings_of(self.match)
        if self.function.left_out:
            said.append(f"the function was not verified by running the networks: {self.function.left_out}")
        said += spec_warnings(self.soundness, self.understood.given_up)
        return tuple(said)
