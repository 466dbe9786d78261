"""Bad files, each once as A and once as B: one line, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import json
import re
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run, Runner
from tests.cli.workshop import MODEL, safetensors_bytes, state, with_header


class Marker:
    """Unpickling this would touch a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


def truncated(path: Path) -> Path:
    path.write_bytes(safetensors_bytes(state(1))[:-10])
    return path


def endless_header(path: Path) -> Path:
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}" * 20)
    return path


def overlapping(path: Path) -> Path:
    header = {
        "first": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "second": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }
    path.write_bytes(with_header(json.dumps(header).encode(), b"\0" * 24))
    return path


def unknown_dtype(path: Path) -> Path:
    header = {"first": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}
    path.write_bytes(with_header(json.dumps(header).encode(), b"\0" * 16))
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def seven_bytes(path: Path) -> Path:
    path.write_bytes(b"1234567")
    return path


def torch_in_disguise(path: Path) -> Path:
    torch.save(state(1), path)
    return path


def lfs_pointer(path: Path) -> Path:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path


def web_page(path: Path) -> Path:
    path.write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    return path


def executing_pickle(path: Path) -> Path:
    path = path.with_suffix(".pt")
    torch.save({"0.weight": Marker("marker")}, path)
    return path


def whole_module(path: Path) -> Path:
    path = path.with_suffix(".pt")
    torch.save(torch.nn.Linear(2, 2), path)
    return path


def flipped_bit(path: Path) -> Path:
    path = path.with_suffix(".pt")
    torch.save(state(1), path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    raw[entry.header_offset + 30 + len(entry.filename) + 100 + entry.file_size // 2] ^= 1
    path.write_bytes(bytes(raw))
    return path


def truncated_torch(path: Path) -> Path:
    path = path.with_suffix(".pt")
    torch.save(state(1), path)
    path.write_bytes(path.read_bytes()[:-400])
    return path


def torchscript(path: Path) -> Path:
    path = path.with_suffix(".pt")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    return path


def with_namespace(path: Path) -> Path:
    path = path.with_suffix(".pt")
    torch.save({"state_dict": state(1), "optimizer": {}, "epoch": 3, "args": Namespace(lr=1)}, path)
    return path


CASES: list[tuple[Callable[[Path], Path], str]] = [
    (truncated, r"truncated|incomplete"),
    (endless_header, r"header"),
    (overlapping, r"(?=.*(offset|overlap))(?=.*(first|second))"),
    (unknown_dtype, r"(?=.*dtype)(?=.*F99)"),
    (empty, r"empty|too small"),
    (seven_bytes, r"empty|too small"),
    (torch_in_disguise, r"(?=.*not a safetensors)(?=.*(zip|pickle))"),
    (lfs_pointer, r"(?=.*not a safetensors)(?=.*git-lfs pointer)"),
    (web_page, r"(?=.*not a safetensors)(?=.*HTML)"),
    (executing_pickle, r"(?=.*(unsafe|refus))(?=.*posix\.system)"),
    (whole_module, r"state_dict"),
    (flipped_bit, r"CRC|corrupt"),
    (truncated_torch, r"truncated|corrupt|incomplete"),
    (torchscript, r"(?=.*TorchScript)(?=.*state_dict)"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize(("make", "words"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_file_is_refused_in_one_line(
    run: Runner, place: Path, make: Callable[[Path], Path], words: str, side: str
) -> None:
    bad = make(place / "bad.safetensors").name
    pair = [bad, "b.safetensors"] if side == "A" else ["a.safetensors", bad]
    contents = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    done = run("align", *pair, *MODEL)
    expect_refusal(done, 3, words)
    assert bad in done.err
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == contents


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_namespace_beside_the_weights_is_skipped_and_named(run: Runner, place: Path, side: str) -> None:
    name = with_namespace(place / "args.safetensors").name
    pair = [name, "b.safetensors"] if side == "A" else ["a.safetensors", name]
    done = run("align", *pair, *MODEL, "-o", "o.safetensors" if side == "A" else "o.pt")
    assert done.code == 0, done.err
    assert "skipped: argparse.Namespace at 'args'" in done.err
    if side == "B":
        assert b"Namespace" not in (place / "o.pt").read_bytes()
        assert set(torch.load(place / "o.pt", weights_only=True)) == {"state_dict", "optimizer", "epoch"}


def test_both_sizes_are_named_where_bytes_are_missing(run: Runner, place: Path) -> None:
    whole = len(safetensors_bytes(state(1)))
    bad = truncated(place / "bad.safetensors").name
    done = run("align", "a.safetensors", bad, *MODEL)
    numbers = {int(text.replace(",", "")) for text in re.findall(r"\d[\d,]*", done.err)}
    assert {whole, whole - 10} <= numbers


def test_an_error_in_json_is_one_document(run: Runner, place: Path) -> None:
    bad = truncated(place / "bad.safetensors").name
    done = run("align", "a.safetensors", bad, *MODEL, "--json")
    document = json.loads(done.out)
    assert (document["status"], document["data"], document["error"]["exit_code"]) == ("error", None, 3)
    assert set(document["error"]) == {"slug", "exit_code", "message", "path", "hint"}


def expect_refusal(done: Run, code: int, words: str) -> None:
    """One line on stderr with the words, nothing on stdout, no traceback, no dangerous advice."""
    assert done.code == code, done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.endswith("…")]
    assert len(lines) == 1, done.err
    assert re.search(words, lines[0], re.IGNORECASE), lines[0]
    assert "Traceback" not in done.err
    assert "weights_only" not in done.err
    assert "miniz" not in done.err
