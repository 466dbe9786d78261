"""A spec is verified by running the model: the groups are permuted at random, and no output may move.

Everything runs in float64 on random weights (`random_state`), so that nothing hides behind a tiny scale, under several
draws of permutations (`draws`), on the example and, where the model takes one, on a larger input. Differences are
measured in the noise floors of the outputs (`noise`). What the check could not have seen is said too (`power`). This is
independent of the rules that derived the spec: a wrong rule is refused here, on the user's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli import permutation
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.draws import telling_permutations
from rebasin_cli.execution.forward import Changed, Rounding, State, run
from rebasin_cli.execution.noise import TOLERANCE, Comparison, Difference
from rebasin_cli.execution.power import (
    LARGEST,
    Member,
    Power,
    confirm_unseen,
    gradients,
    silent_sites,
    without_sites,
)
from rebasin_cli.execution.random_state import RandomState, varied
from rebasin_cli.execution.sample_inputs import larger_inputs
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import PermutationSpec

KEPT_PERMUTED = 32_000_000
"""Numbers up to which the permuted weights are kept too; above it they are permuted each time they are read."""

MOST_SIZES = 6
"""Larger inputs that are tried until the model takes one."""


@dataclass(frozen=True, slots=True)
class SoundnessCheck:
    """What execution said of a spec.

    Args:
        max_relative_error: largest difference of any output, relative to that output's largest magnitude.
        noise_floor: the largest noise floor of any output, relative to its scale.
        floors: largest difference of any output in its noise floors.
        seed: of the weights and the permutations.
        draws: how many random permutations of every group were tried.
        traced: the input that was traced.
        larger: a larger input on which the spec was verified too; None where the model takes none.
        only_traced: the difference in noise floors at the larger input where it is too large there and not at the
            traced one: the groups hold at the traced size only.
        one_step: recurrent modules that ran for a single time step, so that their recurrent weights were never applied
            twice.
        power: which tensors could have been left behind unseen.
        weights: `random`, or `varied` where the model gives no numbers on random weights.
        silent: the outputs hold no number but zero (a detector that finds nothing), so that nothing was shown.
        finite: whether the outputs are numbers; infinities count, NaN does not.
        cached: the verification was made by an earlier run.
    """

    max_relative_error: float
    noise_floor: float
    floors: float
    seed: int
    draws: int
    traced: str
    larger: str | None = None
    only_traced: float | None = None
    one_step: tuple[str, ...] = ()
    power: Power = field(default_factory=partial(Power, unknown="not asked for"))
    weights: str = "random"
    silent: bool = False
    finite: bool = True
    cached: bool = False

    @property
    def ok(self) -> bool:
        return self.floors <= TOLERANCE and self.only_traced is None


def verify_by_execution(
    build: Callable[[], nn.Module],
    example: ExampleInput,
    spec: PermutationSpec,
    seed: int = 0,
    *,
    own: State | None = None,
    sizes: bool = False,
    power: bool = False,
) -> SoundnessCheck:
    """Permute every group at once, several times, and compare the outputs.

    Args:
        build: makes the model; its parameters may have no memory, they are filled here.
        example: one input.
        spec: the claim.
        seed: of weights and permutations.
        own: a checkpoint of the model, for models that give no numbers on random weights.
        sizes: verify on a larger input too, where the model takes one.
        power: find out which tensors could have been left behind unseen.

    Raises:
        ModelError: the forward pass fails on the example with random weights and with the checkpoint's.
    """
    check = _Check(build().eval(), example, spec, seed)
    check.choose_weights(own)
    return check.result(sizes=sizes, power=power)


class _Check:
    """One verification: the module, its weights, and the outputs of the unpermuted network."""

    def __init__(self, module: nn.Module, example: ExampleInput, spec: PermutationSpec, seed: int) -> None:
        self.module, self.example, self.spec, self.seed = module, example, spec, seed
        self.draws = telling_permutations(spec, seed + 1)
        self.comparison = Comparison()
        self.last: State | None = None  # the weights under the last draw, where they fit in memory
        self.lengths: dict[str, int] = {}
        self.small = sum(tensor.numel() for tensor in module.parameters()) <= KEPT_PERMUTED

    def choose_weights(self, own: State | None) -> None:
        """Random weights, or the checkpoint's own varied where those give no numbers."""
        self.state: State = RandomState(self.module, self.seed)
        self.weights = "random"
        try:
            self.base = self._run(self.state, self.example)
            usable = not any(bool(leaf.isnan().any()) for leaf in self.base if leaf.is_floating_point())
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            if own is None or "allocate memory" in str(error):
                raise
            usable = False
        if not usable and own is not None:
            self.state, self.weights = Changed(own, partial(varied, self.seed)), "varied"
            self.base = self._run(self.state, self.example)

    def result(self, *, sizes: bool, power: bool) -> SoundnessCheck:
        perturbed = self._run(self.state, self.example, Rounding(self.seed + 2))
        for permutations in self.draws:
            self.last = None  # its memory is free to go
            self.last = self._moved(self.spec, permutations)
            self.comparison.add(self.base, perturbed, self._run(self.last, self.example))
        difference = self.comparison.result()
        larger, excess = None, None
        if sizes and difference.within():
            larger, excess = self._at_larger_size()
        weak = Power(unknown="not asked for")
        if power and difference.within():
            weak = self._power(perturbed)
        return SoundnessCheck(
            max_relative_error=difference.relative if difference.finite else float("inf"),
            noise_floor=difference.noise_floor,
            floors=difference.floors if difference.finite else float("inf"),
            seed=self.seed,
            draws=len(self.draws),
            traced=self.example.describe(),
            larger=larger,
            only_traced=excess,
            one_step=tuple(name for name, steps in self.lengths.items() if steps == 1),
            power=weak,
            weights=self.weights,
            silent=difference.silent,
            finite=difference.finite,
        )

    def _run(self, state: State, example: ExampleInput, rounding: Rounding | None = None) -> list[Tensor]:
        with _steps(self.module, self.lengths):
            return run(self.module, state, example, seed=self.seed, rounding=rounding)

    def _moved(self, spec: PermutationSpec, permutations: Permutations) -> State:
        moved = Changed(
            self.state,
            lambda key, tensor: permutation.permute_tensor(
                tensor, permutation.gathers(spec, permutations, key, tensor.shape)
            ),
        )
        return dict(moved) if self.small else moved

    def _at_larger_size(self) -> tuple[str | None, float | None]:
        """The larger input that the model takes, and the difference there in noise floors where it is too large."""
        for example in _first(larger_inputs(self.example), MOST_SIZES):
            try:
                base = self._run(self.state, example)
            except (ModelError, MemoryError):
                raise
            except Exception:
                continue  # the model does not take this size
            if any(bool(leaf.isnan().any()) for leaf in base if leaf.is_floating_point()):
                continue
            difference = self._compared(base, base, example)  # against the noise floor at the traced size
            if not difference.within():
                difference = self._compared(base, self._run(self.state, example, Rounding(self.seed + 2)), example)
            return example.describe(), None if difference.within() else difference.floors
        return None, None

    def _compared(self, base: list[Tensor], perturbed: list[Tensor], example: ExampleInput) -> Difference:
        comparison = Comparison(floors=dict(self.comparison.floors))
        comparison.add(base, perturbed, self._run(self.last or self.state, example))
        return comparison.result()

    def _power(self, perturbed: list[Tensor]) -> Power:
        count = sum(tensor.numel() for tensor in self.module.parameters())
        if count > LARGEST:
            return Power(unknown=f"not measured for models of more than {LARGEST:,} parameters")
        keys = [key for key in self.spec.sites_by_key if key in self.state]
        trained = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        slopes: dict[str, Tensor] = {}
        for chosen in (keys, [key for key in keys if key in trained]):
            try:
                with _composite_batch_norm():
                    slopes = gradients(self.module, self.state, self.example, chosen, self.seed)[1]
                break
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                if "allocate memory" in str(error):
                    return Power(unknown="gradients do not fit in memory")
        first = self.draws[0]
        members = silent_sites(self.spec, first, self.state, slopes)

        def seen_without(part: Sequence[Member]) -> bool:
            moved = self._run(self._moved(without_sites(self.spec, part), first), self.example)
            comparison = Comparison()
            comparison.add(self.base, perturbed, moved)
            return not comparison.result().within()

        return confirm_unseen(members, seen_without)


def _first(examples: Iterator[ExampleInput], count: int) -> Iterator[ExampleInput]:
    for _, example in zip(range(count), examples, strict=False):
        yield example


@contextmanager
def _steps(module: nn.Module, lengths: dict[str, int]) -> Iterator[None]:
    """Keeps the longest sequence that each recurrent module was given, in time steps; a cell counts its calls."""
    calls: dict[str, int] = {}

    def hear(name: str, owner: nn.Module, args: Any) -> None:
        steps = calls[name] = calls.get(name, 0) + 1
        if isinstance(owner, nn.RNNBase):
            given = args[0]
            if not isinstance(given, Tensor):  # a packed sequence: (data, batch_sizes, …)
                steps = len(given[1])
            else:
                steps = given.shape[1 if owner.batch_first and given.dim() == 3 else 0]
        lengths[name] = max(lengths.get(name, 0), steps)

    handles = [
        owner.register_forward_pre_hook(partial(hear, name))
        for name, owner in module.named_modules()
        if isinstance(owner, (nn.RNNBase, nn.RNNCellBase))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _composite_batch_norm() -> Iterator[None]:
    """Batch normalisation by statistics that are differentiable, which PyTorch's own operation does not make them."""
    original = torch.nn.functional.batch_norm

    def batch_norm(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or running_mean is None or running_var is None:
            return original(input, running_mean, running_var, weight, bias, training, momentum, eps)
        shape = (1, -1, *(1 for _ in range(input.dim() - 2)))
        result = (input - running_mean.view(shape)) * (running_var.view(shape) + eps).rsqrt()
        if weight is not None:
            result = result * weight.view(shape)
        return result if bias is None else result + bias.view(shape)

    torch.nn.functional.batch_norm = batch_norm
    try:
        yield
    finally:
        torch.nn.functional.batch_norm = original
