"""The class count as arithmetic on shapes, without building anything."""

from __future__ import annotations

import pytest

from rebasin_cli.model.adaptation import ClassCount, Shape, aligned_names, differences, find_class_count


def head(classes: int, per_class: int = 1, extra: int = 0) -> dict[str, Shape]:
    return {
        "body": (8, 3),
        "head.weight": (classes * per_class + extra, 8),
        "head.bias": (classes * per_class + extra,),
    }


@pytest.mark.parametrize(("per_class", "extra"), [(1, 0), (9, 0), (4, 0), (1, 1)])
@pytest.mark.parametrize("usual", [None, 91])
@pytest.mark.parametrize("classes", [1, 2, 13, 1000])
def test_counts_multiples_and_background(per_class: int, extra: int, usual: int | None, classes: int) -> None:
    found = find_class_count(
        head(91, per_class, extra),
        head(classes, per_class, extra),
        ["num_classes"],
        {"num_classes": usual},
        lambda _, value: head(value, per_class, extra),
    )
    assert found == ClassCount("num_classes", classes, ("head.weight", "head.bias"))


def test_nothing_is_believed_that_leaves_a_difference() -> None:
    file = {**head(5), "body": (8, 4)}
    assert find_class_count(head(10), file, ["num_classes"], {}, lambda _, value: head(value)) is None
    assert find_class_count(head(10), head(10), ["num_classes"], {}, lambda _, value: head(value)) is None
    assert find_class_count(head(10), head(5), ["num_classes"], {}, lambda _, value: None) is None


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.model.", "state.module."])
def test_names_are_seen_through_prefixes(prefix: str) -> None:
    file = {prefix + key: shape for key, shape in head(5).items()}
    assert aligned_names(head(10), file) == head(5)
    assert list(differences(head(10), aligned_names(head(10), file))) == ["head.weight", "head.bias"]


def test_a_wrapper_in_the_middle_of_a_key_is_seen_through() -> None:
    assert aligned_names({"a.b": (1,)}, {"a._orig_mod.b": (2,)}) == {"a.b": (2,)}
