"""Class folders find their class, or the user hears why not."""

from __future__ import annotations

import pytest
from torch import nn

from rebasin_cli.data.classes import imagenet_wnids, map_classes, model_class_names
from rebasin_cli.errors import DataError


def test_some_wnids_of_imagenet_are_enough() -> None:
    found = map_classes(["n01440764", "n01530575", "n15075141"], 1000, None, "val")
    assert found.numbers == (0, 10, 999)
    assert found.rule == "wnid"


def test_the_wnids_are_a_thousand_in_sorted_order() -> None:
    assert len(imagenet_wnids()) == len(set(imagenet_wnids())) == 1000
    assert list(imagenet_wnids()) == sorted(imagenet_wnids())


def test_a_wnid_that_is_not_imagenets_is_named() -> None:
    with pytest.raises(DataError, match="n99999999"):
        map_classes(["n01440764", "n99999999"], 1000, None, "val")


def test_names_win_over_the_sorted_order() -> None:
    assert map_classes(["cat", "dog"], 2, ["dog", "cat"], "d").numbers == (1, 0)
    assert map_classes(["great_white"], 3, ["tench", "great white, white shark", "hen"], "d").numbers == (1,)


def test_a_name_that_two_classes_bear_is_an_error() -> None:
    with pytest.raises(DataError, match="names 2 of"):
        map_classes(["crane"], 3, ["crane", "hen", "crane"], "d")


def test_numbers_are_read_as_numbers() -> None:
    assert map_classes(["0", "10", "2"], 11, None, "d").numbers == (0, 10, 2)
    with pytest.raises(DataError, match=r"10.*10 classes"):
        map_classes(["0", "10"], 10, None, "d")


def test_sorted_order_needs_as_many_folders_as_classes() -> None:
    assert map_classes(["airplane", "bird"], 2, None, "d").numbers == (0, 1)
    with pytest.raises(DataError, match=r"2 class folders.*10 classes"):
        map_classes(["airplane", "bird"], 10, None, "d")


def test_a_model_may_carry_its_class_names() -> None:
    module = nn.Linear(2, 2)
    assert model_class_names(module) is None
    module.classes = ["b", "a"]  # type: ignore[assignment]
    assert model_class_names(module) == ("b", "a")
