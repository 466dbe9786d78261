"""What a merging method is: how one tensor of several aligned networks becomes one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rebasin_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Options = TypeVar("Options")


class Need(Enum):
    """What a method cannot work without."""

    BASE = "base"
    DATA = "data"
    PAIR = "pair"


class Weighting(Enum):
    """What a method does with `--weights`."""

    SHARES = "shares"
    """They are divided by their sum; by default all are equal."""
    FACTORS = "factors"
    """They are factors of the task vectors, as they are; by default all are 1."""
    NONE = "none"
    """The method finds its own."""


@dataclass(frozen=True, slots=True)
class OneTensor:
    """One tensor of all networks, aligned, for a method to combine; two of them are in memory at a time.

    Attributes:
        key: names it; tied names have one key.
        weights: one for each network.
        read: the tensor of the network with this number, float32 or wider.
        base: that of the base, likewise; None without a base.
        seed: of the run.
        options: the method's own.
    """

    key: str
    weights: tuple[float, ...]
    read: Callable[[int], Tensor]
    base: Tensor | None
    seed: int
    options: object | None

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Those of the networks in their order, each read when it is asked for."""
        return map(self.read, range(len(self.weights)))

    @property
    def deltas(self) -> Iterator[Tensor]:
        """The task vectors, float64: network minus base."""
        return (tensor.double() - self.origin for tensor in self.tensors)

    @property
    def origin(self) -> Tensor:
        """The base, float64."""
        assert self.base is not None
        return self.base.double()

    def own(self, kind: type[Options]) -> Options:
        """The method's options, which are of this class."""
        return self.options if isinstance(self.options, kind) else kind()


class Candidates(Protocol):
    """The aligned networks of a method that chooses among them by data."""

    @property
    def count(self) -> int: ...

    def score(self, shares: Sequence[float]) -> float:
        """How good the weighted mean is on the data; more is better."""
        ...


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A way to merge.

    Attributes:
        help: one line for the user, with the source.
        combine: makes one tensor, float32 or wider, from a `OneTensor`.
        needs: checked before anything is read.
        weighting: what `--weights` means.
        options: the class of its own options, made with `options_class`; every option has a default.
        choose: finds the weights from data, before `combine` is called.
    """

    name: str
    help: str
    combine: Callable[[OneTensor], Tensor]
    needs: frozenset[Need] = frozenset()
    weighting: Weighting = Weighting.SHARES
    options: type | None = None
    choose: Callable[[Candidates], tuple[float, ...]] | None = None

    def own_options(self, given: object) -> Any:
        """The method's own options out of an object that has them among others; None where it has none."""
        if self.options is None:
            return None
        return self.options(**{entry.name: getattr(given, entry.name) for entry in fields(self.options)})

    def check(self, *, count: int, base: bool, data: bool) -> None:
        """Refuse what the method cannot work without, and a base that it does not use.

        Raises:
            UsageError: naming it.
        """
        if Need.PAIR in self.needs and count != 2:
            raise UsageError(f"--method {self.name} merges two checkpoints, and {count} are given", hint="use linear")
        if Need.BASE in self.needs and not base:
            raise UsageError(
                f"--method {self.name} needs the network that the checkpoints are fine-tunings of", hint="give --base"
            )
        if Need.BASE not in self.needs and base:
            raise UsageError(
                f"--base has no effect with --method {self.name}",
                hint="it belongs to --method task-arithmetic, ties, dare-ties and model-stock",
            )
        if Need.DATA in self.needs and not data:
            raise UsageError(f"--method {self.name} chooses by held-out data", hint="give --data")

    def weights(self, given: Sequence[float] | None, count: int) -> tuple[float, ...]:
        """The weight of each checkpoint.

        Raises:
            UsageError: there are not as many as checkpoints, they sum to 0, or the method takes none.
        """
        if given is None:
            return (1.0 if self.weighting is Weighting.FACTORS else 1.0 / count,) * count
        if self.weighting is Weighting.NONE:
            raise UsageError(f"--weights has no effect with --method {self.name}: it finds its own")
        if len(given) != count:
            raise UsageError(f"--weights has {len(given)} numbers, and there are {count} checkpoints")
        if self.weighting is Weighting.FACTORS:
            if not any(given):
                raise UsageError("--weights are all 0: the result would be the base")
            return tuple(given)
        total = sum(given)
        if abs(total) < 1e-9 * sum(map(abs, given)) or not total:
            raise UsageError("--weights sum to 0, so they cannot be divided by their sum")
        return tuple(weight / total for weight in given)
