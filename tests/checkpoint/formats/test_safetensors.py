"""Safetensors: malformed bytes are refused in words; good ones are mapped, and agree with the reference package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebasin_cli.checkpoint import open_checkpoint, write_like
from rebasin_cli.checkpoint.checkpoint import torch_dtype
from rebasin_cli.checkpoint.formats.safetensors import DTYPES
from rebasin_cli.errors import CheckpointError
from tests.checkpoint.build import digest, entry, one_line, safetensors_bytes

GOOD = safetensors_bytes({"w": entry([2, 2], 0, 16)}, b"\0" * 16)
PAIR = {"a": entry([4], 0, 16), "b": entry([4], 8, 24)}
ONE_PAGE = b"<!DOCTYPE html><html><body>404</body></html>" * 9
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD[:-10], ["truncated", str(len(GOOD)), str(len(GOOD) - 10)]),
        (GOOD[:20], ["truncated"]),
        (b"\0" * 7 + b"\x80" + b"{}", ["header", "9,223,372,036,854,775,808"]),
        (safetensors_bytes(PAIR, b"\0" * 24), ["overlap", "'b'", "[8, 24]"]),
        (safetensors_bytes({"w": entry([1], 0, 4, "F99")}, b"\0" * 4), ["dtype", "F99", "'w'"]),
        (b"", ["empty"]),
        (b"\x08\0\0\0\0\0\0", ["too small", "7 bytes"]),
        (ONE_PAGE, ["not a safetensors", "HTML"]),
        (POINTER, ["not a safetensors", "git-lfs pointer", "git lfs pull"]),
        (safetensors_bytes({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12), ["hole", "'b'"]),
        (safetensors_bytes({"w": entry([3], 0, 16)}, b"\0" * 16), ["'w'", "12 bytes", "16 bytes"]),
        (safetensors_bytes({"w": entry([1], 0, 4)}, b"\0" * 9), ["5 unexplained bytes"]),
        (safetensors_bytes('{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"w":1}', b"\0" * 4), ["'w'", "once"]),
        (safetensors_bytes({"w": entry([1 << 40, 1 << 40], 0, 4)}, b"\0" * 4), ["overflow"]),
        (safetensors_bytes({"w": entry([-1], 0, 4)}, b"\0" * 4), ["shape"]),
        (safetensors_bytes({"w": entry([1], 4, 0)}, b"\0" * 4), ["offsets"]),
        (safetensors_bytes({"w": entry([True], 0, 4)}, b"\0" * 4), ["shape"]),
        (safetensors_bytes({"w": {"dtype": "F32"}}), ["lacks"]),
        (safetensors_bytes('{"w": NaN}'), ["whole numbers"]),
        (safetensors_bytes('{"w": 1' + "0" * 5000 + "}"), ["beyond"]),
        (safetensors_bytes('{"a":' * 5000 + "1" + "}" * 5000), ["JSON"]),
        (safetensors_bytes('{"w": '), ["JSON"]),
        (safetensors_bytes({"__metadata__": {"a": 1}}), ["__metadata__"]),
        (safetensors_bytes("[1]"), ["'{'"]),
        (b"\x93NUMPY" + b"\0" * 90, ["NumPy"]),
    ],
)
def test_malformed_bytes_are_refused(tmp_path: Path, data: bytes, words: list[str]) -> None:
    path = tmp_path / "b.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(path)
    text = one_line(info)
    assert str(path) in text
    assert info.value.exit_code == 3
    for word in words:
        assert word.lower() in text.lower()
    assert path.read_bytes() == data


def test_a_torch_file_under_this_name_is_named(tmp_path: Path) -> None:
    for new, word in ((True, "zip"), (False, "pickle")):
        path = tmp_path / "b.safetensors"
        torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match="not a safetensors") as info:
            open_checkpoint(path)
        assert word in one_line(info)


def test_a_million_empty_tensors_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    body = ",".join(f'"{i:x}":{{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))
    path.write_bytes(safetensors_bytes("{" + body + "}"))
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(path)
    assert "200,000 tensors" in one_line(info)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: __import__("os").mkfifo(p)])
def test_absent_directory_fifo(tmp_path: Path, make: object) -> None:
    path = tmp_path / "b.safetensors"
    make(path)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(path)
    assert str(path) in one_line(info)


def test_unaligned_tensors_and_empty_ones_are_read(tmp_path: Path) -> None:
    values = torch.arange(3, dtype=torch.float32)
    data = b"\1" + values.numpy().tobytes()
    header = {"b": entry([1], 0, 1, "BOOL"), "w": entry([3], 1, 13), "e": entry([0, 7], 13, 13)}
    path = tmp_path / "b.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    opened = open_checkpoint(path)
    assert opened.tensor("w").equal(values)
    assert opened.tensor("e").shape == (0, 7)
    assert list(opened.infos) == ["b", "w", "e"]
    assert opened.infos["w"].nbytes == 12


def test_writing_into_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    safetensors.torch.save_file({"w": torch.ones(8)}, path)
    before = digest(path)
    opened = open_checkpoint(path)
    opened.tensor("w").zero_()
    assert digest(path) == before
    assert open_checkpoint(path).tensor("w").equal(torch.ones(8))


def test_written_as_read_and_read_by_the_reference(tmp_path: Path) -> None:
    source, out = tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    tensors = {
        name: torch.randn(3, 4).to(dtype) if dtype.is_floating_point else torch.ones(3, 4, dtype=dtype)
        for name, dtype in ((name, torch_dtype(torch_name)) for name, torch_name in DTYPES.items())
        if not name.endswith(("FNUZ", "E8M0", "C64"))
    }
    safetensors.torch.save_file(tensors, source, metadata={"format": "pt", "rebasin.old": "1"})
    opened = open_checkpoint(source)
    digests = {
        write_like(opened, out, lambda _, tensor: tensor, provenance={"seed": "3"}, force=True) for _ in range(2)
    }
    assert digests == {digest(out)}
    read = safetensors.torch.load_file(out)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].view(torch.uint8).equal(tensor.view(torch.uint8))
    written = open_checkpoint(out)
    assert dict(written.metadata) == {"format": "pt", "rebasin.seed": "3"}
    assert list(written.infos.items()) == list(opened.infos.items())


def test_key_chooses_a_prefix_and_the_rest_stays(tmp_path: Path) -> None:
    source, out = tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    safetensors.torch.save_file({"model_ema.w": torch.ones(2), "model.w": torch.full((2,), 2.0)}, source)
    opened = open_checkpoint(source, ema=True)
    assert list(opened.infos) == ["model_ema.w"]
    assert opened.wrapper == ("model_ema",)
    write_like(opened, out, lambda _, tensor: tensor * 5, provenance={}, force=False)
    assert {key: value[0].item() for key, value in safetensors.torch.load_file(out).items()} == {
        "model_ema.w": 5.0,
        "model.w": 2.0,
    }
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(source, key="nothing")
    assert "model_ema" in one_line(info)


def test_ties_recorded_in_the_metadata(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.b.weight = self.a.weight

    path = tmp_path / "b.safetensors"
    safetensors.torch.save_model(Tied(), str(path))
    (tie,) = open_checkpoint(path).ties
    assert set(tie) == {"a.weight", "b.weight"}


_NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)
_SHAPES = st.lists(st.integers(0, 3), max_size=3)
_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_NAMES, st.tuples(_SHAPES, _DTYPES), min_size=1, max_size=5), st.dictionaries(_NAMES, st.text()))
def test_write_after_read_is_the_identity(
    tmp_path: Path, made: dict[str, tuple[list[int], torch.dtype]], metadata: dict[str, str]
) -> None:
    source, out = tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    metadata = {key: value.encode("utf-8", "replace").decode() for key, value in metadata.items()}
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in made.items()}
    source.write_bytes(safetensors.torch.save(tensors, metadata))
    write_like(open_checkpoint(source), out, lambda _, tensor: tensor, provenance={}, force=True)
    read = open_checkpoint(out)
    assert dict(read.metadata) == {k: v for k, v in metadata.items() if not k.startswith("rebasin.")}
    assert list(read.infos) == list(open_checkpoint(source).infos)
    for name, tensor in tensors.items():
        assert read.tensor(name).equal(tensor)
        assert read.tensor(name).dtype == tensor.dtype


_MEASURE = """
import sys
from rebasin_cli.checkpoint import open_checkpoint, write_like
import torch
def anon():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
torch.ones(9).sum()
before = anon()
opened = open_checkpoint(sys.argv[1])
total = sum(float(opened.tensor(key).sum()) for key in opened.infos)
opened.verify()
read = anon() - before
write_like(opened, sys.argv[2], lambda key, tensor: tensor.flip(0), provenance={}, force=True)
print(read, anon() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory through /proc")
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_reading_200_mb_costs_no_memory(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / f"b.{kind}", tmp_path / f"o.{kind}"
    size, parts = 1 << 20, 50
    if kind == "safetensors":
        header = {str(i): entry([size], i * size * 4, (i + 1) * size * 4) for i in range(parts)}
        with path.open("wb") as handle:
            text = json.dumps(header)
            handle.write(safetensors_bytes(text + " " * (-len(text) % 8)))
            handle.truncate(handle.tell() + parts * size * 4)
    else:
        torch.save({str(i): torch.zeros(size) for i in range(parts)}, path)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), str(out)], capture_output=True, text=True, check=True
    )
    read, after, total = done.stdout.split()
    assert float(total) == 0
    assert int(read) < 10 << 20
    assert int(after) < 30 << 20
    assert out.stat().st_size >= parts * size * 4
