"""Numbered batches: from a data set with a length and an index, or from an iterable of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from rebasin_cli.data.batch import Batch
from rebasin_cli.data.contract import IGNORED, Takes, batch_from
from rebasin_cli.data.datasets import Unreadable
from rebasin_cli.data.generated_kinds import GeneratedFacts
from rebasin_cli.data.text import TextFacts
from rebasin_cli.errors import DataError, ModelError, RebasinError, one_line
from rebasin_cli.model import user_function


def choose(count: int, *, limit: int | None, seed: int, shuffle: bool) -> np.ndarray:
    """Indices into `count` samples, int64.

    With a `limit`, so many are drawn without replacement from `seed`. The same arguments always give the same choice,
    but a smaller one is not the beginning of a larger one. Unshuffled choices are sorted, so that the disk is read
    sequentially; batch statistics need a random order, because a folder is sorted by class.
    """
    generator = np.random.default_rng(seed)
    if limit is not None and limit < count:
        chosen = generator.choice(count, size=limit, replace=False)
        return chosen if shuffle else np.sort(chosen)
    return generator.permutation(count) if shuffle else np.arange(count)


class MapSource:
    """Batches of a map-style data set, in the order of `indices`.

    Args:
        dataset: has `len` and returns sample i, as `(inputs…, target)` or a mapping, or `Unreadable`.
        indices: which samples in which order; int64.
        skip_corrupt: leave out and count samples that cannot be read, instead of raising.
        classes: when given, integer targets must lie below it.
        origin: what the user named, for messages.
    """

    def __init__(
        self,
        dataset: Any,
        indices: np.ndarray,
        *,
        batch_size: int,
        workers: int,
        skip_corrupt: bool,
        classes: int | None,
        origin: str,
        description: str,
        identity: str,
        takes: Takes | None = None,
        notes: tuple[str, ...] = (),
        text: TextFacts | None = None,
    ) -> None:
        self.text = text
        self.generated: GeneratedFacts | None = None
        self._dataset = dataset
        self._indices = indices
        self._batch_size = batch_size
        self._workers = workers
        self._skip_corrupt = skip_corrupt
        self._classes = classes
        self.origin = origin
        self._takes = takes
        self.description = description
        self.notes = notes
        digest = hashlib.sha256(np.ascontiguousarray(indices, dtype=np.int64).tobytes()).hexdigest()[:16]
        self.fingerprint = f"{identity}|{digest}|{batch_size}"

    @property
    def batch_count(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches numbered `first` and up whose number is `rank` modulo `world`.

        Raises:
            DataError: a sample cannot be read (unless these are skipped), or a label is not a class of the model.
        """
        numbers = [number for number in range(first, self.batch_count) if number % world == rank]
        size = self._batch_size
        loader = DataLoader(
            self._dataset,
            batch_sampler=[self._indices[number * size : (number + 1) * size].tolist() for number in numbers],
            num_workers=min(self._workers, len(numbers)),
            collate_fn=partial(_collate, origin=self.origin),
        )
        for number, (item, bad) in zip(numbers, self._loaded(loader), strict=True):
            if isinstance(item, DataError):
                raise item
            if bad and not self._skip_corrupt:
                raise DataError(
                    f"{bad[0].path}: this image cannot be read: {bad[0].reason}",
                    path=bad[0].path,
                    hint="repair or remove it, or skip such images with --skip-corrupt",
                    slug="corrupt_image",
                )
            yield self._finish(item, number, len(bad))

    def _loaded(self, loader: DataLoader[Any]) -> Iterator[Any]:
        try:
            yield from loader
        except RebasinError:
            raise
        except Exception as error:  # the code of the data set
            raise DataError(
                f"{self.origin}: a sample cannot be read: {one_line(error)}", path=self.origin, slug="loader"
            ) from error

    def _finish(self, item: Any, number: int, skipped: int) -> Batch:
        if item is None:
            return Batch(number, (), skipped=skipped)
        batch = batch_from(item, number, self.origin, self._takes)
        check_labels(batch.target, self._classes, self.origin)
        return Batch(number, batch.args, batch.kwargs, batch.target, batch.size, skipped)


def _collate(samples: Sequence[Any], origin: str) -> tuple[Any, list[Unreadable]]:
    """A batch of the samples that could be read, or the error that forbids one; errors of worker processes come with a
    long trace, so it is not raised here."""
    good = [sample for sample in samples if not isinstance(sample, Unreadable)]
    bad = [sample for sample in samples if isinstance(sample, Unreadable)]
    try:
        return (collate(good, origin) if good else None), bad
    except DataError as error:
        return error, bad


def collate(samples: Sequence[Any], origin: str) -> Any:
    """Samples as a batch, by torch's rules.

    Raises:
        DataError: they are of different shapes, or of a kind that is no tensor.
    """
    try:
        return default_collate(list(samples))
    except RuntimeError as error:
        raise DataError(
            f"{origin}: samples of a batch have different shapes: {one_line(error)}",
            path=origin,
            hint="bring images to one size with --transform resize=HxW,…; pad other samples, or return batches",
            slug="sample_shapes",
        ) from error
    except TypeError as error:
        raise DataError(
            f"{origin}: samples cannot be put into a batch: {one_line(error)}",
            path=origin,
            hint="a sample is (input, target) of tensors, arrays or numbers, or a mapping of them",
            slug="loader",
        ) from error


def check_labels(target: Any, classes: int | None, origin: str) -> None:
    """Raise DataError when an integer target is not a class number of the model."""
    if classes is None or not isinstance(target, Tensor) or target.dim() != 1 or not target.numel():
        return
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        return
    target = target[target != IGNORED]
    if not target.numel():
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        seen = low if low < 0 else high
        raise DataError(
            f"{origin}: label {seen} found, but the model has {classes} classes (0 … {classes - 1})",
            path=origin,
            hint="check that the labels count from 0 and belong to this model",
            slug="label_range",
        )


class IterableSource:
    """Batches from an iterable that the user's function returns.

    Every pass starts torch's generator from `seed`, so a loader that shuffles gives the same order each time; resuming
    and distribution over ranks depend on that. `limit` counts samples and stops with the batch that reaches it.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        first: Any,
        *,
        limit: int | None,
        seed: int,
        classes: int | None,
        origin: str,
        takes: Takes | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._make, self._takes, self.notes = make, takes, notes
        self.text: TextFacts | None = None
        self.generated: GeneratedFacts | None = None
        self.kept = None if isinstance(first, Iterator) else first
        self._limit = limit
        self._seed = seed
        self._classes = classes
        self.origin = origin
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
            DataError: the user's code raises, or yields something that is not a batch.
        """
        seen = 0
        for number, item in enumerate(self.items()):
            batch = batch_from(item, number, self.origin, self._takes)
            seen += batch.size
            if number >= first and number % world == rank:
                check_labels(batch.target, self._classes, self.origin)
                yield batch
            if self._limit is not None and seen >= self._limit:
                return
        if not seen:
            raise DataError(
                f"{self.origin}: the loader yields no batch when it is read again",
                path=self.origin,
                hint="make a new iterator in the function, or return a list or a DataLoader",
                slug="loader",
            )

    def items(self) -> Iterator[Any]:
        """What the user's iterable yields, with a random state of its own."""
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
            except RebasinError:
                raise
            except TypeError as error:
                if iterator is None:
                    raise DataError(
                        f"{self.origin}: the function returned {type(self.kept).__name__}, which is not iterable",
                        path=self.origin,
                        hint="return an iterable of batches, such as a DataLoader or a list, or a dataset",
                        slug="loader",
                    ) from error
                raise DataError(f"{self.origin}: the loader failed: {one_line(error)}", path=self.origin) from error
            except Exception as error:  # the user's own code
                raise DataError(f"{self.origin}: the loader failed: {one_line(error)}", path=self.origin) from error
            finally:
                theirs = torch.random.get_rng_state()
                torch.random.set_rng_state(ours)
            yield item


def is_map_style(value: Any) -> bool:
    """Whether it is a data set with a length and an index, and not an iterable of batches."""
    if isinstance(value, (list, tuple, torch.utils.data.DataLoader)):
        return False
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def load_callable(text: str) -> Callable[..., Any]:
    """The user's function behind `file.py:name` or `package.module:name`; its directory is importable while it runs.

    Raises:
        DataError: there is no such file or function; or, when it is called, it fails (with file and line).
    """
    with_data_errors = _model_errors_as_data_errors(user_function)
    return _model_errors_as_data_errors(with_data_errors(text))


def _model_errors_as_data_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ModelError as error:
            hint = None if error.hint is None or "model" in error.hint else error.hint
            raise DataError(error.message, path=error.path, hint=hint, slug=error.slug) from error

    return call
