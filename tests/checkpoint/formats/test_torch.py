"""Files of torch.save: nothing in them is ever run, no lie about sizes is believed, a copy differs in tensors only."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rebasin_cli.checkpoint import open_checkpoint, write_like
from rebasin_cli.checkpoint.formats._torch_pickle import unpickle
from rebasin_cli.errors import CheckpointError, ModelError, UsageError
from tests.checkpoint.build import digest, one_line

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def refused(path: Path, **options: Any) -> str:
    before = digest(path)
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(path, **options).verify()
    assert digest(path) == before
    assert str(path) in info.value.message
    return one_line(info)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@BOTH
def test_code_is_named_and_never_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    path = save({"w": torch.ones(2), "x": Evil(marker)}, tmp_path / "b.pt", zipped)
    text = refused(path)
    assert "posix.system" in text
    assert "unsafe" in text
    assert not marker.exists()


def test_code_in_a_bare_pickle_of_any_protocol(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "b.pt"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"x": Evil(marker)}, protocol=protocol))
        assert "posix.system" in refused(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps({"w": 1}, protocol=2))
    assert "bare pickle" in refused(path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # memo index 2^31
        b"\x80\x02\x82\x01.",  # copyreg extension
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 2^63
        b"\x80\x02cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR",  # no end
        b"\x80\x02" + b"(" * 9,
    ],
)
def test_programs_that_lie_about_sizes(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "b.pt"
    path.write_bytes(program)
    assert "cannot be read" in refused(path)


def test_a_pickle_cannot_alter_what_later_ones_mean() -> None:
    for name in ("torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "builtins\nset"):
        with pytest.raises(ValueError, match="state"):
            unpickle(b"\x80\x02c" + name.encode() + b"\n(N}X\x01\x00\x00\x00aK\x01stb.")
    with pytest.raises(ValueError, match="state"):
        unpickle(b"\x80\x02cnumpy\ndtype\n}X\x08\x00\x00\x00__call__K\x01sb.")
    made = unpickle(b"\x80\x02cnumpy\ndtype\n)R.")
    assert (type(made.root).__name__, made.root.full, made.root.args, made.refused) == ("Made", "numpy.dtype", (), ())
    assert unpickle(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.").root.args == ((1 << 31) - 1,)


@BOTH
def test_a_whole_module(tmp_path: Path, zipped: bool) -> None:
    text = refused(save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "b.pt", zipped))
    assert "nn.Module" in text
    assert "torch.save(model.state_dict(), path)" in text


def test_programs_are_told_from_weights(tmp_path: Path) -> None:
    script, exported = tmp_path / "s.pt", tmp_path / "e.pt2"
    torch.jit.script(torch.nn.Linear(2, 2)).save(script)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, exported)
    assert "TorchScript" in (text := refused(script))
    assert "state_dict" in text
    assert "torch.export" in (text := refused(exported))
    assert "state_dict" in text


def test_one_flipped_bit_is_found_and_the_record_named(tmp_path: Path) -> None:
    path = save({"w": torch.ones(1000), "v": torch.full((1000,), 3.0)}, tmp_path / "b.pt")
    data = bytearray(path.read_bytes())
    data[data.find(struct.pack("<f", 3.0) * 9) + 100] ^= 1
    path.write_bytes(data)
    opened = open_checkpoint(path)
    opened.tensor("w")
    for act in (lambda: opened.tensor("v"), opened.verify, lambda: copy(opened, tmp_path / "o.pt")):
        with pytest.raises(CheckpointError) as info:
            act()
        assert "CRC" in (text := one_line(info))
        assert "data/1" in text
    assert os.listdir(tmp_path) == ["b.pt"]


@BOTH
def test_truncated(tmp_path: Path, zipped: bool) -> None:
    path = save({"w": torch.ones(1000)}, tmp_path / "b.pt", zipped)
    whole = path.read_bytes()
    for kept in (len(whole) - 10, len(whole) // 2, 90):
        path.write_bytes(whole[:kept])
        text = refused(path)
        assert "truncated or corrupt" in text
        assert "miniz" not in text


def test_a_deflated_bomb(tmp_path: Path) -> None:
    source, path = save({"w": torch.zeros(1 << 16)}, tmp_path / "a.pt"), tmp_path / "b.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert "compressed" in refused(path)


def test_tensors_that_claim_more_than_there_is(tmp_path: Path) -> None:
    path = save({"w": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "b.pt")
    assert "claims 4,000,000,000,000 bytes" in (text := refused(path))
    assert "'w'" in text
    small = open_checkpoint(save({"w": torch.ones(1).expand(3, 4)}, tmp_path / "c.pt"))
    assert small.tensor("w").equal(torch.ones(3, 4))
    copy(small, tmp_path / "o.pt")
    with pytest.raises(ModelError):
        write_like(small, tmp_path / "p.pt", lambda _, t: torch.arange(12.0).view(3, 4), provenance={}, force=False)


def test_what_is_not_dense_is_refused_only_where_it_is_a_weight(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    assert "sparse" in refused(save({"w": sparse}, tmp_path / "b.pt"))
    opened = open_checkpoint(save({"state_dict": {"w": torch.ones(1)}, "x": {"y": sparse}}, tmp_path / "c.pt"))
    assert list(opened.infos) == ["w"]
    scalar = save(
        {"state_dict": {"w": torch.ones(1)}, "best": np.float64(3), "at": torch.device("cpu")}, tmp_path / "d.pt"
    )
    assert list(open_checkpoint(scalar).infos) == ["w"]


def copy(opened: Any, out: Path) -> str:
    return write_like(opened, out, lambda _, tensor: tensor, provenance={}, force=True)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(4, 6)
    return {
        "conv": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.randn(4, 2, dtype=torch.float16),
        "brain": torch.randn(4, dtype=torch.bfloat16),
        "left": whole[:, :3],
        "right": whole[:, 3:],
        "tied": (tied := torch.randn(4, 4)),
        "again": tied,
        "t": tied.t(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True, True]),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "none": torch.empty(0, 3),
    }


@BOTH
def test_read_as_torch_reads(tmp_path: Path, zipped: bool) -> None:
    path = save(weights(), tmp_path / "b.pth", zipped)
    opened = open_checkpoint(path)
    assert opened.kind == ("torch" if zipped else "torch-legacy")
    assert opened.wrapper is None
    assert opened.ties == (("tied", "again"),)
    expected = torch.load(path, weights_only=True)
    assert list(opened.infos) == list(expected)
    for key, tensor in expected.items():
        seen = opened.tensor(key)
        assert seen.equal(tensor)
        assert (seen.dtype, seen.stride()) == (tensor.dtype, tensor.stride())
        assert opened.infos[key].shape == tuple(tensor.shape)


@BOTH
def test_a_copy_differs_in_the_state_dict_only(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model(torch.randn(5, 3)).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    value = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "note": "x", "s": {1}}
    path, out = save(value, tmp_path / "b.pt", zipped), tmp_path / "o.pt"
    opened = open_checkpoint(path)
    assert opened.wrapper == ("state_dict",)
    before = digest(path)
    seen = write_like(opened, out, lambda _, t: t.flip(0) if t.ndim else t, provenance={"seed": "1"}, force=False)
    assert (seen, digest(path)) == (digest(out), before)
    old, new = (torch.load(file, weights_only=True) for file in (path, out))
    assert new["epoch"] == 3
    assert new["s"] == {1}
    assert new["state_dict"]._metadata == old["state_dict"]._metadata
    assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
    assert new["optimizer"]["state"][0]["exp_avg"].equal(old["optimizer"]["state"][0]["exp_avg"])
    for key, tensor in old["state_dict"].items():
        assert new["state_dict"][key].equal(tensor.flip(0) if tensor.ndim else tensor)
    if zipped:
        assert zipfile.ZipFile(out).testzip() is None
        assert torch.load(out, weights_only=True, mmap=True)["epoch"] == 3
        assert open_checkpoint(out).metadata == {"rebasin.seed": "1"}
        again = tmp_path / "again.pt"
        write_like(open_checkpoint(out), again, lambda _, t: t.flip(0) if t.ndim else t, provenance={}, force=False)
        assert digest(again) == before


def test_unchanged_is_the_same_bytes_and_ties_stay(tmp_path: Path) -> None:
    path, out = save(weights(), tmp_path / "b.pt"), tmp_path / "o.pt"
    copy(open_checkpoint(path), out)
    assert out.read_bytes() == path.read_bytes()
    model = {"a": (shared := torch.randn(4, 2)), "b": shared}
    write_like(open_checkpoint(save(model, path)), out, lambda _, t: t.flip(0), provenance={}, force=True)
    read = torch.load(out, weights_only=True)
    assert read["a"].data_ptr() == read["b"].data_ptr()
    assert read["b"].equal(shared.flip(0))


def test_a_tie_that_the_permutations_would_tear_is_refused(tmp_path: Path) -> None:
    shared = torch.randn(4, 2)
    opened = open_checkpoint(save({"a": shared, "b": shared}, tmp_path / "b.pt"))
    with pytest.raises(ModelError, match="share memory"):
        write_like(opened, tmp_path / "o.pt", lambda k, t: t.flip(0) if k == "a" else t, provenance={}, force=False)
    assert os.listdir(tmp_path) == ["b.pt"]


ONE, TWO = {"w": torch.ones(1)}, {"w": torch.full((1,), 2.0)}


@pytest.mark.parametrize(
    ("value", "options", "wrapper"),
    [
        ({"model": ONE, "epoch": 1}, {}, ("model",)),
        ({"model_state_dict": ONE, "opt": {"state": {0: {"m": torch.ones(1)}}, "param_groups": []}}, {},
         ("model_state_dict",)),
        ({"net": ONE, "loss": torch.ones(1)}, {}, ("net",)),
        ({"state_dict_ema": TWO, "state_dict": ONE}, {}, ("state_dict",)),
        ({"ema": {"module": ONE}, "model": TWO}, {"ema": True}, ("ema", "module")),
        ({"model_ema": ONE}, {}, ("model_ema",)),
        ({"mine": ONE}, {}, ("mine",)),
        ({"g": TWO, "d": ONE}, {"key": "d"}, ("d",)),
        ({"a.b": {"c": ONE}}, {"key": "a.b.c"}, ("a.b", "c")),
        ({"model": ONE, "ema": {"state": {}, "param_groups": [], "w": torch.ones(1)}}, {}, ("model",)),
        ({"state": {"w": torch.zeros(1)}, "model": {"state_dict": ONE}}, {}, ("model", "state_dict")),
        ({"w": torch.ones(1), "epoch": 3}, {}, None),
    ],
)  # fmt: skip
def test_wrappers_are_found(tmp_path: Path, value: Any, options: dict[str, Any], wrapper: Any) -> None:
    opened = open_checkpoint(save(value, tmp_path / "b.ckpt"), **options)
    assert opened.wrapper == wrapper
    assert opened.tensor("w").item() == 1


def test_where_nothing_decides_the_user_does(tmp_path: Path) -> None:
    path = save({"generator": ONE, "critic": TWO}, tmp_path / "b.pt")
    assert "'generator', 'critic'" in (text := refused(path))
    assert "--key" in text
    assert "'generator', 'critic'" in refused(path, key="c")
    assert "EMA" in refused(path, ema=True)
    assert "no state_dict" in refused(save({"epoch": 1}, path))
    assert "no state_dict" in refused(save([1, 2], path))
    with pytest.raises(UsageError):
        open_checkpoint(save(ONE, path), key="a", ema=True)


def test_a_small_pickle_with_a_thousand_million_paths_costs_nothing(tmp_path: Path) -> None:
    value: Any = {"x": 1}
    for _ in range(3):
        value = {str(i): value for i in range(1000)}
    assert "no state_dict" in refused(save(value, tmp_path / "b.pt"))


def test_names_and_contents_must_agree(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "b.pt"
    safetensors.torch.save_file(ONE, path)
    assert "safetensors" in refused(path)
    path.write_bytes(b"<html>")
    assert "HTML" in refused(path)
    path.write_bytes(b"")
    assert "empty" in refused(path)
    path.write_bytes(b"PK\x03\x04 and nothing")
    assert "truncated or corrupt" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"x")
    assert "photo.jpg" in refused(path)


def test_torch_itself_is_never_asked_to_unpickle(tmp_path: Path) -> None:
    path = save(ONE, tmp_path / "b.pt")
    program = "import sys, torch; torch.load = None; from rebasin_cli.checkpoint import open_checkpoint as o;"
    program += "print(o(sys.argv[1]).tensor('w').item())"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1.0"


@pytest.mark.parametrize("way", ["duplicated", "memo", "set", "frozenset"])
def test_a_key_that_would_be_hashed_for_ever_is_refused_at_once(tmp_path: Path, way: str) -> None:
    twice = {"duplicated": b"2\x86", "memo": b"q\x00h\x00h\x00\x86"}.get(way, b"2\x86") * 60
    program = {
        "set": b"\x80\x04\x8f()" + twice + b"\x90.",
        "frozenset": b"\x80\x04()" + twice + b"\x91.",
    }.get(way, b"\x80\x02})" + twice + b"Ns.")
    with zipfile.ZipFile(tmp_path / "deep.pt", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
    with pytest.raises(CheckpointError, match=r"deep\.pt: its pickle is refused: a tuple of more than") as caught:
        open_checkpoint(tmp_path / "deep.pt")
    assert "do not use it" in str(caught.value.hint)  # and not that its download was cut off


def test_tuples_as_keys_and_shared_parts_are_read(tmp_path: Path) -> None:
    shared = (1, ("two", 3))
    parts: list[object] = [shared]
    for _ in range(60):
        parts = [parts, parts]
    torch.save({"w": torch.zeros(3), "notes": {shared: 1, (shared, shared): 2}, "parts": parts}, tmp_path / "x.pt")
    assert [info.key for info in open_checkpoint(tmp_path / "x.pt").infos.values()] == ["w"]


def test_the_versions_of_the_modules_are_read(tmp_path: Path) -> None:
    """Load hooks decide by them how a file's tensors become the module's."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    wanted = {name: dict(noted) for name, noted in module.state_dict()._metadata.items()}  # type: ignore[attr-defined]
    assert wanted["1"] == {"version": 2}
    torch.save(module.state_dict(), tmp_path / "zip.pt")
    torch.save({"state_dict": module.state_dict()}, tmp_path / "nested.pt")
    torch.save(module.state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(dict(module.state_dict()), tmp_path / "plain.pt")
    for name in ("zip", "nested", "legacy"):
        assert open_checkpoint(tmp_path / f"{name}.pt").versions == wanted
    assert open_checkpoint(tmp_path / "plain.pt").versions is None
