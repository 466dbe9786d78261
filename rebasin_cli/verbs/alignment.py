"""The steps of one alignment: check, read, trace, verify the spec, match, write a temporary file, verify, keep it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from rebasin_cli import __version__
from rebasin_cli.checkpoint.write import check_output
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.execution.data_inputs import sample_inputs_from_data
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.pair import Pair, check_all_finite, open_pair
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.methods import MatchTask, find_method, match
from rebasin_cli.matching.result import PassReport
from rebasin_cli.matching.weighing import OBJECTIVES, PLAIN, check_objective, weigh
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.align_report import AlignRequest, FinishedRun, compose, write_beside
from rebasin_cli.verbs.align_result import AlignResult
from rebasin_cli.verbs.cost import PhaseClock, release_freed_memory, spare_limited_memory
from rebasin_cli.verbs.output_paths import check_outputs
from rebasin_cli.verbs.permuted_copy import Rearranged, Rearrangement, write_permuted
from rebasin_cli.verbs.verification import measure, verify_closer, verify_same_function, verify_spec, with_spec

DATA_SAMPLES = 3
"""Number of inputs from the data that the result is verified on, in addition to the example."""


class Alignment:
    """One run; every step stores what the next ones need."""

    def __init__(self, request: AlignRequest, progress: Progress, ranks: Ranks = ALONE) -> None:
        self.request, self.progress, self.ranks = request, progress, ranks
        self.clock = PhaseClock("read", "trace", "match", "verify", "write")
        self.before, self.after = Closeness(), Closeness()
        self.function = FunctionCheck.not_run("nothing has been written yet")
        self.sha256: dict[str, str | None] = {"a": None, "b": None, "out": None}

    def run(self) -> AlignResult:
        """Run all steps. If one raises a RebasinError, nothing has been written."""
        self._prepare()
        self._verify_spec()
        self.progress.phase("matching")
        with self.clock.phase("match"):
            self._match()
            release_freed_memory()
        self._write()
        finished = self._finished()
        result = compose(finished)
        if not self.request.dry_run:
            write_beside(result, finished)
        return result

    def assist(self) -> None:
        """What the processes other than the first do: their share of the method's work, if it divides any."""
        method = find_method(self.request.matching.method)
        if method.assist is not None:
            self._prepare()
            method.check_model(self.understood)
            method.assist(self._task())

    def _prepare(self) -> None:
        """All that comes before the matching."""
        request = self.request
        self._check_request()
        spare_limited_memory()
        self.progress.phase("reading")
        with self.clock.phase("read"):
            self._read()
        self.progress.phase("tracing")
        with self.clock.phase("trace"):
            self.understood = understand(
                self.pair.subject,
                request.choice,
                spec_file=request.spec_file,
                pins=request.pins,
                rules=request.rules,
                strict=request.strict,
            )
        for sentence in self.understood.unused_rules:
            self.progress.note(sentence)

    def _verify_spec(self) -> None:
        """Before the long work: the run ends here if the spec does not preserve the function."""
        self.progress.phase("verifying the groups")
        with self.clock.phase("verify"):
            self.soundness = verify_spec(
                self.pair.subject,
                self.understood,
                self.pair.b,
                str(self.request.spec_file or self.request.choice.spec),
                seed=self.request.matching.seed,
                cache=self.request.cache,
            )

    def _check_request(self) -> None:
        """Checks that need no file to be read."""
        request = self.request
        find_method(request.matching.method).check(request.matching)
        check_objective(request.matching.objective)
        if not request.dry_run:
            inputs = [request.a.path, request.b.path]
            check_outputs(request.files.named(), inputs, force=request.force, mkdir=request.mkdir)
        self.device = resolve_device(request.matching.device)

    def _read(self) -> None:
        """Check the headers (keys, shapes, disk space), then read every tensor once."""
        request = self.request
        self.pair: Pair = open_pair(request.a, request.b, request.choice, ignore_extra=request.ignore_extra)
        if self.pair.subject.note:
            self.progress.note(self.pair.subject.note)
        a, b = self.pair.a.checkpoint, self.pair.b.checkpoint
        if not request.dry_run:
            check_output(
                request.files.out,
                [*a.files, *b.files],
                force=request.force,
                bytes_needed=b.file_bytes,
                mkdir=request.mkdir,
                like=b,
            )
        check_all_finite(self.pair, self.progress)
        self.before = measure(self.pair.a, self.pair.b, self.pair.subject.parameters)
        self.sha256.update(a=a.sha256(), b=b.sha256())

    def _match(self) -> None:
        self.match = match(self._task())
        self.rearrangement = Rearrangement(
            self.understood.spec, self.match.permutations, self.pair.b, self.pair.subject.ties
        )

    def _task(self) -> MatchTask:
        return MatchTask(
            self.pair,
            self.understood,
            self.request.matching,
            self.request.choice.spec,
            self.device,
            self._show_pass,
            self.ranks,
        )

    def _show_pass(self, done: PassReport) -> None:
        """Show a finished pass, and the estimate of the seconds left."""
        self.progress.step(done.elapsed, None if done.left is None else done.elapsed + done.left, done.detail)

    def _write(self) -> None:
        if self.request.dry_run:
            self.progress.phase("verifying")
            with self.clock.phase("verify"):
                self._verify(Rearranged(self.pair.b, self.rearrangement))
            return
        self.progress.phase("writing")
        with self.clock.phase("write"):
            self.sha256["out"] = write_permuted(
                self.pair.b,
                self.rearrangement,
                self.request.files.out,
                provenance=self.provenance(),
                force=self.request.force,
                mkdir=self.request.mkdir,
                check=self._verify_written,
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
        if by in OBJECTIVES and by != PLAIN:
            verify_closer(*(self._weighed(by, b) for b in (self.pair.b, permuted)))
        else:
            verify_closer(self.before, self.after)
        check = verify_same_function(
            subject.weightless,
            self.understood.example,
            self.pair.b,
            permuted,
            seed=self.request.matching.seed,
            data=self._data_samples(),
        )
        self.function = with_spec(check, self.soundness)

    def _data_samples(self) -> tuple[ExampleInput, ...]:
        """Inputs from the data, where there are some: they exercise the networks as they are used."""
        data = self.request.matching.data
        if data is None:
            return ()
        return sample_inputs_from_data(
            self.pair,
            self.understood,
            data,
            DATA_SAMPLES,
            model=self.request.choice.spec,
            seed=self.request.matching.seed,
        )

    def _weighed(self, objective: str, b: Mapping[str, Tensor]) -> Closeness:
        """How close a network is to A, weighed as an objective weighs them."""
        sides = weigh(objective, self.understood.spec, self.pair.a, b, self.pair.subject.parameters)
        return measure(sides.a, sides.b, sides.keys)

    def _finished(self) -> FinishedRun:
        return FinishedRun(
            request=self.request,
            pair=self.pair,
            understood=self.understood,
            match=self.match,
            before=self.before,
            after=self.after,
            function=self.function,
            soundness=self.soundness,
            device=str(self.device),
            sha256=dict(self.sha256),
            seconds=self.clock.seconds(),
            provenance=self.provenance(),
        )

    def provenance(self) -> dict[str, str]:
        """The metadata of the output; without a time, so that equal runs write equal bytes."""
        return {
            "rebasin.version": __version__,
            "rebasin.method": self.match.method,
            "rebasin.objective": self.request.matching.objective,
            "rebasin.seed": str(self.match.seed),
            "rebasin.sha256.a": str(self.sha256["a"]),
            "rebasin.sha256.b": str(self.sha256["b"]),
        }
