"""The tests end, and pass, wherever they are started: in the background, in a path with a space, by another user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = (
    "tests/cli/test_faults_output.py",
    "tests/checkpoint/test_write.py",
    "tests/test_options.py",
)
"""Tests that interrupt programs, that write files, and that do neither."""
NOBODY = 65534


def copied(place: Path) -> Path:
    """The package and its tests in a path with a space, without what they do not need."""
    here = place / "a clone"
    here.mkdir()
    for name in ("rebasin_cli", "tests"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__", "golden", "benchmarks"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, here / name)
    return here


def started(command: str, here: Path, home: Path, **variables: str) -> str:
    """What a script prints that runs the tests as a background job, and waits for it."""
    script = here / "run.sh"
    script.write_text(f'({command} > "$1" 2>&1; echo "code $?" >> "$1") &\nwait\n')
    report = home / "report"
    paths = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    environment.pop("PYTEST_XDIST_WORKER", None)
    subprocess.run(["sh", str(script), str(report)], cwd=here, env=environment, timeout=500, check=True)
    return report.read_text()


@pytest.mark.slow
def test_in_the_background_of_a_script_and_in_a_path_with_a_space(tmp_path: Path) -> None:
    here = copied(tmp_path)
    shown = started(f'"{sys.executable}" -m pytest -q -n 2 {" ".join(CHOSEN)}', here, tmp_path)
    assert shown.endswith("code 0\n"), shown


@pytest.mark.slow
def test_by_a_user_who_is_not_root(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.geteuid() != 0:
        pytest.skip("needs setpriv, and root to change the user with")
    switch = f"{setpriv} --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    probe = f'"{sys.executable}" -c "import torch, pytest"'  # by a shell, as the workers of the tests are started
    tried = subprocess.run([*switch.split(), "sh", "-c", probe], capture_output=True, cwd="/")
    if tried.returncode:
        pytest.skip(f"{sys.executable} cannot be read by other users")
    here = copied(tmp_path)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    os.chown(tmp_path, NOBODY, NOBODY)
    shown = started(
        f'{switch} "{sys.executable}" -m pytest -q -n 2 {" ".join(CHOSEN)}',
        here,
        tmp_path,
        HOME=str(tmp_path),
        TMPDIR=str(tmp_path),
    )
    assert shown.endswith("code 0\n"), shown
    assert "root may write anywhere" not in shown
