"""Class folders are the classes that the user means, or the user hears which do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rebasin_cli.data import BatchSource, DataOptions, open_data
from rebasin_cli.data.classes import map_classes, read_class_map
from rebasin_cli.data.source import ModelView
from rebasin_cli.errors import DataError

NUMBERED = sorted(str(number) for number in range(12))


def images(root: Path, *folders: str) -> str:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / folder / "a.png")
    return str(root)


def opened(data: str, classes: int | None = 12, names: tuple[str, ...] | None = None, **options: object) -> BatchSource:
    return open_data(data, DataOptions(**options), ModelView(lambda batch: classes, names))  # type: ignore[arg-type]


def labels(source: BatchSource) -> list[int]:
    return [int(label) for batch in source.batches() for label in batch.target]


def test_folders_numbered_without_zeros_are_read_as_numbers_and_the_other_order_is_said(tmp_path: Path) -> None:
    source = opened(images(tmp_path / "d", *NUMBERED))
    assert labels(source) == [int(name) for name in NUMBERED]
    (note,) = (note for note in source.notes if "--class-order text" in note)
    assert "(0, 1, 10, 11, …)" in note


def test_class_order_text_is_that_of_imagefolder(tmp_path: Path) -> None:
    source = opened(images(tmp_path / "d", *NUMBERED), class_order="text")
    assert labels(source) == list(range(12))
    assert "by text order" in source.description
    assert not [note for note in source.notes if "class" in note]


def test_folders_numbered_from_1_need_an_order(tmp_path: Path) -> None:
    data = images(tmp_path / "d", *(str(number + 1) for number in range(12)))
    with pytest.raises(DataError, match="class folder 12, but the model has 12 classes") as caught:
        opened(data)
    assert "--class-order numeric" in str(caught.value.hint)
    in_folder_order = sorted(range(1, 13), key=str)
    assert labels(opened(data, class_order="numeric")) == [number - 1 for number in in_folder_order]
    assert labels(opened(data, class_order="text")) == list(range(12))


def test_padded_numbers_have_one_order(tmp_path: Path) -> None:
    source = opened(images(tmp_path / "d", *(f"{number:02d}" for number in range(12))))
    assert labels(source) == list(range(12))
    assert not [note for note in source.notes if "class" in note]


def test_numeric_order_of_names_is_refused() -> None:
    with pytest.raises(DataError, match="'cat' is not a number"):
        map_classes(["1", "cat"], 2, None, "d", order="numeric")


def test_a_class_map_gives_the_class_of_every_folder(tmp_path: Path) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_text("zebra\ncat\nant\n")
    data = images(tmp_path / "d", "ant", "cat", "zebra")
    source = opened(data, 3, class_map=listed)
    assert labels(source) == [2, 1, 0]
    assert "by the class map" in source.description
    (tmp_path / "classes.json").write_text('{"ant": 1, "cat": 0, "zebra": 2}')
    assert labels(opened(data, 3, class_map=tmp_path / "classes.json")) == [1, 0, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [("ant\ncat\n", "'zebra' is not in the class map"), ("ant\nant\ncat\n", "'ant' is there more than once")],
)
def test_a_class_map_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        opened(images(tmp_path / "d", "ant", "cat", "zebra"), 3, class_map=tmp_path / "classes.txt")


def test_a_class_map_with_more_classes_than_the_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nzebra\n")
    table = read_class_map(tmp_path / "classes.txt")
    with pytest.raises(DataError, match="gives class 2, but the model has 2 classes"):
        map_classes(["zebra"], 2, None, "d", table=table)


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("Train", "Validation"), ("test",)])
def test_a_root_with_the_parts_of_a_data_set_is_not_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        images(tmp_path / part, "cat", "dog")
    with pytest.raises(DataError, match="of a data set, not classes") as caught:
        opened(str(tmp_path), 2)
    assert f"--data {tmp_path / sorted(parts)[-1]}" in str(caught.value.hint)
    assert labels(opened(str(tmp_path / parts[0]), 2)) == [0, 1]


def test_folders_of_which_some_are_the_models_classes_are_not_taken_in_sorted_order(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
    data = images(tmp_path / "d", *names[:8], "lynx", "mole")
    with pytest.raises(DataError, match=r"'lynx', 'mole' is not a class of the model \(2 of 10") as caught:
        opened(data, 10, names)
    assert "--class-map" in str(caught.value.hint)
    assert labels(opened(data, 10, names, class_order="text")) == list(range(10))


def test_options_of_class_folders_are_refused_where_there_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3), np.float32), y=np.zeros(2, np.int64))
    with pytest.raises(DataError, match="--class-order has no effect"):
        opened(str(tmp_path / "d.npz"), class_order="text")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="--class-order has no effect"):
        opened(str(tmp_path), class_order="text")
