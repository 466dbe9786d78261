"""`--data`: find out which kind of data it names, and open it as numbered batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebasin_cli.data.arrays import ArrayDataset, read_arrays, reading_of
from rebasin_cli.data.batch import Batch, BatchSource
from rebasin_cli.data.batch_sources import (
    IterableSource,
    MapSource,
    check_labels,
    choose,
    collate,
    is_map_style,
    load_callable,
)
from rebasin_cli.data.classes import ClassMap, map_classes, read_class_map
from rebasin_cli.data.contract import Takes, batch_from, left_out
from rebasin_cli.data.datasets import (
    FolderDataset,
    Looks,
    TransformedSet,
    Unreadable,
    list_folder,
    look_at,
    looks_of,
    open_torchvision_set,
)
from rebasin_cli.data.generated_kinds import COUNT, generated_kind
from rebasin_cli.data.generated_source import GeneratedSet, GeneratedSource
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.data.text import Blocks, Language, TextFacts, blocks_of
from rebasin_cli.data.transform import SMALL, ImageTransform, choose_transform
from rebasin_cli.errors import DataError, about, one_line

ARRAY_FILES = (".npz", ".npy")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How much of the data is read, and how.

    Attributes:
        class_map, class_order: how class folders become class numbers, where the user says it; see `map_classes`.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int = 0
    skip_corrupt: bool = False
    shuffle: bool = False
    class_map: Path | None = None
    class_order: str | None = None


@dataclass(frozen=True, slots=True)
class ModelView:
    """The properties of the model that reading data depends on.

    Attributes:
        classes_of: runs the model on one sample and returns its number of classes; None if it is not a classifier.
        names: of its classes, in class order.
        transform: the model's own or the user's; with None, `choose_transform` decides.
        asked: the transform is the user's.
        input_shape: of the example input, where that is one tensor.
        input_certain: whether the user or the zoo stated it.
        takes: the inputs of the model.
        language: what a language model needs to know of text; None for other models.
        run: runs the model on a batch and returns its output.
        labelled: labels are used.
        generate: makes inputs without data, of a kind, a number and a seed; None where there are no networks to make
            them.
    """

    classes_of: Callable[[Batch], int | None]
    names: Sequence[str] | None = None
    transform: ImageTransform | None = None
    input_shape: tuple[int, ...] | None = None
    input_certain: bool = True
    takes: Takes | None = None
    asked: bool = False
    language: Language | None = None
    run: Callable[[Batch], Any] | None = None
    labelled: bool = True
    generate: Callable[[str, int, int], GeneratedSet] | None = None

    def transform_for(self, first_image: tuple[int, int] | None) -> ImageTransform:
        return self.transform or choose_transform(self.input_shape, first_image, certain=self.input_certain)


def open_data(spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    """Open what `--data` names.

    Args:
        spec: a folder of class folders or of images, an `.npz` or `.npy` file, `torchvision:NAME@root`,
            `file.py:loader`, or `generated`.

    Raises:
        DataError: it does not exist, is not of these kinds, or does not match the model.
    """
    path, kind = Path(spec), generated_kind(spec)
    if kind is not None:
        return _open_generated(kind, spec, options, model)
    if model.language is not None and _is_text(path):
        return _open_text(path, options, model, model.language)
    if options.limit is not None and options.limit < 1:
        raise DataError(f"--limit {options.limit}: at least one sample is needed")
    if path.is_dir() and not spec.startswith("torchvision:"):
        return _open_folder(path, options, model)
    _refuse_classes(spec, options)
    if spec.startswith("torchvision:"):
        return _open_set(spec, options, model)
    if path.suffix in ARRAY_FILES and path.exists():
        return _open_arrays(path, options, model)
    if ":" in spec and not path.exists():
        return _open_user(spec, options, model)
    if not path.exists():
        raise DataError(f"{spec}: no such file or directory", path=spec)
    raise DataError(
        f"{spec}: unrecognised --data value",
        path=spec,
        hint="give a folder of class folders, an .npz file with x and y, torchvision:NAME@root, file.py:loader, "
        "generated, or, for a language model, a text file",
    )


def _open_generated(kind: str, spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    """Inputs that the networks make, `--limit` of them; of those that were made already where they are enough."""
    if model.generate is None:
        raise DataError(f"{spec}: there are no two networks here that could make inputs", path=spec, slug="generated")
    wanted = COUNT if options.limit is None else options.limit
    if wanted < 2:
        raise DataError(f"{spec}: at least 2 inputs are made", path=spec, hint="give a larger --limit")
    made = model.generate(kind, wanted, options.seed)
    indices = choose(min(wanted, made.facts.count), limit=None, seed=options.seed, shuffle=options.shuffle)
    return GeneratedSource(made, indices.tolist(), options.batch_size)


def _is_text(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.suffix not in ARRAY_FILES)


def _open_text(path: Path, options: DataOptions, model: ModelView, language: Language) -> BatchSource:
    _refuse_classes(str(path), options)
    if model.asked:
        raise DataError(f"--transform has no effect on {path}, which is text", path=path, slug="no_effect")
    blocks, facts = blocks_of(path, language)
    _check_causal(blocks, str(path), model)
    if model.labelled:
        _classes(model, _first_batch(blocks, str(path), model), str(path))
    context = "" if language.context in (None, language.block) else f" (the model takes {language.context})"
    said = (
        f"{path}: {{}} blocks of {language.block} tokens{context}; {facts.tokens:,} tokens, {facts.bytes:,} bytes, by "
        f"{facts.tokenizer}"
    )
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    identity = "\n".join(file_identity(file) for file in files if file.is_file())
    return _sampled(blocks, options, model, str(path), said, f"{said}|{identity}", (), text=facts)


ROUNDING = 1e-5
"""Differences of outputs, relative to the largest, that the same tokens may have beside other ones."""


def _check_causal(blocks: Blocks, where: str, model: ModelView) -> None:
    """Refuse a model that sees the token that it predicts: its loss on text would be close to nothing.

    Raises:
        DataError: an output changes when only tokens after its place do.
    """
    if model.run is None:
        return
    batch = _first_batch(blocks, where, model)
    ids = batch.args[0]
    half = ids.shape[1] // 2
    other = torch.cat([ids[:, :half], ids[:, half:].flip(1) ^ 1], dim=1)
    with torch.no_grad():
        one, two = (logits_of(model.run(replace(batch, args=(tokens,)))) for tokens in (ids, other))
    if one is None or two is None or one.dim() != 3 or one.shape[1] != ids.shape[1] or ids.shape[1] < 2:
        return  # the labels do not fit either, and that is told where they are compared
    before = (one[:, :half] - two[:, :half]).abs().max()
    if float(before) > ROUNDING * float(one.abs().max()):
        raise DataError(
            f"{where}: the model is not causal: what it says of a token depends on the tokens after it, as in masked "
            "language models, so that predicting the next token measures nothing",
            path=where,
            hint="give a loader of masked tokens with labels, file.py:loader",
            slug="not_causal",
        )


def _refuse_classes(spec: str, options: DataOptions) -> None:
    """The options of class folders, where there are none."""
    for flag, value in (("--class-order", options.class_order), ("--class-map", options.class_map)):
        if value is not None:
            raise DataError(f"{flag} has no effect on {spec}: it is for class folders", path=spec, slug="no_effect")


def _open_folder(root: Path, options: DataOptions, model: ModelView) -> BatchSource:
    listing = list_folder(root)
    looks = look_at([path for path, _ in listing.files])
    transform, notes = _transform_of(looks, model, str(root))
    unmapped = FolderDataset(listing, ClassMap(tuple(range(len(listing.folders))), ""), transform)
    names = "\n".join(f"{path[len(str(root)) :]}|{_size_and_time(path)}" for path, _ in listing.files)
    if not listing.folders:
        _refuse_classes(f"{root}, which has no class folders", options)
        said = f"{root}: {{}} images without labels; {transform.text}"
        return _sampled(unmapped, options, model, str(root), said, f"{transform.text}|{names}", notes)
    first = _first_batch(unmapped, str(root), model)
    classes = _classes(model, first, str(root))
    if not model.labelled:
        said = f"{root}: {{}} images in {len(listing.folders)} class folders, labels not used; {transform.text}"
        return _sampled(unmapped, options, model, str(root), said, f"{transform.text}|{names}", notes)
    mapped = map_classes(
        listing.folders,
        classes,
        model.names,
        str(root),
        order=options.class_order,
        table=None if options.class_map is None else read_class_map(options.class_map),
    )
    dataset = FolderDataset(listing, mapped, transform)
    said = f"{root}: {{}} images in {len(listing.folders)} class folders by {mapped.rule}; {transform.text}"
    notes = (*notes, mapped.note) if mapped.note else notes
    return _sampled(dataset, options, model, str(root), said, f"{mapped.numbers}|{transform.text}|{names}", notes)


def _transform_of(looks: Looks, model: ModelView, where: str) -> tuple[ImageTransform, tuple[str, ...]]:
    """The transform for images that look like this, and what the user should know of it.

    Raises:
        DataError: the images differ in size, and nothing says which size the model takes.
    """
    transform = model.transform_for(next(iter(looks.sizes), None))
    sizes = sorted(looks.sizes)
    if len(sizes) > 1 and model.transform is None and not model.input_certain and min(map(max, sizes)) <= SMALL:
        one, other = sizes[0], sizes[-1]
        raise DataError(
            f"{where}: images differ in size ({looks.sizes[one]} is {one[0]}x{one[1]}, {looks.sizes[other]} is "
            f"{other[0]}x{other[1]}), and the size that the model takes is not known",
            path=where,
            hint="state it, such as --input 1,3,32,32, or --transform resize=32x32,mean=…,std=…",
            slug="image_sizes",
        )
    return transform, (*_guess_notes(transform), *_image_notes(looks, transform))


def _guess_notes(transform: ImageTransform) -> tuple[str, ...]:
    if transform.guess is None:
        return ()
    half = "/".join(["0.5"] * transform.channels)
    size = transform.resize
    resize = f"resize={size[0]}x{size[1]}," if isinstance(size, tuple) else f"resize={size},"
    crop = f"crop={transform.crop[0]}x{transform.crop[1]}," if transform.crop is not None else ""
    return (
        f"the normalisation is a guess ({transform.guess}): state that of the training, such as "
        f"--transform {resize}{crop}mean={half},std={half}",
    )


def _image_notes(looks: Looks, transform: ImageTransform) -> tuple[str, ...]:
    notes = []
    sizes = sorted(looks.sizes)
    if len(sizes) > 1 and transform.resize is not None and min(map(max, sizes)) <= SMALL:
        small, large = sizes[0], sizes[-1]
        notes.append(
            f"images of {small[0]}x{small[1]} to {large[0]}x{large[1]} are brought to one size: {transform.text}"
        )
    if any(mode.startswith("I") for mode in looks.modes):
        notes.append("images with 16 bits a channel are reduced to 8 bits")
    if looks.modes & {"RGBA", "LA", "PA"} and transform.channels != 4:
        notes.append("the alpha channel of images is dropped")
    if transform.channels == 1 and looks.modes & {"RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"}:
        notes.append("colour images are converted to grey, as the model takes one channel")
    if looks.rotated:
        notes.append(
            f"{looks.rotated} of {looks.seen} images have an EXIF orientation, which is not applied, as in torchvision"
        )
    return tuple(notes)


def _open_arrays(path: Path, options: DataOptions, model: ModelView) -> BatchSource:
    arrays = read_arrays(path)
    x = arrays.x
    reading = reading_of(
        x,
        str(path),
        input_shape=model.input_shape,
        integers=None if model.takes is None else model.takes.integers,
        asked=model.transform if model.asked else None,
        transform_for=model.transform_for,
    )
    dataset = ArrayDataset(arrays, reading)
    labels = ""
    if arrays.y is None:
        labels = " without labels"
    else:
        classes = _classes(model, _first_batch(dataset, str(path), model, SEVERAL), str(path))
        y = arrays.y
        check_labels(torch.from_numpy(y) if y.ndim == 1 and y.dtype == np.int64 else None, classes, str(path))
    steps = "" if reading.transform is None else f"; {reading.transform.text}"
    said = f"{path}: {{}} samples of shape {tuple(x.shape[1:])}{labels}; {reading.words}{steps}"
    notes = () if reading.transform is None else _guess_notes(reading.transform)
    if arrays.unused:
        notes = (*notes, f"{path}: of its arrays, {', '.join(arrays.unused)} is not used")
    return _sampled(
        dataset, options, model, str(path), said, f"{x.shape}|{x.dtype}|{said}|{file_identity(path)}", notes
    )


def _open_set(spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    raw = open_torchvision_set(spec)
    transform, notes = _transform_of(_looks_of_set(raw), model, spec)
    dataset = TransformedSet(raw, transform, spec)
    classes = _classes(model, _first_batch(dataset, spec, model), spec)
    names = getattr(raw, "classes", None)
    if classes is not None and names is not None and len(names) != classes:
        raise DataError(
            f"{spec}: {len(names)} classes, but the model has {classes} classes", path=spec, slug="class_mismatch"
        )
    said = f"{spec}: {{}} images; {transform.text}"
    return _sampled(dataset, options, model, spec, said, said, notes, classes=classes)


def _looks_of_set(dataset: Any) -> Looks:
    step = max(1, len(dataset) // 16)
    return looks_of(dataset[index][0] for index in range(0, len(dataset), step))


def _open_user(spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    function = load_callable(spec)
    made = function()
    if is_map_style(made):
        return _open_users_dataset(made, spec, options, model)
    if model.asked:
        raise DataError(
            f"--transform has no effect on {spec}, whose batches are tensors already",
            path=spec,
            hint="transform them in the loader, or return a dataset of images",
            slug="no_effect",
        )
    bare = IterableSource(function, made, limit=1, seed=options.seed, takes=model.takes, classes=None, origin=spec)
    item = next(bare.items(), None)
    if item is None:
        raise DataError(
            f"{spec}: the loader yields no batch", path=spec, hint="return an iterable of batches that is not empty"
        )
    note = left_out(item, model.takes)
    classes = _classes(model, batch_from(item, 0, spec, model.takes), spec)
    return IterableSource(
        function,
        bare.kept if bare.kept is not None else function(),
        limit=options.limit,
        seed=options.seed,
        classes=classes,
        origin=spec,
        takes=model.takes,
        notes=() if note is None else (note,),
    )


def _open_users_dataset(made: Any, spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    if not len(made):
        raise DataError(f"{spec}: the dataset is empty", path=spec)
    sample = _users_sample(made, spec)
    first = sample[0] if isinstance(sample, (list, tuple)) and sample else sample
    notes: tuple[str, ...] = ()
    steps, dataset = "", made
    if hasattr(first, "convert") and hasattr(first, "getbands"):
        transform, notes = _transform_of(_looks_of_set(made), model, spec)
        dataset, steps = TransformedSet(made, transform, spec), f"; {transform.text}"
    elif model.asked:
        raise DataError(
            f"--transform has no effect on {spec}, whose samples are tensors already", path=spec, slug="no_effect"
        )
    classes = _classes(model, _first_batch(dataset, spec, model, SEVERAL), spec)
    return _sampled(dataset, options, model, spec, f"{spec}: {{}} samples{steps}", spec + steps, notes, classes=classes)


def _users_sample(made: Any, spec: str) -> Any:
    try:
        return made[0]
    except Exception as error:  # the user's own code
        raise DataError(f"{spec}: the dataset failed: {one_line(error)}", path=spec, slug="loader") from error


def _classes(model: ModelView, batch: Batch, origin: str) -> int | None:
    """The model's number of classes; a fault that the data show is told of the data."""
    try:
        return model.classes_of(batch)
    except DataError as error:
        raise about(error, origin) from error


def _sampled(
    dataset: Any,
    options: DataOptions,
    model: ModelView,
    origin: str,
    said: str,
    identity: str,
    notes: tuple[str, ...],
    classes: int | None = None,
    text: TextFacts | None = None,
) -> MapSource:
    indices = choose(len(dataset), limit=options.limit, seed=options.seed, shuffle=options.shuffle)
    count = f"{len(indices)} of {len(dataset)}" if len(indices) < len(dataset) else str(len(dataset))
    return MapSource(
        dataset,
        indices,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_corrupt=options.skip_corrupt,
        classes=classes,
        origin=origin,
        description=said.format(count),
        identity=identity,
        takes=model.takes,
        notes=notes,
        text=text,
    )


HASHED_BYTES = 256 << 20
"""Files up to this size are identified by their contents, larger ones by size and time of change."""


def file_identity(path: Path) -> str:
    """A text that changes when the file does."""
    if path.stat().st_size > HASHED_BYTES:
        return _size_and_time(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _size_and_time(path: str | Path) -> str:
    status = os.stat(path)
    return f"{status.st_size}|{status.st_mtime_ns}"


SEVERAL = 16
"""Samples that are looked at where they are quick to read: one alone may hide what its labels are."""


def _first_batch(dataset: Any, origin: str, model: ModelView, count: int = 1) -> Batch:
    """A readable sample as a batch, the first among the first hundred, with up to `count - 1` of those after it."""
    bad: Unreadable | None = None
    for index in range(min(len(dataset), 100)):
        sample = dataset[index]
        if not isinstance(sample, Unreadable):
            more = [dataset[later] for later in range(index + 1, min(index + count, len(dataset)))]
            good = [sample, *(one for one in more if not isinstance(one, Unreadable))]
            return batch_from(collate(good, origin), 0, origin, model.takes)
        bad = bad or sample
    if bad is None:
        raise DataError(f"{origin}: no samples", path=origin)
    raise DataError(f"{bad.path}: this image cannot be read: {bad.reason}", path=bad.path, slug="corrupt_image")
