"""Outputs that must not be written, disks that fill up, signals: nothing half-done stays behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Runner, environment
from tests.cli.test_faults_bytes import expect_refusal
from tests.cli.workshop import ALIGN, MODEL


def test_an_output_that_exists_is_kept(run: Runner, place: Path) -> None:
    (place / "b-aligned.safetensors").write_bytes(b"old")
    expect_refusal(run(*ALIGN), 6, r"(?=.*exists)(?=.*--force)")
    assert (place / "b-aligned.safetensors").read_bytes() == b"old"
    assert run(*ALIGN, "--force").code == 0
    assert (place / "b-aligned.safetensors").read_bytes() != b"old"


def test_a_report_that_exists_is_kept(run: Runner, place: Path) -> None:
    (place / "b-aligned.json").write_text("mine")
    expect_refusal(run(*ALIGN), 6, r"(?=.*b-aligned\.json)(?=.*exists)(?=.*--force)")
    assert (place / "b-aligned.json").read_text() == "mine"
    assert not (place / "b-aligned.safetensors").exists()


def test_an_existing_output_is_refused_before_torch_is_imported(process: Runner, place: Path) -> None:
    (place / "b-aligned.safetensors").write_bytes(b"old")
    (place / "torch.py").write_text("raise AssertionError('torch was imported')")  # first on the path of the process
    done = process(*ALIGN)
    assert done.code == 6
    assert "torch was imported" not in done.err


@pytest.mark.parametrize("way", ["itself", "dots", "symlink", "hardlink"])
def test_an_output_that_is_an_input_is_refused(run: Runner, place: Path, way: str) -> None:
    out = {"itself": "b.safetensors", "dots": "./sub/../b.safetensors"}.get(way, "link.safetensors")
    (place / "sub").mkdir()
    if way == "symlink":
        (place / out).symlink_to("b.safetensors")
    if way == "hardlink":
        os.link(place / "b.safetensors", place / out)
    before = (place / "b.safetensors").read_bytes()
    expect_refusal(run(*ALIGN, "-o", out), 6, r"same file")
    assert (place / "b.safetensors").read_bytes() == before


@pytest.mark.parametrize("way", ["itself", "dots", "symlink", "hardlink"])
def test_the_reference_is_never_overwritten_even_with_force(run: Runner, place: Path, way: str) -> None:
    out = {"itself": "a.safetensors", "dots": "./sub/../a.safetensors"}.get(way, "link.safetensors")
    (place / "sub").mkdir()
    if way == "symlink":
        (place / out).symlink_to("a.safetensors")
    if way == "hardlink":
        os.link(place / "a.safetensors", place / out)
    before = (place / "a.safetensors").read_bytes()
    refused = run(*ALIGN, "-o", out, "--force")
    expect_refusal(refused, 6, r"same file")
    assert "--force" not in refused.err
    assert (place / "a.safetensors").read_bytes() == before
    assert run(*ALIGN, "-o", "b.safetensors", "--force").code == 0


def test_a_missing_directory_is_named_and_made_on_request(run: Runner, place: Path) -> None:
    expect_refusal(run(*ALIGN, "-o", "new/deep/c.safetensors"), 6, r"(?=.*new/deep)(?=.*--mkdir|.*mkdir -p)")
    assert run(*ALIGN, "-o", "new/deep/c.safetensors", "--mkdir").code == 0
    assert (place / "new/deep/c.safetensors").is_file()
    assert (place / "new/deep/c.json").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused_before_the_work(run: Runner, place: Path) -> None:
    (place / "locked").mkdir(mode=0o555)
    expect_refusal(run(*ALIGN, "-o", "locked/c.safetensors"), 6, r"permission")


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_regular_file_is_left_alone_even_with_force(run: Runner, place: Path, kind: str) -> None:
    out = place / "odd.safetensors"
    out.mkdir() if kind == "directory" else os.mkfifo(out)
    expect_refusal(run(*ALIGN, "-o", "odd.safetensors", "--force"), 6, r"not a regular file|directory")
    assert out.is_dir() if kind == "directory" else out.is_fifo()


def test_a_disk_that_fills_up_leaves_the_directory_as_it_was(process: Runner, place: Path) -> None:
    files = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    limit = 2000  # bytes a file may have: less than the output, more than nothing

    def tighten() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    (place / "sub").mkdir()
    done = process(*ALIGN, "-o", "sub/c.safetensors", preexec_fn=tighten)
    expect_refusal(done, 6, r"space")
    assert list((place / "sub").iterdir()) == []
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == files


SLOW = """
import time
from torch import nn

def build():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_at_once_and_leaves_nothing(place: Path, number: int, code: int) -> None:
    (place / "slow.py").write_text(SLOW)
    files = sorted(path.name for path in place.iterdir())
    command = [sys.executable, "-u", "-m", "rebasin_cli", *ALIGN[:3], "--model", "slow.py:build"]
    started = subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stderr is not None
    for line in started.stderr:
        if "ready" in line:
            break
    started.send_signal(number)
    out, err = started.communicate(timeout=30)  # the model's own code would sleep for a minute
    assert (started.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == files


def test_a_reader_that_leaves_is_no_error(place: Path) -> None:
    command = f"{sys.executable} -m rebasin_cli completions bash | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_a_real_process_keeps_its_streams_apart(process: Runner, place: Path) -> None:
    done = process(*ALIGN, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["status"] == "ok"
    assert done.err.count("\n") <= 3
    assert "\x1b" not in done.err


def test_a_path_and_a_number_are_never_cut(place: Path) -> None:
    long = "b" * 180 + ".safetensors"
    (place / "b.safetensors").rename(place / long)
    done = subprocess.run(
        [sys.executable, "-m", "rebasin_cli", "align", "a.safetensors", long, *MODEL, "--dry-run", "-v"],
        cwd=place,
        env={**environment(), "COLUMNS": "40", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
