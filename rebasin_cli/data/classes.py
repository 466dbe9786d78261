"""From class folders to the model's class numbers. Any ambiguity is an error: a wrong guess gives zero accuracy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from torch import nn

from rebasin_cli.errors import DataError, few

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The model's class number for each folder, in the folders' sorted order, and how it was found.

    `note` states another way in which these folders are often read, where there is one.
    """

    numbers: tuple[int, ...]
    rule: str
    note: str | None = None


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


def read_class_map(path: Path) -> dict[str, int]:
    """The class number of every name in a file: a name in each line, in class order, as timm has them; or JSON.

    Raises:
        DataError: it cannot be read, is empty, or a name is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            pairs = list(found.items()) if isinstance(found, dict) else [(name, i) for i, name in enumerate(found)]
            pairs = [(str(name), int(number)) for name, number in pairs]
        else:
            pairs = [(line.strip(), i) for i, line in enumerate(text.rstrip().splitlines())]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as a class map: {error}",
            path=path,
            hint="write a class name in each line, in the order of the model's outputs",
        ) from error
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not pairs or twice:
        raise DataError(f"{path}: {f'{few(twice)} is there more than once' if twice else 'no class name'}", path=path)
    return dict(pairs)


def map_classes(
    folders: Sequence[str],
    classes: int | None,
    names: Sequence[str] | None,
    where: str,
    *,
    order: str | None = None,
    table: Mapping[str, int] | None = None,
) -> ClassMap:
    """Find the model's class number of every folder.

    By the user's `table` or `order` where given. Else in turn: WordNet ids, when all folders look like them and the
    model has ImageNet's 1,000 classes; names, when the model's are known and a folder is among them; whole numbers; the
    sorted order, when there are as many folders as classes.

    Args:
        folders: names of the class folders, sorted.
        classes: how many classes the model has; None when it is not a classifier, then the sorted order is used.
        names: the model's class names in class order, where known.
        where: the data's root, for messages.
        order: `numeric` or `text`, the user's choice.
        table: class numbers by folder, the user's file.

    Raises:
        DataError: no rule fits, or a name is unknown or ambiguous.
    """
    if table is not None:
        return _by_users_table(folders, table, classes, where)
    if order == "text":
        _same_count(folders, classes, where)
        return ClassMap(tuple(range(len(folders))), "text order")
    if order == "numeric":
        return _in_numeric_order(folders, classes, where)
    if classes == IMAGENET_CLASSES and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return _by_table(folders, {wnid: (i,) for i, wnid in enumerate(imagenet_wnids())}, "wnid", where)
    if names and len(names) == classes:
        known_names = _name_table(names)
        if any(_plain(folder) in known_names for folder in folders):
            return _by_table(folders, known_names, "name", where)
    if all(re.fullmatch(r"\d+", folder) for folder in folders):
        return _by_number(folders, classes, where)
    _same_count(folders, classes, where)
    return ClassMap(tuple(range(len(folders))), "sorted order")


def _same_count(folders: Sequence[str], classes: int | None, where: str) -> None:
    if classes is not None and len(folders) != classes:
        raise DataError(
            f"{where}: {len(folders)} class folders, but the model has {classes} classes",
            path=where,
            hint=f"name the folders after the model's classes, or by class number 0 … {classes - 1}, or give the "
            "class of every folder with --class-map FILE",
            slug="class_mismatch",
        )


def _by_users_table(folders: Sequence[str], table: Mapping[str, int], classes: int | None, where: str) -> ClassMap:
    missing = [folder for folder in folders if folder not in table]
    if missing:
        raise DataError(
            f"{where}: class folder {few(missing)} is not in the class map, which has {few(table)}",
            path=where,
            hint="--class-map has a folder's name in each line, in the order of the model's outputs",
            slug="class_mismatch",
        )
    numbers = tuple(table[folder] for folder in folders)
    high = max(numbers)
    if classes is not None and (high >= classes or min(numbers) < 0):
        raise DataError(
            f"{where}: the class map gives class {high}, but the model has {classes} classes (0 … {classes - 1})",
            path=where,
            slug="class_mismatch",
        )
    return ClassMap(numbers, "the class map")


def _in_numeric_order(folders: Sequence[str], classes: int | None, where: str) -> ClassMap:
    """By the numbers themselves where the model has these classes, else by their rank."""
    named = [folder for folder in folders if not re.fullmatch(r"\d+", folder)]
    if named:
        raise DataError(
            f"{where}: --class-order numeric, but class folder {few(named)} is not a number",
            path=where,
            hint="use --class-order text or --class-map FILE",
            slug="class_mismatch",
        )
    numbers = tuple(int(folder) for folder in folders)
    if classes is None or max(numbers) < classes:
        return ClassMap(numbers, "number")
    _same_count(folders, classes, where)
    ranks = {number: rank for rank, number in enumerate(sorted(numbers))}
    return ClassMap(tuple(ranks[number] for number in numbers), "numeric order")


def _by_table(folders: Sequence[str], table: Mapping[str, tuple[int, ...]], kind: str, where: str) -> ClassMap:
    keys = {folder: folder if kind == "wnid" else _plain(folder) for folder in folders}
    unknown = [folder for folder in folders if keys[folder] not in table]
    if unknown:
        count = "" if len(unknown) == 1 else f" ({len(unknown)} of {len(folders)} folders are unknown)"
        raise DataError(
            f"{where}: class folder {few(unknown, shown=8)} is not a class of the model{count}",
            path=where,
            hint="name class folders by WordNet id, by the model's class name or by class number, or give "
            "--class-map FILE; --class-order text takes them in sorted order",
            slug="class_mismatch",
        )
    for folder in folders:
        if len(table[keys[folder]]) > 1:
            raise DataError(
                f"{where}: class folder {folder!r} names {len(table[keys[folder]])} of the model's classes",
                path=where,
                hint="name class folders by class number, or give --class-map FILE",
                slug="class_mismatch",
            )
    numbers = [table[keys[folder]][0] for folder in folders]
    if len(set(numbers)) != len(numbers):
        raise DataError(f"{where}: two class folders are the same class", path=where, slug="class_mismatch")
    return ClassMap(tuple(numbers), kind)


def _by_number(folders: Sequence[str], classes: int | None, where: str) -> ClassMap:
    numbers = tuple(int(folder) for folder in folders)
    if classes is not None and max(numbers) >= classes:
        several = len(folders) == classes
        raise DataError(
            f"{where}: class folder {max(numbers)!r}, but the model has {classes} classes (0 … {classes - 1})",
            path=where,
            hint="say in which order the folders are the model's classes: --class-order numeric, or --class-order text "
            "as torchvision's ImageFolder has them"
            if several
            else "name the folders by class number, or give --class-map FILE",
            slug="class_mismatch",
        )
    if len(set(numbers)) != len(numbers):
        raise DataError(f"{where}: two class folders are the same class", path=where, slug="class_mismatch")
    note = None
    if len(folders) == classes and list(numbers) != list(range(len(numbers))):
        shown = ", ".join(folders[:4])
        note = (
            f"class folders are read as class numbers; a model trained with torchvision's ImageFolder has them in the "
            f"order of their text ({shown}, …): --class-order text"
        )
    return ClassMap(numbers, "number", note)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _name_table(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(names):
        for alias in {_plain(name), *(_plain(part) for part in name.split(","))}:
            if number not in table.get(alias, ()):
                table[alias] = (*table.get(alias, ()), number)
    return table
