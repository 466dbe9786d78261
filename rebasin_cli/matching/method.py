"""The interface of a matching method: what the user sees of it, what it needs, and what it is called with.

A method is one file in `methods/` that defines `METHOD`; nothing else knows its name. Imports nothing heavy, because
help lists the methods: a method's file imports what it works with inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rebasin_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from rebasin_cli.data import Batch
    from rebasin_cli.data.ranks import Ranks
    from rebasin_cli.execution.data_inputs import PairData
    from rebasin_cli.execution.pair import Pair
    from rebasin_cli.execution.understanding import Understanding
    from rebasin_cli.matching.learning.journal import Journal
    from rebasin_cli.matching.plan import Effort
    from rebasin_cli.matching.result import MatchResult, OnPass
    from rebasin_cli.progress import Progress

Options = TypeVar("Options")

SEARCH = {"starts": "--start", "restarts": "--restarts", "max_passes": "--max-passes"}
"""Settings of the search by weights, None where they are not given, and their flags."""


PERMUTATION, SIGNED, ALL = SYMMETRIES = ("permutation", "signed", "all")
"""What may move: permutations; also signs; everything that the classes of the groups allow."""


class Need(str, Enum):
    """What a method works with besides the weights of both checkpoints."""

    DATA = "data"
    TRACE = "a traced model"
    GRADIENTS = "gradients of the model"


@dataclass(frozen=True, slots=True)
class Matching:
    """How the user wants permutations to be found.

    Attributes:
        method: a name or an alias of a method.
        starts, restarts, max_passes: of the search by weights; None for what the effort sets.
        time_limit: seconds.
        data, limit, batch_size: the data set for methods and starts that run the networks.
        options: the method's own options; None for their defaults.
        transform, class_map, class_order, workers, skip_corrupt: how the data are read.
        loss: the user's function that learning minimises; None for cross-entropy, or a distance without labels.
        input_stated: the user stated the input of the model.
        cache: inputs without data are kept in the user's cache directory.
        symmetries: the maps that are searched: one of `SYMMETRIES`.
    """

    method: str
    effort: Effort
    starts: tuple[str, ...] | None
    restarts: int | None
    max_passes: int | None
    time_limit: float | None
    seed: int
    device: str
    data: str | None = None
    limit: int | None = None
    batch_size: int = 64
    objective: str = "plain"
    options: object | None = None
    transform: str | None = None
    class_map: Path | None = None
    class_order: str | None = None
    workers: int = 0
    skip_corrupt: bool = False
    loss: str | None = None
    input_stated: bool = False
    cache: bool = True
    symmetries: str = PERMUTATION


def data_of(
    pair: Pair,
    understood: Understanding,
    matching: Matching,
    model: str,
    *,
    labelled: bool = False,
    progress: Progress | None = None,
) -> PairData:
    """The data set of a matching, which must name one; `labelled` if labels are learned from."""
    from rebasin_cli.data import DataOptions
    from rebasin_cli.execution.data_inputs import PairData

    assert matching.data is not None
    how = DataOptions(
        limit=matching.limit,
        seed=matching.seed,
        batch_size=matching.batch_size,
        workers=matching.workers,
        skip_corrupt=matching.skip_corrupt,
        class_map=matching.class_map,
        class_order=matching.class_order,
    )
    return PairData(
        pair,
        understood,
        matching.data,
        model,
        how,
        matching.transform,
        matching.input_stated,
        labelled=labelled,
        loss=matching.loss,
        device=matching.device,
        cache=matching.cache,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class StateFile:
    """Where the state of a run is saved, so that it can be resumed.

    Attributes:
        run: what decides the numbers of the run: files, model, settings, versions; plain JSON data.
        force: a state of another run is overwritten, instead of refused.
    """

    path: Path
    run: Mapping[str, Any]
    force: bool


@dataclass(frozen=True, slots=True)
class MatchTask:
    """One pair to match, and how.

    Attributes:
        model: the model's name, which decides how its data are transformed.
        device: where products are computed.
        on_pass: called after every pass of a search.
        ranks: the processes that take part; all but the first run only the method's `assist`.
        shuffle: read the data in a random order that the seed decides.
        data: the data set, where it is open already.
        own_batches: the batches to read instead of the whole data set.
        state: where a method that can be resumed saves its state, and of which run; see `journal`.
    """

    pair: Pair
    understood: Understanding
    matching: Matching
    model: str
    device: torch.device
    on_pass: OnPass
    ranks: Ranks
    shuffle: bool = False
    data: PairData | None = None
    own_batches: Callable[[], Iterator[Batch]] | None = None
    state: StateFile | None = None

    def options(self, kind: type[Options]) -> Options:
        """The method's own options, which are of this class.

        Raises:
            UsageError: options of another method were given.
        """
        given = self.matching.options
        if given is None:
            return kind()
        if not isinstance(given, kind):
            raise UsageError(f"{type(given).__name__} are not the options of method {self.matching.method}")
        return given

    def batches(self) -> Iterator[Batch]:
        """This process's share of the data set.

        Raises:
            DataError: there is no such data, or it does not fit the model.
        """
        if self.own_batches is not None:
            return self.own_batches()
        return self.room.batches(shuffle=self.shuffle, ranks=self.ranks)

    def journal(self, run: Mapping[str, Any]) -> Journal:
        """The state file of this task.

        Args:
            run: what decides the numbers of the method, besides what `state` says.
        """
        from rebasin_cli.matching.learning.journal import Journal

        if self.state is None:
            return Journal(None)
        return Journal(self.state.path, {**self.state.run, **run}, self.state.force, self.ranks.first)

    @property
    def room(self) -> PairData:
        """The data set of the task."""
        return self.data or data_of(self.pair, self.understood, self.matching, self.model)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to find permutations.

    Attributes:
        help: one line for the user.
        match: finds the permutations.
        aliases: other accepted names.
        needs: checked before the method is called.
        options: the class of its own options, made with `options_class`; every option has a default.
        learns: it compares permutations by a loss on the data.
        unused: which settings of the search by weights (`SEARCH`) have no effect.
        resumes: it saves its state, and continues from that of a run that was ended.
        maps: finds maps of larger classes than permutations; None where it cannot.
        assist: what the other processes run under `torchrun`, while the first runs `match`; None for nothing.
    """

    name: str
    help: str
    match: Callable[[MatchTask], MatchResult]
    aliases: tuple[str, ...] = ()
    needs: frozenset[Need] = frozenset()
    options: type | None = None
    assist: Callable[[MatchTask], None] | None = None
    learns: bool = False
    resumes: bool = False
    maps: Callable[[MatchTask], MatchResult] | None = None
    unused: Collection[str] = ()

    def own_options(self, given: object) -> Any:
        """The method's own options out of an object that has them among others; None where it has none."""
        if self.options is None:
            return None
        return self.options(**{entry.name: getattr(given, entry.name) for entry in fields(self.options)})

    def check(self, matching: Matching) -> None:
        """Refuse what the method cannot work without, and what has no effect, as far as the command line tells.

        Raises:
            UsageError: it needs data, and none is given; or a setting is given that it does not use.
        """
        if Need.DATA in self.needs and matching.data is None:
            raise UsageError(f"method {self.name} needs data", hint="give --data")
        if matching.symmetries != PERMUTATION and self.maps is None:
            raise UsageError(
                f"method {self.name} finds permutations only, not --symmetries {matching.symmetries}",
                hint="use --method weight or learned",
            )
        for name in self.unused:
            if getattr(matching, name) is not None:
                raise UsageError(f"{SEARCH[name]} has no effect with method {self.name}")

    def check_model(self, understood: Understanding) -> None:
        """Refuse a model that the method cannot work with.

        Raises:
            UsageError: it needs a traced model, and the spec is from a file.
        """
        if Need.TRACE in self.needs and understood.derivation is None:
            raise UsageError(f"method {self.name} needs a traced model", hint="leave out --spec")
