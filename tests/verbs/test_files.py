"""Where outputs go, what saved permutations hold, which model a checkpoint looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rebasin_cli.errors import CheckpointError, OutputError, UsageError
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import state_shapes
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from rebasin_cli.verbs.fingerprint import TABLE, fingerprint, looks_like
from rebasin_cli.verbs.output_paths import OutputFiles, check_outputs, default_output, report_path
from rebasin_cli.verbs.saved_permutations import SavedPermutations


@pytest.mark.parametrize(
    ("b", "out", "report"),
    [
        ("b.safetensors", "b-aligned.safetensors", "b-aligned.json"),
        ("x/b.v2.pt", "x/b.v2-aligned.pt", "x/b.v2-aligned.json"),
        ("m.safetensors.index.json", "m-aligned.safetensors.index.json", "m-aligned.json"),
        ("b", "b-aligned", "b-aligned.json"),
        ("model_best.pth.tar", "model_best-aligned.pth.tar", "model_best-aligned.json"),
        ("model.tar", "model-aligned.tar", "model-aligned.json"),
        ("resnet.v1.5.pt", "resnet.v1.5-aligned.pt", "resnet.v1.5-aligned.json"),
        ("resnet.v1.5", "resnet.v1.5-aligned", "resnet.v1.5-aligned.json"),
        ("epoch=3-loss=0.25.ckpt", "epoch=3-loss=0.25-aligned.ckpt", "epoch=3-loss=0.25-aligned.json"),
        ("B.PT", "B-aligned.PT", "B-aligned.json"),
        ("B.SAFETENSORS", "B-aligned.SAFETENSORS", "B-aligned.json"),
        ("p.bin.index.json", "p-aligned.bin.index.json", "p-aligned.json"),
    ],
)
def test_default_names(b: str, out: str, report: str) -> None:
    assert default_output(Path(b)) == Path(out)
    assert report_path(Path(out)) == Path(report)


def test_a_directory_gets_a_name_beside_it(tmp_path: Path) -> None:
    (tmp_path / "shards.v1").mkdir()
    assert default_output(tmp_path / "shards.v1") == tmp_path / "shards.v1-aligned"
    assert report_path(tmp_path / "shards.v1-aligned") == tmp_path / "shards.v1-aligned.json"


def test_outputs_must_differ(tmp_path: Path) -> None:
    files = OutputFiles.plan(Path("b.pt"), tmp_path / "c.pt", permutations=tmp_path / "c.json", spec=None)
    with pytest.raises(UsageError, match="same file"):
        check_outputs(files.named(), [], force=True, mkdir=False)


def test_a_device_is_never_an_output() -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        check_outputs({"output": Path("/dev/null")}, [], force=True, mkdir=False)


def saved() -> SavedPermutations:
    spec = PermutationSpec((AxisGroup("g", 3, (Site("w", 0),)),))
    return SavedPermutations({"g": torch.tensor([2, 0, 1])}, spec, {"w": (3, 2)}, {"v": "w"}, {"rebasin.seed": "0"})


def test_saved_permutations_come_back(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(saved().dumps())
    read = SavedPermutations.load(path)
    assert torch.equal(read.permutations["g"], torch.tensor([2, 0, 1]))
    assert (read.spec, dict(read.shapes), dict(read.ties)) == (saved().spec, {"w": (3, 2)}, {"v": "w"})


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other/1"},
        {"permutations": {"g": [0, 0, 1]}},
        {"permutations": {"h": [0, 1, 2]}},
        {"permutations": {"g": [0.5, 1, 2]}},
        {"permutations": {"g": [0, 1, 10**30]}},
        {"shapes": {"w": [4]}, "permutations": {"g": [0, 1, 2, 3]}},
        {"shapes": {}},
        {"spec": []},
        {"ties": 3},
    ],
)
def test_damaged_permutations_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**json.loads(saved().dumps()), **change}))
    with pytest.raises(CheckpointError, match=r"p\.json"):
        SavedPermutations.load(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b"[" * 100_000])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"p\.json"):
        SavedPermutations.load(path)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:vit_b_16"])
def test_a_checkpoint_is_recognised_whatever_its_classes(name: str, prefix: str) -> None:
    shapes = state_shapes(load_factory(name, {"num_classes": 7}).build_weightless())
    assert looks_like({prefix + key: shape for key, shape in shapes.items()}) == (name,)
    assert looks_like({"w": (3, 4)}) == ()


def test_the_table_of_fingerprints_is_true() -> None:
    """A sample of it; all of it takes long. To renew: write `fingerprint` of every name of `rebasin models`."""
    table = json.loads(TABLE.read_text())
    for name in ("torchvision:alexnet", "torchvision:shufflenet_v2_x0_5", "torchvision:regnet_y_400mf"):
        assert table[name] == fingerprint(state_shapes(load_factory(name).build_weightless()))
