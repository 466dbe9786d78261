"""`file.py:loader`: the user's own Python gives a data set or batches; it runs because they named it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from rebasin_cli.data.batch import Batch, batch_from
from rebasin_cli.data.map_source import check_labels
from rebasin_cli.errors import DataError, ModelError
from rebasin_cli.model.model_spec import parse_model_spec
from rebasin_cli.model.user_code import failed, user_source
from rebasin_cli.model.user_file import importable


def load_callable(spec: str) -> Callable[..., Any]:
    """The user's function behind `file.py:name` or `package.module:name`; its directory is importable while it runs.

    Raises:
        DataError: there is no such file or function, or it fails; in the user's own words, with file and line.
    """
    try:
        found = user_source(parse_model_spec(spec))
    except ModelError as error:
        raise DataError(error.message, path=error.path, hint=_without_models(error.hint), slug=error.slug) from error

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with importable(found.folder):
                return found.target(*args, **kwargs)
        except Exception as error:  # the user's own code
            told = failed(spec, error, found.root)
            raise DataError(told.message, path=told.path, hint=told.hint, slug=told.slug) from error

    return call


def _without_models(hint: str | None) -> str | None:
    return None if hint is None or "model" in hint else hint


class IterableSource:
    """Batches from an iterable that the user's function returns.

    Every pass starts torch's generator from `seed`, so a loader that shuffles gives the same order each time: resuming
    and sharing among ranks rest on that. `limit` counts samples and stops with the batch that reaches it.
    """

    def __init__(
        self, make: Callable[[], Any], first: Any, *, limit: int | None, seed: int, classes: int | None, origin: str
    ) -> None:
        self._make = make
        self.kept = None if isinstance(first, Iterator) else first
        self._limit = limit
        self._seed = seed
        self._classes = classes
        self._origin = origin
        bound = "" if limit is None else f", the first {limit} samples"
        self.description = f"{origin}{bound}"
        self.fingerprint = f"{origin}|{limit}|{seed}"

    @property
    def batch_count(self) -> int | None:
        try:
            count = None if self.kept is None or self._limit is not None else len(self.kept)
        except TypeError:
            count = None
        return count

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches numbered `first` and up whose number is `rank` modulo `world`.

        Raises:
            DataError: the user's code raises, or yields what is no batch.
        """
        seen = 0
        for number, item in enumerate(self._items()):
            batch = batch_from(item, number, self._origin)
            seen += batch.size
            if number >= first and number % world == rank:
                check_labels(batch.target, self._classes, self._origin)
                yield batch
            if self._limit is not None and seen >= self._limit:
                return

    def _items(self) -> Iterator[Any]:
        """What the user's iterable yields, drawn with random numbers of its own that nobody else disturbs."""
        theirs = torch.Generator().manual_seed(self._seed).get_state()
        iterator: Iterator[Any] | None = None
        while True:
            ours = torch.random.get_rng_state()
            torch.random.set_rng_state(theirs)
            try:
                iterator = iterator or iter(self._make() if self.kept is None else self.kept)
                item = next(iterator)
            except StopIteration:
                return
            except DataError:
                raise
            except Exception as error:  # the user's own code: whatever it raises is told in their words
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise DataError(f"{self._origin}: the loader failed: {reason}", path=self._origin) from error
            finally:
                theirs = torch.random.get_rng_state()
                torch.random.set_rng_state(ours)
            yield item


def is_map_style(value: Any) -> bool:
    """Does it look like a data set with a length and an index, rather than like batches one after the other?"""
    if isinstance(value, (list, tuple, torch.utils.data.DataLoader)):
        return False
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")
