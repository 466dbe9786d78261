"""The alignment of a merge: who shares a base, the permutations of every checkpoint, and the check of each."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.matching.composition import Composition
from rebasin_cli.matching.method import data_of
from rebasin_cli.matching.methods import Matching, MatchTask, match
from rebasin_cli.matching.result import MatchResult, OnPass, PassReport
from rebasin_cli.merging.cycle_consistent import cycle_consistent
from rebasin_cli.merging.expected import pair_work
from rebasin_cli.merging.joint import Joint, Mean, Tensors, held
from rebasin_cli.merging.merge_many import merge_many
from rebasin_cli.merging.reference import cycles_through_one_order, to_most_similar, to_reference
from rebasin_cli.merging.shared_bases import in_one_order, shared_bases
from rebasin_cli.permutation import Permutations, Permuted
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.cost import release_freed_memory
from rebasin_cli.verbs.merge import AUTO, MergeOptions
from rebasin_cli.verbs.networks import Networks, SearchSettings
from rebasin_cli.verbs.verification import with_spec

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Effort

SMALL = ("identity", "forward", "annealing")
"""Starts of a search that is repeated often."""


class MergeAlignment:
    """Aligns the networks of a merge, its base among them.

    Args:
        reference: number of the network that keeps its order; with `--reference auto` another one may be taken.

    Attributes:
        sets: numbers of the networks, those that share a base together.
        aligned: the networks with their units in a common order.
        cycles: the largest number of units that a cycle of the permutations does not bring back.
    """

    def __init__(
        self,
        options: MergeOptions,
        networks: Networks,
        reference: int,
        device: torch.device,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        self.options, self.networks, self.reference = options, networks, reference
        self.device, self.ranks, self.progress = device, ranks, progress
        self.weights, self.subject = networks.weights, networks.subject
        self.settings = SearchSettings(
            cast("Effort", options.effort), options.max_passes, options.time_limit, options.seed, str(device)
        )
        self.aligned: list[Tensors] = list(self.weights)
        self.permutations: list[Permutations] = [{} for _ in self.weights]
        self.sets: tuple[tuple[int, ...], ...] = ()
        self.cycles = 0
        self.warnings: list[str] = []
        self._stopped = False

    def moved(self, number: int) -> int:
        """Number of units of a network that do not keep their place."""
        return self.joint.composition.moved(self.permutations[number])

    def shares_base(self, number: int) -> bool:
        """Whether the units of a network lay in one order with another one's from the start."""
        return len(self.sets[self._set_of(number)]) > 1

    def align(self) -> None:
        """Find the permutations of every network; those that share a base move together."""
        networks, parameters = self.networks, self.subject.parameters
        spec = networks.understood.spec
        self.progress.phase("comparing")
        self.sets = shared_bases(
            len(self.weights),
            lambda a, b: in_one_order(spec, self.weights[a], self.weights[b], parameters, self.device),
            self.ranks,
        )
        members: list[Tensors] = [
            self.weights[one[0]] if len(one) == 1 else Mean([self.weights[number] for number in one])
            for one in self.sets
        ]
        self.joint = Joint(
            spec,
            parameters,
            self.subject.ties,
            tuple(members),
            tuple(map(len, self.sets)),
            Composition(spec, {key: self.subject.shapes[key] for key in parameters}),
        )
        self.progress.phase("aligning")
        placed = self._placed()
        if self._stopped:
            self.warnings.append("the matching stopped without converging")
        for number, one in enumerate(self.sets):
            for member in one:
                self.permutations[member] = placed[number]
                permuted = networks.permuted(self.weights[member], placed[number])
                self.aligned[member] = self.weights[member] if permuted.moves_nothing else permuted

    def _set_of(self, number: int) -> int:
        return next(place for place, one in enumerate(self.sets) if number in one)

    def _placed(self) -> list[Permutations]:
        """The permutations of each set, by the way that was asked for; the reference's set keeps its order."""
        options, joint = self.options, self.joint
        start = self._set_of(self.reference)
        if len(self.sets) == 1:
            return joint.unmoved()
        if options.align == "reference" and options.reference == AUTO:
            found = to_most_similar(joint, self._match, self.ranks)
            self.reference, self.cycles = self.sets[found.reference][0], found.cycles
            return found.placed
        if options.align == "reference":
            placed = to_reference(joint, start, self._match, self.ranks)
        elif options.align == "merge-many":
            (placed,) = self.ranks.divided(
                [joint], lambda one: merge_many(one, self._small_search, seed=options.seed, told=self._told_round)
            )
        else:
            others = [number for number in range(len(self.sets)) if number != start]
            placed = cycle_consistent(
                joint,
                [start, *others],
                self._small_search,
                self.ranks,
                seed=options.seed,
                effort=self._effort(),
                time_limit=options.time_limit,
                device=self.device,
                told=lambda words: self.progress.step(0, None, words),
            )
        placed = joint.held_still(placed, start)
        self.cycles = cycles_through_one_order(placed, joint.composition)
        return placed

    def _effort(self) -> str:
        if self.options.effort != "auto":
            return self.options.effort
        shapes = {key: self.subject.shapes[key] for key in self.subject.parameters}
        return "fast" if pair_work(self.joint.spec, shapes).large else "standard"

    def _small_search(self, a: Tensors, b: Tensors, local: bool) -> MatchResult:
        """Matching by weights, repeated for each network and round: descents and one annealing. See `joint.Search`.

        On five networks trained on digits, larger searches for each of them end no higher together. Another effort
        than the automatic one is that of each search.
        """
        starts = SMALL if self.settings.effort == "auto" else None
        settings = replace(self.settings, starts=("identity",) if local else starts)
        return self._searched(a, b, settings, None if local else self._show_pass)

    def _searched(self, a: Tensors, b: Tensors, settings: SearchSettings, on_pass: OnPass | None) -> MatchResult:
        """A search, whose memory is free when it is over: a portfolio refers to itself, and would hold its tensors."""
        found = self.networks.search(a, b, settings, on_pass)
        self._stopped |= not found.converged
        gc.collect()
        release_freed_memory()
        return found

    def _match(self, a: int, b: int) -> MatchResult:
        """Set b to set a, by the matching method that was asked for."""
        options = self.options
        if options.match_method == "weight":
            networks, parameters = self.joint.networks, self.subject.parameters
            a_held, b_held = (held(networks[number], parameters) for number in (a, b))
            return self._searched(a_held, b_held, self.settings, self._show_pass)
        pair = Pair(self.weights[self.sets[a][0]], self.weights[self.sets[b][0]], self.subject)
        matching = Matching(
            method=options.match_method,
            effort=self.settings.effort,
            starts=None,
            restarts=None,
            max_passes=options.max_passes,
            time_limit=options.time_limit,
            seed=options.seed,
            device=str(self.device),
            data=options.data,
            limit=options.limit,
            batch_size=options.batch_size,
            transform=options.transform,
            class_map=options.class_map,
            class_order=options.class_order,
            workers=options.workers,
            skip_corrupt=options.skip_corrupt,
            loss=options.loss,
            input_stated=bool(options.inputs) or options.input_file is not None,
            cache=options.cache,
        )
        understood, model = self.networks.understood, str(options.model)
        room = None if options.data is None else data_of(pair, understood, matching, model, progress=self.progress)
        task = MatchTask(pair, understood, matching, model, self.device, self._show_pass, ALONE, data=room)
        found = match(task)
        self._stopped |= not found.converged
        return found

    def _show_pass(self, done: PassReport) -> None:
        self.progress.step(done.elapsed, None if done.left is None else done.elapsed + done.left, done.detail)

    def _told_round(self, number: int, network: int) -> None:
        self.progress.step(network, len(self.sets), f"round {number}, network {network} of {len(self.sets)}")

    def verify(self) -> FunctionCheck:
        """Check that every network that moved still computes its function; the check with the largest difference.

        Raises:
            NumericalError: one does not.
        """
        networks = self.networks
        self.progress.phase("verifying")
        moved = [number for number, one in enumerate(self.aligned) if isinstance(one, Permuted)]

        def work(number: int) -> FunctionCheck:
            permuted = networks.permuted(self.weights[number], self.permutations[number])
            return networks.verify(self.weights[number], permuted, seed=self.options.seed)

        checks = self.ranks.divided(moved, work)
        left = sorted({check.left_out for check in checks if check.left_out})
        self.warnings += [f"the function was not verified by running the networks: {reason}" for reason in left]
        if not checks:
            return with_spec(FunctionCheck.nothing_moved(), networks.soundness)
        return max(checks, key=lambda check: check.max_in_noise_floors or 0.0)
