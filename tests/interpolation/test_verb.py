"""`rebasin interpolate` as a process: what it writes, how it resumes, shares its work, and fails."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rebasin_cli.cli import verb_interpolate
from rebasin_cli.verbs.interpolate import interpolate
from tests.interpolation.conftest import Bench

NORM = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--data", "test.npz")
PLAIN = ("interpolate", "plain-a.safetensors", "plain-b.safetensors", "--model", "net.py:plain", "--data", "test.npz")


def data_of(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert document["status"] == "ok"
    return document["data"]  # type: ignore[no-any-return]


def test_the_two_commands_of_the_design_card(bench: Bench) -> None:
    aligned = bench.run(
        "align", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--input", "2,1,8,8"
    )
    assert aligned.code == 0, aligned.err
    found = bench.run("interpolate", "--steps", "4", "--data", "test.npz", "--recalibrate", "train.npz")
    assert found.code == 0, found.err
    assert "norm-b-aligned.json" in found.err
    data = data_of(bench.path / "norm-b-aligned-interpolation.json")
    assert [point["lam"] for point in data["curves"]["naive"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert data["curves"]["matched"][-1]["loss"] == pytest.approx(data["curves"]["naive"][-1]["loss"], rel=1e-4)
    assert data["barrier"]["matched"]["loss"] < data["barrier"]["naive"]["loss"]
    assert {"a", "b", "model", "data", "mode", "metric", "recalibration", "curves", "barrier", "best"} <= set(data)
    assert {"lam", "loss", "accuracy", "n", "finite"} <= set(data["curves"]["naive"][0])


def test_without_a_report_it_is_a_usage_error(bench: Bench) -> None:
    found = bench.run("interpolate", "--data", "test.npz")
    assert (found.code, found.out) == (2, "")
    assert "report" in found.err


def test_json_is_one_document_and_the_table_names_the_barrier(bench: Bench) -> None:
    found = bench.run(*PLAIN, "--steps", "2", "--json")
    document = json.loads(found.out)
    assert document["schema"] == "rebasin.interpolate/1"
    assert document["data"] == data_of(bench.path / "plain-b-interpolation.json")
    shown = bench.run(*PLAIN, "--steps", "2")
    assert shown.code == 0
    assert "\nbarrier " in shown.out
    assert "\x1b" not in shown.out


def test_a_batch_norm_network_is_warned_about(bench: Bench) -> None:
    assert "--recalibrate" in bench.run(*NORM, "--steps", "1").err
    assert "--recalibrate" not in bench.run(*PLAIN, "--steps", "1").err


def test_an_exceeded_gate_is_9_and_the_file_is_there(bench: Bench) -> None:
    found = bench.run(*PLAIN, "--steps", "2", "--fail-above", "0.001", "--json")
    assert found.code == 9
    assert json.loads(found.out)["error"]["slug"] == "gate"
    assert data_of(bench.path / "plain-b-interpolation.json")["barrier"]["naive"]["loss"] > 0.001
    assert bench.run(*PLAIN, "--steps", "2", "--fail-above", "100").code == 0


def test_a_result_of_another_run_is_left_alone(bench: Bench) -> None:
    assert bench.run(*PLAIN, "--steps", "2", "-o", "r.json").code == 0
    before = (bench.path / "r.json").read_bytes()
    found = bench.run(*PLAIN, "--steps", "3", "-o", "r.json")
    assert found.code == 6
    assert "steps" in found.err
    assert (bench.path / "r.json").read_bytes() == before
    assert "resuming" in bench.run(*PLAIN, "--steps", "2", "-o", "r.json").err
    assert (bench.path / "r.json").read_bytes() == before
    assert bench.run(*PLAIN, "--steps", "3", "-o", "r.json", "--force").code == 0


def test_an_interrupted_sweep_says_how_to_resume_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> NoReturn:
        raise KeyboardInterrupt

    words = (*PLAIN, "--steps", "2", "-o", "r 1.json")
    with monkeypatch.context() as patched:
        patched.setattr(verb_interpolate, "run_interpolate", interrupted)
        found = bench.run(*words, "--force")
    assert found.code == 130
    assert bench.run(*words).code == 0
    before = (bench.path / "r 1.json").read_bytes()
    resumed = bench.run(*shlex.split(found.err.split("resume with: ")[1].splitlines()[0])[1:])
    assert (resumed.code, "resuming r 1.json" in resumed.err) == (0, True)
    assert (bench.path / "r 1.json").read_bytes() == before


def test_the_best_network_is_what_was_measured(bench: Bench) -> None:
    words = (*NORM, "--steps", "4", "--recalibrate", "train.npz", "--repair")
    assert bench.run(*words, "--save-best", "best.safetensors", "--save-all", "all", "--mkdir").code == 0
    data = data_of(bench.path / "norm-b-interpolation.json")
    assert len(list((bench.path / "all").iterdir())) == 3
    for file, measured in (("all/naive-0.5000", data["curves"]["naive"][2]), ("best", data["best"])):
        saved = f"{file}.safetensors"
        words = ("interpolate", saved, saved, *NORM[3:], "--no-recalibrate", "--steps", "1", "-o", "again.json", "-f")
        again = bench.run(*words)
        assert again.code == 0, again.err
        evaluated = data_of(bench.path / "again.json")["curves"]["naive"][0]
        assert evaluated["loss"] == pytest.approx(measured["loss"], rel=1e-5)
        assert evaluated["accuracy"] == measured["accuracy"]


def test_a_checkpoint_that_is_the_best_network_is_saved_as_it_is(bench: Bench) -> None:
    assert bench.run(*PLAIN, "--steps", "2", "--save-best", "best.safetensors").code == 0
    best, lam = (
        load_file(bench.path / "best.safetensors"),
        data_of(bench.path / "plain-b-interpolation.json")["best"]["lam"],
    )
    end = load_file(bench.path / f"plain-{'a' if lam == 0.0 else 'b'}.safetensors")
    assert lam in (0.0, 1.0)
    assert all(torch.equal(best[key], end[key]) for key in end)


def in_process(bench: Bench, **options: Any) -> dict[str, Any]:
    """The same verb without a new process, for the many small cases."""
    result = interpolate(
        [bench.path / "norm-a.safetensors", bench.path / "norm-b.safetensors"],
        model=f"{bench.path / 'net.py'}:norm",
        data=str(bench.path / "test.npz"),
        out=bench.path / "r.json",
        **{"steps": 2, **options},
    )
    assert result.out.exists()
    return data_of(bench.path / "r.json")


def test_the_users_metric_is_measured_besides(bench: Bench) -> None:
    data = in_process(bench, metric=f"{bench.path / 'net.py'}:score")
    for point in data["curves"]["naive"]:
        assert point["metric"] == pytest.approx(1 - point["accuracy"])


def test_three_checkpoints_make_two_segments(bench: Bench) -> None:
    files = [bench.path / f"norm-{letter}.safetensors" for letter in "aba"]
    result = interpolate(
        files, model=f"{bench.path / 'net.py'}:norm", data=str(bench.path / "test.npz"), steps=2, out=bench.path / "r"
    )
    row = result.curves["naive"]
    assert [(point.segment, point.lam) for point in row] == [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.0), (1, 0.5), (1, 1.0)]
    assert row[1].loss == pytest.approx(row[4].loss or 0.0, rel=1e-5)


def truncated_image(bench: Bench) -> str:
    from PIL import Image

    for name in range(10):
        folder = bench.path / "images" / str(name)
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((8, 8), 20 * name, np.uint8)).save(folder / f"{number}.jpg")
    bad = bench.path / "images" / "5" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:-40])
    return "images"


def wrong_labels(bench: Bench) -> str:
    np.savez(bench.path / "bad.npz", x=np.zeros((4, 1, 8, 8), np.float32), y=np.array([0, 1, 2, 12]))
    return "bad.npz"


def wrong_size(bench: Bench) -> str:
    np.savez(bench.path / "bad.npz", x=np.zeros((4, 1, 9, 9), np.float32), y=np.array([0, 1, 2, 2]))
    return "bad.npz"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda bench: "nowhere", "nowhere"),
        (truncated_image, "5/2.jpg"),
        (wrong_labels, "12"),
        (wrong_size, "bad.npz: the model does not accept inputs of shape (4, 1, 9, 9)"),
    ],
)
def test_bad_data_is_5_in_one_line_and_leaves_nothing(bench: Bench, make: Callable[[Bench], str], words: str) -> None:
    data = make(bench)
    before = sorted(path.name for path in bench.path.iterdir())
    gray = ("--transform", "channels=1") if data == "images" else ()
    found = bench.run(*NORM[:-1], data, "--steps", "2", "--batch-size", "4", "-q", *gray)
    assert (found.code, found.out) == (5, ""), found.err
    assert words in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert sorted(path.name for path in bench.path.iterdir()) == before


def test_skipped_images_are_counted(bench: Bench) -> None:
    words = ("--skip-corrupt", "--transform", "channels=1", "--steps", "1")
    found = bench.run(*NORM[:-1], truncated_image(bench), *words)
    assert found.code == 0, found.err
    data = data_of(bench.path / "norm-b-interpolation.json")
    assert (data["skipped"], data["n"]) == (1, 29)
