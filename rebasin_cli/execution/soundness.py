"""A spec is verified by running the model: the groups are permuted at random, and no output may move.

Everything runs in float64 on random weights (`random_state`), so that nothing hides behind a tiny scale, under several
draws of permutations (`draws`). A unit may still be dead on one input under one draw of the weights (a ReLU that is
never positive), and then what is claimed of it shows nothing; so there are several *settings*, each with weights and
an input of its own. Where the model takes a larger input, that is tried too. Differences are measured in the noise
floors of the outputs (`noise`). What the check could not have seen is said (`power`). This is independent of the rules
that derived the spec: a wrong rule is refused here, on the user's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli import permutation
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.draws import telling_permutations
from rebasin_cli.execution.forward import Changed, State, run
from rebasin_cli.execution.noise import TOLERANCE, Comparison
from rebasin_cli.execution.power import (
    LARGEST,
    PRECISIONS,
    Member,
    Power,
    confirm_unseen,
    gradients,
    silent_sites,
    without_sites,
)
from rebasin_cli.execution.random_state import RandomState, varied
from rebasin_cli.execution.sample_inputs import larger_inputs, sample_inputs
from rebasin_cli.execution.widening import Rounding
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import ties
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import PermutationSpec

SETTINGS = ((100_000, 8), (1_000_000, 4), (10_000_000, 3))
"""Parameters up to which there are so many settings; above there are two. Few units are more likely to be all dead."""

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
        larger: a larger input on which the spec was verified too; None where there is none.
        no_larger: why there is none.
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
    no_larger: str | None = "not asked for"
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
        ModelError: the spec moves the names of one tensor differently; or the forward pass fails on the example with
            random weights and with the checkpoint's.
    """
    check = Check(build().eval(), example, spec, seed)
    check.choose_weights(own)
    return check.result(sizes=sizes, power=power)


@dataclass(frozen=True, slots=True)
class Setting:
    """Weights, an input, and the outputs of the unpermuted network."""

    state: State
    example: ExampleInput
    base: list[Tensor]

    @property
    def usable(self) -> bool:
        return not any(bool(leaf.isnan().any()) for leaf in self.base if leaf.is_floating_point())


class Check:
    """One verification."""

    def __init__(self, module: nn.Module, example: ExampleInput, spec: PermutationSpec, seed: int) -> None:
        self.module, self.example, self.spec, self.seed = module, example, spec, seed
        spec.check_ties(ties(module))
        self.numbers = sum(tensor.numel() for tensor in module.parameters())
        self.count = next((count for most, count in SETTINGS if self.numbers <= most), 2)
        self.comparison = Comparison()
        self.lengths: dict[str, int] = {}
        self.own: State | None = None
        self.weights = "random"
        self.no_larger: str | None = "not asked for"

    def choose_weights(self, own: State | None) -> None:
        """Random weights, or the checkpoint's own varied where those give no numbers."""
        try:
            self.first = self._setting(self.state(0), self.example)
            usable = self.first.usable
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            if own is None or "allocate memory" in str(error):
                raise
            usable = False
        if not usable and own is not None:
            self.own, self.weights = own, "varied"
            self.first = self._setting(self.state(0), self.example)

    def result(self, *, sizes: bool, power: bool) -> SoundnessCheck:
        perturbed = self.run(self.first.state, self.example, Rounding(self.seed + 2))
        self.comparison.add(self.first.base, perturbed, self.first.base)
        self.draws = telling_permutations(self.spec, self.seed + 1)
        two = self.count == 2  # then each of the draws is tried in one setting only, the second at a larger size
        shared = -(-len(self.draws) // 2) if two else len(self.draws)
        settings, drawn = [self.first], self._try(self.first, self.draws[:shared])
        larger, excess = None, None
        if sizes and self.comparison.result().within():
            if two:
                larger, excess = self._at_larger_size(self.state(1), self.draws[shared:])
                drawn += len(self.draws) - shared if larger and excess is None else 0
            else:
                larger, excess = self._at_larger_size(self.first.state, self.draws[:1])
        if self.comparison.result().within() and not (two and larger and excess is None):
            settings += self.other_settings()
            for place, setting in enumerate(settings[1:] or settings):
                own = telling_permutations(self.spec, self.seed + 1001 + 1000 * place)
                drawn += self._try(setting, self.draws[shared:] if two else own)
        weak = Power(unknown="not asked for")
        if power and self.comparison.result().within():
            weak = self._power(settings)
        return self.summary(drawn, larger, excess, weak)

    def summary(
        self,
        drawn: int,
        larger: str | None = None,
        excess: float | None = None,
        weak: Power | None = None,
    ) -> SoundnessCheck:
        """What was compared so far.

        Args:
            drawn: how many random elements of every group were tried.
            larger, excess: the larger input, and the difference there where it is too large.
            weak: what the check could not have seen.
        """
        difference = self.comparison.result()
        return SoundnessCheck(
            max_relative_error=difference.relative if difference.finite else float("inf"),
            noise_floor=difference.noise_floor,
            floors=difference.floors if difference.finite else float("inf"),
            seed=self.seed,
            draws=drawn,
            traced=self.example.describe(),
            larger=larger,
            no_larger=self.no_larger,
            only_traced=excess if difference.within() else None,
            one_step=tuple(name for name, steps in self.lengths.items() if steps == 1),
            power=Power(unknown="not asked for") if weak is None else weak,
            weights=self.weights,
            silent=difference.silent,
            finite=difference.finite,
        )

    def _try(self, setting: Setting, draws: Sequence[Permutations]) -> int:
        """Compare under these draws until one shows a difference; how many were tried."""
        for place, permutations in enumerate(draws):
            if not self.comparison.result().within():
                return place
            self.compare(self.comparison, setting, self._moved(setting, self.spec, permutations))
        return len(draws)

    def other_settings(self) -> list[Setting]:
        """Other weights and other inputs like the example, where the model gives numbers."""
        made: list[Setting] = []

        def accepts(example: ExampleInput) -> bool:
            setting = self._setting(self.state(len(made) + 1), example)
            if setting.usable:
                made.append(setting)
            return setting.usable

        sample_inputs(self.example, self.count, self.seed, accepts)
        while len(made) < self.count - 1:  # no other input was taken: other weights on the example itself
            try:
                if not accepts(self.example):
                    break
            except (ModelError, MemoryError):
                raise
            except Exception:
                break
        return made[: self.count - 1]

    def state(self, place: int) -> State:
        """The weights of a setting, by its place."""
        seed = self.seed + 1000 * place
        return RandomState(self.module, seed) if self.own is None else Changed(self.own, partial(varied, seed))

    def _setting(self, state: State, example: ExampleInput) -> Setting:
        return Setting(state, example, self.run(state, example))

    def run(self, state: State, example: ExampleInput, rounding: Rounding | None = None) -> list[Tensor]:
        with _steps(self.module, self.lengths):
            return run(self.module, state, example, seed=self.seed, rounding=rounding)

    def _moved(self, setting: Setting, spec: PermutationSpec, permutations: Permutations) -> State:
        def move(key: str, tensor: Tensor) -> Tensor:
            steps = permutation.gathers(spec, permutations, key, tensor.shape)
            if tensor.is_floating_point():  # made for this reading
                return permutation.permute_in_place(tensor, steps)
            return permutation.permute_tensor(tensor, steps)

        return Changed(setting.state, move)

    def compare(self, comparison: Comparison, setting: Setting, moved: State) -> None:
        """Add what a changed state gives; the setting's own noise floor is measured where the known one does not do."""
        found = self.run(moved, setting.example)
        trial = Comparison(floors=dict(comparison.floors))
        trial.add(setting.base, setting.base, found)
        perturbed = setting.base
        if not trial.result().within():
            perturbed = self.run(setting.state, setting.example, Rounding(self.seed + 2))
        comparison.add(setting.base, perturbed, found)

    def _at_larger_size(self, state: State, draws: Sequence[Permutations]) -> tuple[str | None, float | None]:
        """The larger input that the model takes, and the difference there in noise floors where it is too large."""
        self.no_larger = "the model takes no other input size"
        for example in _first(larger_inputs(self.example), MOST_SIZES):
            comparison = Comparison(floors=dict(self.comparison.floors))
            try:
                setting = self._setting(state, example)
                if not setting.usable:
                    continue
                for permutations in draws:
                    self.compare(comparison, setting, self._moved(setting, self.spec, permutations))
            except ModelError:
                raise
            except Exception as error:  # the model does not take this size, or the memory does not
                if isinstance(error, MemoryError) or "allocate memory" in str(error):
                    self.no_larger = "no larger input fits in memory"
                continue
            self.no_larger = None
            difference = comparison.result()
            return example.describe(), None if difference.within() else difference.floors
        return None, None

    def _power(self, settings: Sequence[Setting]) -> Power:
        if self.numbers > LARGEST:
            return Power(unknown=f"not measured for models of more than {LARGEST:,} parameters")
        state = self.first.state
        keys = [key for key in self.spec.sites_by_key if key in state]
        trained = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        slopes: dict[str, Tensor] = {}
        for dtype, chosen in product(PRECISIONS, (keys, [key for key in keys if key in trained])):
            try:
                with _composite_batch_norm():
                    slopes = gradients(self.module, state, self.example, chosen, self.seed, dtype)[1]
                break
            except Exception as error:  # the model may have gradient functions of its own
                if "allocate memory" in str(error):
                    return Power(unknown="gradients do not fit in memory")
        first = self.draws[0]
        second = ties(self.module)  # further names of a tensor, which is read under its first name
        members = [member for member in silent_sites(self.spec, first, state, slopes) if member[1].key not in second]

        def seen_without(part: Sequence[Member]) -> bool:
            spec = without_sites(self.spec, part)
            for setting in settings:
                comparison = Comparison(floors=dict(self.comparison.floors))
                self.compare(comparison, setting, self._moved(setting, spec, first))
                if not comparison.result().within():
                    return True
            return False

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
