"""From class folders to the model's class numbers. Any ambiguity is an error: a wrong guess gives zero accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from torch import nn

from rebasin_cli.errors import DataError

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The model's class number for each folder, in the folders' sorted order, and how it was found."""

    numbers: tuple[int, ...]
    rule: str


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ILSVRC 2012's 1,000 classes in class order, which is their sorted order."""
    text = resources.files("rebasin_cli.data").joinpath("imagenet_wnids.txt").read_text(encoding="ascii")
    return tuple(text.split())


def model_class_names(module: nn.Module) -> tuple[str, ...] | None:
    """Class names that are attributes of the model (`classes`, `class_names`, or `config.id2label`), or None."""
    for attribute in ("classes", "class_names"):
        names = getattr(module, attribute, None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    labels = getattr(getattr(module, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and labels and not all(str(name).startswith("LABEL_") for name in labels.values()):
        return tuple(str(labels[number]) for number in sorted(labels))
    return None


def map_classes(folders: Sequence[str], classes: int | None, names: Sequence[str] | None, where: str) -> ClassMap:
    """Find the model's class number of every folder.

    In turn: WordNet ids, when all folders look like them and the model has ImageNet's 1,000 classes; names, when the
    model's are known and all folders are among them; whole numbers; the sorted order, when there are as many folders
    as classes.

    Args:
        folders: names of the class folders, sorted.
        classes: how many classes the model has; None when it is not a classifier, then the sorted order is used.
        names: the model's class names in class order, where known.
        where: the data's root, for messages.

    Raises:
        DataError: no rule fits, or a name is ambiguous.
    """
    if classes == IMAGENET_CLASSES and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return _by_table(folders, {wnid: (i,) for i, wnid in enumerate(imagenet_wnids())}, "wnid", where)
    if names and len(names) == classes:
        table = _name_table(names)
        known = [folder for folder in folders if _plain(folder) in table]
        if len(known) == len(folders) or (known and len(folders) != classes):
            return _by_table(folders, table, "name", where)
    if all(re.fullmatch(r"\d+", folder) for folder in folders):
        return _by_number(folders, classes, where)
    if classes is not None and len(folders) != classes:
        raise DataError(
            f"{where}: {len(folders)} class folders, but the model has {classes} classes",
            path=where,
            hint=f"name the folders after the model's classes, or by class number 0 … {classes - 1}",
            slug="class_mismatch",
        )
    return ClassMap(tuple(range(len(folders))), "sorted order")


def _by_table(folders: Sequence[str], table: Mapping[str, tuple[int, ...]], kind: str, where: str) -> ClassMap:
    numbers = []
    for folder in folders:
        found = table.get(folder if kind == "wnid" else _plain(folder), ())
        if len(found) != 1:
            said = "is not a class of the model" if not found else f"names {len(found)} of the model's classes"
            missing = sum(1 for f in folders if not table.get(f if kind == "wnid" else _plain(f)))
            more = f" ({missing} of {len(folders)} folders are unknown)" if missing > 1 else ""
            raise DataError(
                f"{where}: class folder {folder!r} {said}{more}",
                path=where,
                hint="name class folders by WordNet id, by the model's class name or by class number",
                slug="class_mismatch",
            )
        numbers.append(found[0])
    if len(set(numbers)) != len(numbers):
        raise DataError(f"{where}: two class folders are the same class", path=where, slug="class_mismatch")
    return ClassMap(tuple(numbers), kind)


def _by_number(folders: Sequence[str], classes: int | None, where: str) -> ClassMap:
    numbers = tuple(int(folder) for folder in folders)
    if classes is not None and max(numbers) >= classes:
        raise DataError(
            f"{where}: class folder {max(numbers)!r}, but the model has {classes} classes (0 … {classes - 1})",
            path=where,
            slug="class_mismatch",
        )
    return ClassMap(numbers, "number")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _name_table(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(names):
        for alias in {_plain(name), *(_plain(part) for part in name.split(","))}:
            if number not in table.get(alias, ()):
                table[alias] = (*table.get(alias, ()), number)
    return table
