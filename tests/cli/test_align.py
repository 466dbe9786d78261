"""What `align` promises when nothing is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Runner
from tests.cli.workshop import ALIGN, MODEL, permuted, read_safetensors, safetensors_bytes, state

DATA = {
    "a", "b", "out", "permutations", "model", "method", "start", "seed", "passes", "converged", "objective", "cosine",
    "distance", "groups", "moved_units", "units", "verified", "seconds", "peak_rss_bytes", "sha256", "versions",
    "already_aligned",
}  # fmt: skip


def test_the_json_document_holds_what_the_contract_names(run: Runner, place: Path) -> None:
    done = run(*ALIGN, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert set(document) == {"schema", "command", "status", "data", "warnings", "error"}
    assert (document["schema"], document["command"], document["status"]) == ("rebasin.align/1", "align", "ok")
    data = document["data"]
    assert set(data) >= DATA
    assert set(data["objective"]) == {"before", "after", "per_pass"}
    assert data["criterion"] == {
        "name": "plain",
        "before": data["objective"]["before"],
        "after": data["objective"]["after"],
        "weight_matching": None,
    }
    assert set(data["verified"]) >= {"max_absolute_error", "max_relative_error", "argmax_agreement", "samples"}
    assert set(data["seconds"]) == {"read", "trace", "match", "verify", "write", "total"}
    assert set(data["sha256"]) == {"a", "b", "out"}
    assert data["out"] == "b-aligned.safetensors"
    assert data["units"] == 14
    assert data["moved_units"] == sum(group["moved"] for group in data["groups"])
    assert data["cosine"]["after"] >= data["cosine"]["before"]
    assert data["distance"]["after"] <= data["distance"]["before"]
    assert data["verified"]["max_relative_error"] < 1e-5
    assert data["verified"]["argmax_agreement"] == 1.0
    beside = json.loads((place / "b-aligned.json").read_text())
    assert beside == document


def test_another_objective_is_reported_beside_the_plain_one(run: Runner, place: Path) -> None:
    done = run(*ALIGN, "--objective", "rows", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)["data"]
    assert data["criterion"]["name"] == "rows"
    assert data["criterion"]["after"] >= data["criterion"]["before"]
    a, b, c = (read_safetensors(place / f"{name}.safetensors") for name in ("a", "b", "b-aligned"))
    for found, moment in ((b, "before"), (c, "after")):
        keys = [key for key in a if a[key].is_floating_point() and "running" not in key]
        plain = sum(float((a[key].double() * found[key].double()).sum()) for key in keys)
        assert data["objective"][moment] == pytest.approx(plain, rel=1e-5)
    told = run(*ALIGN, "--objective", "rows", "--force")
    assert "chosen by" in told.out
    refused = run(*ALIGN, "--objective", "best", "--force")
    assert refused.code == 2
    assert "plain, matrices, tensors, rows" in refused.err


def test_planted_permutations_come_back_bit_for_bit(run: Runner, place: Path) -> None:
    a = state(0)
    planted = permuted(a, torch.randperm(8), torch.randperm(6))
    (place / "b.safetensors").write_bytes(safetensors_bytes(planted))
    done = run(*ALIGN, "--json")
    data = json.loads(done.out)["data"]
    assert data["distance"]["after"] == 0.0
    assert data["cosine"]["after"] == 1.0
    found = read_safetensors(place / "b-aligned.safetensors")
    assert list(found) == list(a)
    assert all(torch.equal(found[key], a[key]) for key in a)


def test_equal_checkpoints_keep_their_bytes(run: Runner, place: Path) -> None:
    (place / "b.safetensors").write_bytes((place / "a.safetensors").read_bytes())
    done = run(*ALIGN, "--json")
    data = json.loads(done.out)["data"]
    assert data["already_aligned"] is True
    assert data["moved_units"] == 0
    found, a = read_safetensors(place / "b-aligned.safetensors"), state(0)
    assert all(torch.equal(found[key], a[key]) for key in a)


def test_the_same_run_twice_writes_the_same_bytes_and_touches_no_input(run: Runner, place: Path) -> None:
    before = [(place / f"{name}.safetensors").read_bytes() for name in "ab"]
    run(*ALIGN, "-o", "one.safetensors")
    run(*ALIGN, "-o", "two.safetensors")
    assert (place / "one.safetensors").read_bytes() == (place / "two.safetensors").read_bytes()
    assert [(place / f"{name}.safetensors").read_bytes() for name in "ab"] == before


def test_prefixes_are_seen_through_and_restored(run: Runner, place: Path) -> None:
    plain = state(1)
    for name, prefix, seed in (("a", "_orig_mod.", 0), ("b", "module.", 1)):
        tensors = {prefix + key: tensor for key, tensor in state(seed).items()}
        (place / f"{name}.safetensors").write_bytes(safetensors_bytes(tensors))
    assert run(*ALIGN).code == 0
    assert list(read_safetensors(place / "b-aligned.safetensors")) == [f"module.{key}" for key in plain]


def test_an_extra_tensor_is_passed_on_when_asked(run: Runner, place: Path) -> None:
    extra = {**state(1), "ema.decay": torch.ones(3)}
    (place / "b.safetensors").write_bytes(safetensors_bytes(extra))
    assert run(*ALIGN, "--ignore-extra").code == 0
    assert torch.equal(read_safetensors(place / "b-aligned.safetensors")["ema.decay"], torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_mixed_pairs_work(run: Runner, place: Path, dtype: torch.dtype) -> None:
    b = {key: tensor.to(dtype) if tensor.dim() > 1 else tensor for key, tensor in state(1).items()}
    (place / "b.safetensors").write_bytes(safetensors_bytes(b))
    done = run(*ALIGN, "--json")
    assert done.code == 0, done.err
    found = read_safetensors(place / "b-aligned.safetensors")
    assert {key: tensor.dtype for key, tensor in found.items()} == {key: tensor.dtype for key, tensor in b.items()}


def test_tied_weights_stay_tied(run: Runner, place: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        shared = torch.randn(7, 7)
        tensors = {
            "into.weight": torch.randn(7, 5),
            "first.weight": shared,
            "second.weight": shared,
            "out.weight": torch.randn(3, 7),
            "out.bias": torch.randn(3),
        }
        torch.save(tensors, place / f"{name}.pt")
    done = run("align", "a.pt", "b.pt", "--model", "net.py:tied", "--input", "2,5", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["data"]["moved_units"] > 0
    found = torch.load(place / "b-aligned.pt", weights_only=True)
    assert found["first.weight"].data_ptr() == found["second.weight"].data_ptr()


def test_permutations_are_saved_and_applied_without_a_model(run: Runner, place: Path) -> None:
    assert run(*ALIGN, "--save-permutations", "p.json", "--save-spec", "s.json").code == 0
    (place / "net.py").unlink()
    done = run("apply", "p.json", "b.safetensors", "-o", "again.safetensors", "-q")
    assert (done.code, done.out) == (0, "again.safetensors\n"), done.err
    first, again = (read_safetensors(place / name) for name in ("b-aligned.safetensors", "again.safetensors"))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_spec_file_takes_the_place_of_the_trace(run: Runner, place: Path) -> None:
    run(*ALIGN, "--save-spec", "s.json")
    spec = json.loads((place / "s.json").read_text())
    spec["groups"] = spec["groups"][:1]
    (place / "s.json").write_text(json.dumps(spec))
    done = run(*ALIGN, "--spec", "s.json", "-o", "c.safetensors", "--json")
    assert [group["name"] for group in json.loads(done.out)["data"]["groups"]] == [spec["groups"][0]["name"]]


def test_a_wrong_spec_is_caught_before_anything_is_written(run: Runner, place: Path) -> None:
    run(*ALIGN, "--save-spec", "s.json", "--dry-run")
    spec = {
        "schema": "rebasin.spec/1",
        "groups": [{"name": "wrong", "size": 8, "parent": None, "sites": [{"key": "0.weight", "axis": 0}]}],
        "pinned": [],
    }
    (place / "s.json").write_text(json.dumps(spec))
    files = sorted(place.iterdir())
    done = run(*ALIGN, "--spec", "s.json")
    assert done.code == 7
    assert "permuting the groups changes the function" in done.err
    assert sorted(place.iterdir()) == files


def test_a_dry_run_writes_nothing(run: Runner, place: Path) -> None:
    files = sorted(place.iterdir())
    done = run(*ALIGN, "--dry-run", "--json")
    assert json.loads(done.out)["data"]["out"] is None
    assert sorted(place.iterdir()) == files


def test_quiet_prints_only_the_path(run: Runner) -> None:
    done = run(*ALIGN, "-q")
    assert (done.code, done.out, done.err) == (0, "b-aligned.safetensors\n", "")


def test_the_table_says_first_what_a_person_wants(run: Runner) -> None:
    done = run(*ALIGN)
    for word in (
        "2 axis groups, 14 units",
        "cosine",
        "distance",
        "unchanged",
        "b-aligned.safetensors",
        "next: rebasin",
    ):
        assert word in done.out, done.out
    assert "\x1b" not in done.out + done.err


def test_names_from_files_are_data(run: Runner, place: Path) -> None:
    odd = Path("[bold]x[") / "b]\n\x1b[31m.safetensors"
    odd.parent.mkdir()
    odd.write_bytes((place / "b.safetensors").read_bytes())
    done = run("align", "a.safetensors", odd, *MODEL)
    assert done.code == 0, done.err
    assert "[bold]x[/b]\\n\\x1b[31m" in done.out
    assert "\x1b" not in done.out


def test_verify_tells_equal_functions_from_different_ones(run: Runner) -> None:
    run(*ALIGN)
    same = run("verify", "b.safetensors", "b-aligned.safetensors", *MODEL, "--json")
    assert same.code == 0
    assert json.loads(same.out)["data"]["verified"]["same"] is True
    other = run("verify", "a.safetensors", "b.safetensors", *MODEL, "--json")
    assert other.code == 7
    document = json.loads(other.out)
    assert document["error"]["slug"] == "functions-differ"
    assert document["data"]["verified"]["max_relative_error"] > 1e-3


def test_the_class_count_of_the_checkpoint_is_taken_and_said(run: Runner, place: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        tensors = state(seed)
        tensors["6.weight"], tensors["6.bias"] = torch.randn(9, 6), torch.randn(9)
        (place / f"{name}.safetensors").write_bytes(safetensors_bytes(tensors))
    done = run(*ALIGN)
    assert done.code == 0, done.err
    assert "9 classes" in done.err
