"""Outputs: what cannot be written is refused first; what can appears whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rebasin_cli.checkpoint import Checkpoint, check_output, open_checkpoint, write_like, write_text_atomically
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.checkpoint.formats import safetensors as safetensors_format
from rebasin_cli.errors import CheckpointError, NumericalError, OutputError
from tests.checkpoint.build import digest, one_line


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    path = tmp_path / "b.safetensors"
    safetensors.torch.save_file({"w": torch.arange(1000.0), "v": torch.ones(3)}, path)
    return open_checkpoint(path)


def same(_key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def refused(source: Checkpoint, out: Path, **options: Any) -> str:
    files = sorted(os.listdir(source.path.parent))
    given = {"force": False, "bytes_needed": source.file_bytes, **options}
    with pytest.raises(OutputError) as info:
        check_output(out, source.files, **given)
    assert info.value.exit_code == 6
    assert str(out) in info.value.message
    assert sorted(os.listdir(source.path.parent)) == files
    return one_line(info)


def test_what_exists_is_kept(source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    out.write_text("old")
    text = refused(source, out)
    assert "exists" in text
    assert "--force" in text
    with pytest.raises(OutputError, match="exists"):
        write_like(source, out, same, provenance={}, force=False)
    assert out.read_text() == "old"
    write_like(source, out, same, provenance={}, force=True)
    assert out.read_bytes() == source.path.read_bytes()


def test_the_output_is_an_input_by_any_name(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source.path)
    os.link(source.path, tmp_path / "hard")
    (tmp_path / "x").mkdir()
    for name in ("b.safetensors", "link", "hard", "./x/../b.safetensors"):
        assert "same file" in refused(source, tmp_path / name)


def test_only_regular_files_are_replaced(source: Checkpoint, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, word in (("fifo", "FIFO"), ("folder", "directory")):
        for force in (False, True):
            assert word in (text := refused(source, tmp_path / name, force=force))
            assert "regular file" in text
    assert "character device" in refused(source, Path("/dev/null"), force=True)


def test_the_parent_directory(source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "o.safetensors"
    text = refused(source, out)
    assert str(out.parent) in text
    assert "mkdir -p" in text
    assert "not a directory" in refused(source, source.path / "o.safetensors")
    check_output(out, source.files, force=False, bytes_needed=1, mkdir=True)
    assert not (tmp_path / "new").exists()
    write_like(source, out, same, provenance={}, force=False, mkdir=True)
    assert out.exists()


def test_no_room(source: Checkpoint, tmp_path: Path) -> None:
    text = refused(source, tmp_path / "o.safetensors", bytes_needed=1 << 60)
    assert "no space" in text
    assert f"{1 << 60:,} bytes needed" in text


_UNPRIVILEGED = """
import os, sys
from rebasin_cli.checkpoint import check_output
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
check_output(sys.argv[1], [], force=True, bytes_needed=1)
"""


def test_a_read_only_directory() -> None:
    # Not under tmp_path, whose parents are closed to the user that root becomes here.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        run = [sys.executable, "-c", _UNPRIVILEGED, f"{folder}/o.pt"]
        done = subprocess.run(run, capture_output=True, text=True)
        assert "OutputError" in done.stderr
        assert "no permission" in done.stderr


def test_the_suffix_says_the_format(source: Checkpoint, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "b.pt")
    other = open_checkpoint(tmp_path / "b.pt")
    for like, name, kind in (
        (source, "o.pt", "torch"),
        (other, "o.safetensors", "safetensors"),
        (other, "o.pth", "torch"),
    ):
        check_output(tmp_path / name, (), force=False, bytes_needed=1, like=like)
        write_like(like, tmp_path / name, same, provenance={}, force=False)
        assert open_checkpoint(tmp_path / name).kind == kind
        assert open_checkpoint(tmp_path / name).tensor("w").equal(like.tensor("w"))


def test_mode_of_the_umask_and_symlinks_stay(source: Checkpoint, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
        link.symlink_to(real)
        write_like(source, link, same, provenance={}, force=False)
        assert link.is_symlink()
        assert real.stat().st_mode & 0o777 == 0o640
        assert real.read_bytes() == source.path.read_bytes()
    finally:
        os.umask(old)


def test_an_input_may_be_overwritten_by_force(source: Checkpoint) -> None:
    write_like(source, source.path, lambda _, tensor: tensor.flip(0), provenance={}, force=True)
    assert source.tensor("w")[0] == 0
    assert open_checkpoint(source.path).tensor("w")[0] == 999


@pytest.mark.parametrize("fault", [KeyboardInterrupt, CheckpointError("no"), SystemExit])
def test_whatever_goes_wrong_leaves_nothing(source: Checkpoint, tmp_path: Path, fault: Any) -> None:
    def fail(*_: object) -> Any:
        raise fault

    kind = fault if isinstance(fault, type) else type(fault)
    for given in ({"transform": fail}, {"transform": same, "check": fail}):
        with pytest.raises(kind):
            write_like(source, tmp_path / "o.safetensors", provenance={}, force=False, **given)
        assert os.listdir(tmp_path) == ["b.safetensors"]


def test_the_check_sees_what_will_be_there(source: Checkpoint, tmp_path: Path) -> None:
    seen: list[str] = []
    out = tmp_path / "o.safetensors"

    def check(written: Checkpoint) -> None:
        assert not out.exists()
        assert written.tensor("w").equal(torch.arange(1000.0).flip(0))
        seen.append(written.sha256())

    said = write_like(source, out, lambda _, t: t.flip(0), provenance={"seed": "0"}, force=False, check=check)
    assert seen == [said] == [digest(out)]
    assert sorted(os.listdir(tmp_path)) == ["b.safetensors", "o.safetensors"]


_LIMITED = """
import resource, sys, torch
from rebasin_cli.checkpoint import open_checkpoint, write_like
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.checkpoint.formats import safetensors as safetensors_format
from rebasin_cli.errors import OutputError
source = open_checkpoint(sys.argv[1])
def late(key, tensor):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return tensor
if sys.argv[3] == "early":
    late("", None)
try:
    write_like(source, sys.argv[2], late, provenance={}, force=True)
except OutputError as error:
    print(error.message)
"""


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_full_disk(tmp_path: Path, when: str, suffix: str) -> None:
    path, out = tmp_path / f"b.{suffix}", tmp_path / f"o.{suffix}"
    tensors = {str(i): torch.ones(100_000) for i in range(3)}
    safetensors.torch.save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    out.write_text("old")
    run = [sys.executable, "-c", _LIMITED, str(path), str(out), when]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "no space" in done.stdout
    assert f"{path.stat().st_size:,} bytes needed, 2,000" in done.stdout
    assert done.stderr == ""
    assert out.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2


_SLOW = """
import sys, time
from rebasin_cli.checkpoint import open_checkpoint, write_like
def wait(key, tensor):
    time.sleep(60)
write_like(open_checkpoint(sys.argv[1]), sys.argv[2], wait, provenance={}, force=False)
"""


def test_the_leftover_of_a_killed_run_is_removed_and_that_of_a_living_one_is_not(
    source: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "o.safetensors"

    def temporaries() -> list[str]:
        return [name for name in os.listdir(tmp_path) if name.startswith(".o.safetensors.rebasin-")]

    running = subprocess.Popen([sys.executable, "-c", _SLOW, str(source.path), str(out)])
    try:
        deadline = time.monotonic() + 30
        while not temporaries() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        write_like(source, out, same, provenance={}, force=False)
        assert len(temporaries()) == 1
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert len(temporaries()) == 1
    write_like(source, out, same, provenance={}, force=True)
    assert temporaries() == []


def test_small_texts(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_text_atomically(path, "{}\n", force=False)
    with pytest.raises(OutputError, match="exists"):
        write_text_atomically(path, "new", force=False)
    write_text_atomically(path, "größer", force=True)
    assert path.read_text(encoding="utf-8") == "größer"
    assert os.listdir(tmp_path) == ["r.json"]
    with pytest.raises(OutputError, match="regular file"):
        write_text_atomically(tmp_path, "x", force=True)


def test_names_of_255_bytes(source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / ("ö" * 121 + ".safetensors")
    write_like(source, out, same, provenance={}, force=False)
    assert out.read_bytes() == source.path.read_bytes()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {"one.safetensors": {"a": torch.arange(4.0), "c": torch.ones(2)}, "two.safetensors": {"b": torch.zeros(3)}}
    for name, tensors in shards.items():
        safetensors.torch.save_file(tensors, folder / name, {"format": "pt"})
    weights = {"b": "two.safetensors", "a": "one.safetensors", "c": "one.safetensors"}
    index = {"metadata": {"total_size": 36}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_sharded_checkpoint_becomes_a_directory(sharded: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(sharded)
    assert isinstance(opened, DirectoryCheckpoint)
    assert list(opened.infos) == ["b", "a", "c"]
    assert [path.name for path in opened.files] == [
        "two.safetensors",
        "one.safetensors",
        "model.safetensors.index.json",
    ]
    out = tmp_path / "out"
    said = write_like(opened, out, lambda _, t: t.flip(0), provenance={"seed": "1"}, force=False)
    written = open_checkpoint(out)
    assert written.sha256() == said
    assert written.tensor("a").equal(torch.arange(4.0).flip(0))
    assert sorted(os.listdir(out)) == sorted(os.listdir(sharded))
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 36, "rebasin.seed": "1"}
    with pytest.raises(OutputError, match="not empty"):
        write_like(opened, out, same, provenance={}, force=True)
    with pytest.raises(OutputError, match="suffix"):
        write_like(opened.weights, tmp_path / "o.json", same, provenance={}, force=True)


def test_an_index_is_replaced_last_and_the_old_shards_stay_whole(sharded: Path, tmp_path: Path) -> None:
    opened, out = open_checkpoint(sharded / "model.safetensors.index.json"), tmp_path / "o.safetensors.index.json"
    write_like(opened, out, same, provenance={}, force=False)
    first = open_checkpoint(out)
    names = [path.name for path in first.files]
    assert names[0].startswith("o-")
    assert names[0].endswith("-00001-of-00002.safetensors")
    with pytest.raises(OutputError, match="exists"):
        write_like(opened, out, same, provenance={}, force=False)
    write_like(opened, out, lambda _, t: t.flip(0), provenance={}, force=True)
    assert open_checkpoint(out).tensor("a")[0] == 3
    assert first.tensor("a")[0] == 0
    assert all(path.exists() for path in first.files)

    def fail(_: Checkpoint) -> None:
        raise CheckpointError("no")

    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CheckpointError):
        write_like(opened, out, lambda _, t: t * 2, provenance={}, force=True, check=fail)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_map": {"a": "../one.safetensors"}}, ["not a .safetensors file beside it"]),
        ({"weight_map": {"a": "three.safetensors"}}, ["three.safetensors", "no such file"]),
        ({"weight_map": {"a": "one.safetensors"}}, ["'c'", "does not name"]),
        ({"weight_map": {"z": "two.safetensors", "b": "two.safetensors"}}, ["'z'", "lacks"]),
        ({"weight_map": 3}, ["weight_map"]),
        ({}, ["weight_map"]),
    ],
)
def test_an_index_that_does_not_fit(sharded: Path, change: dict[str, Any], words: list[str]) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps(change))
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(sharded)
    for word in words:
        assert word in one_line(info)


def test_directories_without_one_checkpoint(tmp_path: Path, source: Checkpoint) -> None:
    assert open_checkpoint(tmp_path).files == source.files
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"'a.safetensors', 'b.safetensors'"):
        open_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="without"):
        open_checkpoint(tmp_path / "empty")


def test_what_the_safetensors_library_cannot_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.safetensors"
    safetensors.torch.save_file({"w": torch.arange(4.0)}, path)
    read = safetensors_format.package_keys
    monkeypatch.setattr(safetensors_format, "package_keys", lambda file: read(file) if file == path else None)
    with pytest.raises(NumericalError, match="the safetensors package does not find"):
        write_like(open_checkpoint(path), tmp_path / "o.safetensors", lambda _, t: t, provenance={}, force=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.safetensors"]
