"""Keys: wrappers' prefixes are seen through, ties accepted, and whatever does not fit is named with its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebasin_cli.checkpoint import Checkpoint, match_keys, open_checkpoint
from rebasin_cli.errors import ModelError
from tests.checkpoint.build import one_line

SHAPES = {"conv.weight": (2, 3), "bn.bias": (2,), "blocks.0.fc.weight": (4, 2)}


def stored(tmp_path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Checkpoint:
    path = tmp_path / "b.safetensors"
    safetensors.torch.save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path, metadata)
    return open_checkpoint(path)


@pytest.mark.parametrize(
    "rename",
    [
        "{}",
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "model.{}",
        "model._orig_mod.module.{}",
        "anything.at.all.{}",
    ],
)
def test_prefixes_are_seen_through(tmp_path: Path, rename: str) -> None:
    opened = stored(tmp_path, {rename.format(key): shape for key, shape in SHAPES.items()})
    found = match_keys(opened, SHAPES, ties={})
    assert found.to_file == {key: rename.format(key) for key in SHAPES}
    assert found.to_model == {rename.format(key): key for key in SHAPES}


def test_also_in_the_middle_and_on_the_models_side(tmp_path: Path) -> None:
    opened = stored(tmp_path, {"conv.weight": (2, 3), "bn.bias": (2,), "blocks.0._orig_mod.fc.weight": (4, 2)})
    assert match_keys(opened, SHAPES, ties={}).to_file["blocks.0.fc.weight"] == "blocks.0._orig_mod.fc.weight"
    wrapped = {f"model.module.{key}": shape for key, shape in SHAPES.items()}
    assert set(match_keys(opened, wrapped, ties={}).to_file.values()) == set(opened.infos)


def test_a_models_own_module_component_is_not_lost(tmp_path: Path) -> None:
    shapes = {"a.module.w": (1,), "a.w": (2,)}
    found = match_keys(stored(tmp_path, shapes), shapes, ties={})
    assert found.to_file == {"a.module.w": "a.module.w", "a.w": "a.w"}


def test_a_missing_key(tmp_path: Path) -> None:
    opened = stored(tmp_path, {"conv.weight": (2, 3), "bn.bias": (2,), "aux.blocks.0.fc.weight": (4, 2)})
    with pytest.raises(ModelError) as info:
        match_keys(opened, SHAPES, ties={})
    text = one_line(info)
    assert info.value.exit_code == 4
    assert "missing key 'blocks.0.fc.weight'" in text
    assert "unexpected key 'aux.blocks.0.fc.weight'" in text
    assert str(opened.path) in text


def test_many_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as info:
        match_keys(stored(tmp_path, {"x": (1,)}), {f"layer{i}.w": (1,) for i in range(50)}, ties={})
    assert "missing 50 keys: 'layer0.w', 'layer1.w', 'layer2.w' and 47 more" in one_line(info)


def test_a_key_that_the_model_does_not_have_is_kept_apart(tmp_path: Path) -> None:
    opened = stored(tmp_path, {**SHAPES, "head.weight": (1,)})
    assert match_keys(opened, SHAPES, ties={}).extra == ("head.weight",)


def test_a_second_copy_of_the_weights_is_told_from_layers_of_another_model(tmp_path: Path) -> None:
    twice = {f"{prefix}.{key}": shape for prefix in ("student", "teacher") for key, shape in SHAPES.items()}
    keys = match_keys(stored(tmp_path, {**twice, "teacher.center": (3,)}), SHAPES, ties={})
    assert keys.copies == {f"teacher.{key}": f"student.{key}" for key in SHAPES}
    assert keys.extra == ("teacher.center",)


def test_another_shape(tmp_path: Path) -> None:
    opened = stored(tmp_path, {**SHAPES, "conv.weight": (2, 5)})
    with pytest.raises(ModelError) as info:
        match_keys(opened, SHAPES, ties={})
    for word in ("'conv.weight'", "[2, 5]", "[2, 3]", str(opened.path)):
        assert word in one_line(info)


def test_tied_tensors_that_are_stored_once(tmp_path: Path) -> None:
    shapes = {"head.weight": (4, 2), "embed.weight": (4, 2)}
    for kept in shapes:
        opened = stored(tmp_path, {f"module.{kept}": (4, 2)})
        found = match_keys(opened, shapes, ties={"head.weight": "embed.weight"})
        assert set(found.to_file.values()) == {f"module.{kept}"}
        assert found.to_model == {f"module.{kept}": kept}
    opened = stored(tmp_path, {"embed.weight": (4, 2)}, {"head.weight": "embed.weight"})
    assert match_keys(opened, shapes, ties={}).to_file["head.weight"] == "embed.weight"


def test_counters_and_optional_keys_may_be_absent(tmp_path: Path) -> None:
    shapes = {**SHAPES, "bn.num_batches_tracked": (), "position_ids": (1, 5)}
    found = match_keys(stored(tmp_path, SHAPES), shapes, ties={}, optional={"position_ids"})
    assert found.absent == ("bn.num_batches_tracked", "position_ids")
    assert "position_ids" not in found.to_file
