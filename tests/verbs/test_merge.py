"""`rebasin merge` as a user runs it: digits, permuted copies, fine-tunings among strangers, recipes, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebasin_cli import MergeResult, merge
from rebasin_cli.errors import UsageError
from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import PermutationSpec
from tests.verbs.merge_bench import SHAPE, Desk, fine_tuned, make_desk

ALIGNS = ("reference", "merge-many", "cycle-consistent")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path)


def spec_of(desk: Desk, kind: str) -> PermutationSpec:
    choice = ModelChoice(f"{desk.path / 'net.py'}:{kind}", inputs=("2,1,8,8",))
    return understand(open_subject(choice), choice).spec


def total_squared(desk: Desk, out: str) -> float:
    return sum(float(value.double().square().sum()) for value in desk.load(out).values() if value.is_floating_point())


def test_every_network_keeps_its_function_and_the_common_order_is_better_than_none(desk: Desk) -> None:
    results, squares = {}, {}
    for align in (*ALIGNS, "none"):
        data = desk.merge("plain", "--align", align, "--data", "test.npz", out=f"{align}.safetensors")
        results[align], squares[align] = data["result"], total_squared(desk, f"{align}.safetensors")
        assert data["cycles"] == 0
        assert data["result"]["n"] == 597
        assert [one["moved_units"] > 0 for one in data["inputs"]] == [False, *[align != "none"] * 4]
        if align != "none":
            assert data["verified"]["same"] is True
            assert data["verified"]["max_in_noise_floors"] < 64
    assert squares["none"] < squares["reference"] < squares["cycle-consistent"]
    assert squares["merge-many"] < squares["cycle-consistent"]  # |mean|^2: the objective, up to a factor
    joint, turns = results["cycle-consistent"], results["merge-many"]
    assert joint["loss"] < turns["loss"] + 2 * joint["loss_standard_error"]
    assert joint["accuracy"] > results["none"]["accuracy"] + 0.1


def keep_three(desk: Desk, kind: str) -> None:
    """Leave three networks of a kind, where five would show no more."""
    for number in (3, 4):
        (desk.path / f"{kind}-{number}.safetensors").unlink()


@pytest.mark.parametrize("align", ALIGNS)
def test_batch_norm_statistics_are_measured_or_missed(desk: Desk, align: str) -> None:
    keep_three(desk, "norm")
    words = ("--align", align, "--data", "test.npz")
    averaged = desk.merge("norm", *words)
    recalibrated = desk.merge("norm", *words, "--recalibrate", "train.npz")
    repaired = desk.merge("norm", *words, "--recalibrate", "train.npz", "--repair")
    assert averaged["running_statistics"] == 2
    assert averaged["recalibration"] is None
    assert recalibrated["result"]["loss"] < averaged["result"]["loss"]
    assert repaired["result"]["loss"] < averaged["result"]["loss"]
    assert recalibrated["recalibration"].startswith("running statistics")
    assert repaired["recalibration"].startswith("REPAIR")


def test_without_data_a_batch_norm_network_is_merged_with_a_warning_and_a_command(desk: Desk) -> None:
    words = ("norm-0.safetensors", "norm-1.safetensors", "-m", "net.py:norm", *SHAPE, "-o", "out.safetensors")
    done = desk.run(*words)
    assert done.code == 0
    assert "warning: running statistics (2 layers) were averaged, and are invalid for merged weights" in done.err
    advice = done.out.splitlines()[-1]
    assert advice.startswith("next: rebasin merge norm-0.safetensors norm-1.safetensors ")
    assert advice.endswith("--recalibrate generated -o out.safetensors --force")


def permuted_copies(desk: Desk, count: int, seed: int, noise: float) -> dict[str, Tensor]:
    """Write so many permuted and noised copies of one network; returns the network."""
    original = desk.load("plain-0.safetensors")
    spec = spec_of(desk, "plain")
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        scale = {key: noise * float(value.std()) for key, value in original.items()}
        noised = {
            key: value + scale[key] * torch.randn(value.shape, generator=generator) for key, value in original.items()
        }
        desk.save(f"copy-{number}.safetensors", apply(spec, random(spec, 1000 * seed + number), noised))
    return original


@pytest.mark.parametrize("align", ALIGNS)
@pytest.mark.parametrize("seed", [1, 2])
def test_permuted_and_noised_copies_merge_back(desk: Desk, align: str, seed: int) -> None:
    original = permuted_copies(desk, 5, seed, 0.05)
    files = [f"copy-{number}.safetensors" for number in range(5)]
    done = desk.run(*files, "-m", "net.py:plain", *SHAPE, "--align", align, "-o", "out.safetensors", "--json")
    assert done.code == 0, done.out
    spec = spec_of(desk, "plain")
    back = apply(spec, random(spec, 1000 * seed), original)  # the original in the order of the first copy
    merged = desk.load("out.safetensors")
    for key, value in back.items():
        error = float((merged[key] - value).norm() / value.norm())
        assert error < 0.05 * 1.3 / 5**0.5 * max(1.0, float(value.std() * value.numel() ** 0.5 / value.norm())), key


def test_a_mixed_set_moves_the_strangers_only(desk: Desk) -> None:
    for number in range(3):
        desk.save(f"tuned-{number}.safetensors", fine_tuned(number).state_dict())
    files = ["tuned-0", "plain-1", "tuned-1", "tuned-2", "plain-2"]
    for align in ALIGNS:
        words = [*(f"{name}.safetensors" for name in files), "-m", "net.py:plain", *SHAPE, "--effort", "fast"]
        done = desk.run(*words, "--align", align, "-o", "o.safetensors", "--json", "-f")
        data = done.data
        assert [one["shares_base"] for one in data["inputs"]] == [True, False, True, True, False]
        assert [one["moved_units"] > 0 for one in data["inputs"]] == [False, True, False, False, True]
        distances = [one["distance"] for one in data["inputs"]]
        assert max(distances[0], distances[2], distances[3]) < min(distances[1], distances[4])


def test_those_that_share_a_base_move_together_to_a_stranger(desk: Desk) -> None:
    for number in range(2):
        desk.save(f"tuned-{number}.safetensors", fine_tuned(number).state_dict())
    words = ("plain-1.safetensors", "tuned-0.safetensors", "tuned-1.safetensors", "-m", "net.py:plain", *SHAPE)
    data = desk.run(*words, "-o", "o.safetensors", "--json").data
    first, *tuned = data["inputs"]
    assert first["moved_units"] == 0
    assert tuned[0]["moved_units"] == tuned[1]["moved_units"] > 0


def test_auto_takes_the_network_most_similar_to_all_others(desk: Desk) -> None:
    networks = [desk.load(f"plain-{number}.safetensors") for number in range(3)]
    middle = {key: (networks[0][key] + 0.0) for key in networks[0]}
    desk.save("x.safetensors", {key: middle[key] + 0.5 * networks[1][key] for key in middle})
    words = ("plain-0.safetensors", "plain-2.safetensors", "x.safetensors", "-m", "net.py:plain", *SHAPE)
    data = desk.run(*words, "--reference", "auto", "-o", "o.safetensors", "--json").data
    assert data["reference"] == "plain-0.safetensors"
    assert data["cycles"] >= 0
    named = desk.run(*words, "--reference", "plain-2.safetensors", "-o", "p.safetensors", "--json").data
    assert named["reference"] == "plain-2.safetensors"
    assert [one["moved_units"] > 0 for one in named["inputs"]] == [True, False, True]


def test_all_pairs_do_not_close_their_cycles_and_say_so(desk: Desk) -> None:
    (desk.path / "plain-4.safetensors").unlink()
    data = desk.merge("plain", "--reference", "auto")
    assert 0 < data["cycles"] <= 64


def test_fine_tunings_of_one_base_are_merged_as_mergekit_does(desk: Desk) -> None:
    for number in range(3):
        desk.save(f"tuned-{number}.safetensors", fine_tuned(number).state_dict())
    base, tuned = desk.load("plain-0.safetensors"), [desk.load(f"tuned-{number}.safetensors") for number in range(3)]
    files = [f"tuned-{number}.safetensors" for number in range(3)]
    words = (
        *files,
        "--base",
        "plain-0.safetensors",
        "-m",
        "net.py:plain",
        *SHAPE,
        "-o",
        "o.safetensors",
        "--json",
        "-f",
    )
    data = desk.run(*words, "--method", "task-arithmetic", "--weights", "0.4,0.4,0.4").data
    assert [one["moved_units"] for one in data["inputs"]] == [0, 0, 0]
    assert all(one["shares_base"] for one in data["inputs"])
    assert data["reference"] == "plain-0.safetensors"
    merged = desk.load("o.safetensors")
    for key, value in base.items():
        expected = value.double() + 0.4 * sum(one[key].double() - value.double() for one in tuned)
        assert torch.allclose(merged[key].double(), expected, atol=1e-6)


def test_lam_says_where_between_two_and_for_which_tensors(desk: Desk) -> None:
    words = ("plain-0.safetensors", "plain-1.safetensors", "-m", "net.py:plain", "--align", "none", "-o")
    assert desk.run(*words, "o.safetensors", "--lam", "0.25", "--lam", "1.*=1").code == 0
    a, b, merged = (desk.load(name) for name in ("plain-0.safetensors", "plain-1.safetensors", "o.safetensors"))
    assert torch.equal(merged["1.weight"], b["1.weight"])
    assert torch.allclose(merged["3.weight"], 0.75 * a["3.weight"] + 0.25 * b["3.weight"])


def test_a_greedy_soup_is_no_worse_than_its_best_network(desk: Desk) -> None:
    data = desk.merge("plain", "--method", "greedy-soup", "--data", "test.npz")
    best = max(end["accuracy"] for end in data["ends"])
    assert data["result"]["accuracy"] >= best
    assert sum(one["weight"] for one in data["inputs"]) == pytest.approx(1.0)


def test_a_recipe_gives_the_same_bytes_from_anywhere(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_three(desk, "norm")
    desk.merge("norm", "--align", "merge-many", "--recalibrate", "train.npz", "--repair", "--seed", "3")
    first = (desk.path / "out.safetensors").read_bytes()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in desk.path.glob("*.*"):
        shutil.move(file, moved / file.name)
    monkeypatch.chdir("/")
    again = moved / "again.safetensors"
    done = desk.run("--recipe", str(moved / "out.json"), "-o", str(again), "-q")
    assert done.code == 0, done.err
    assert again.read_bytes() == first
    recipes = [json.loads((moved / name).read_text()) for name in ("out.json", "again.json")]
    assert recipes[0] == recipes[1]


def test_a_recipe_refuses_an_input_that_changed_and_names_it(desk: Desk) -> None:
    desk.merge("plain", "--align", "reference")
    changed = desk.load("plain-2.safetensors")
    desk.save("plain-2.safetensors", {key: value + 1e-3 for key, value in changed.items()})
    done = desk.run("--recipe", "out.json", "-o", "again.safetensors")
    assert done.code == 3
    assert "plain-2.safetensors: not the file of the recipe" in done.err
    assert not (desk.path / "again.safetensors").exists()
    desk.save("plain-2.safetensors", changed)
    assert desk.run("--recipe", "out.json", "-o", "again.safetensors", "-q").code == 0
    (desk.path / "net.py").write_text((desk.path / "net.py").read_text() + "# changed\n")
    done = desk.run("--recipe", "out.json", "-o", "third.safetensors")
    assert (done.code, "net.py: changed since the recipe was written" in done.err) == (3, True)
    done = desk.run("--recipe", "out.json", "-o", "again.safetensors", "--method", "slerp")
    assert (done.code, "--method and --recipe cannot both be given" in done.err) == (2, True)


def test_the_same_command_gives_the_same_bytes(desk: Desk) -> None:
    keep_three(desk, "plain")
    found = []
    for name in ("one", "two"):
        desk.merge("plain", "--align", "cycle-consistent", out=f"{name}.safetensors")
        found.append((desk.path / f"{name}.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_dry_run_reads_no_tensor_and_says_the_cost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from rebasin_cli.execution.weights import Weights

    def refuse(self: Weights, key: str) -> Tensor:
        raise AssertionError(f"read {key}")

    monkeypatch.setattr(Weights, "__getitem__", refuse)
    for align in (*ALIGNS, "none"):
        data = desk.merge("plain", "--dry-run", "--align", align)
        assert data["out"] is None
        assert data["expected"]["memory_bytes"] > 0
        assert data["expected"]["out_bytes"] > (desk.path / "plain-0.safetensors").stat().st_size // 2
        assert (data["expected"]["seconds"] is None) == (align == "none")
    assert not (desk.path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plain-0.safetensors",), "merge needs at least two checkpoints"),
        ((), "merge needs at least two checkpoints"),
        (("A", "B", "--weights", "1,2,3"), "--weights has 3 numbers, and there are 2 checkpoints"),
        (("A", "B", "--weights", "1,-1"), "--weights sum to 0"),
        (("A", "B", "--weights", "1,x"), "'x' is not a number"),
        (("A", "B", "--method", "ties"), "--method ties needs the network that the checkpoints are fine-tunings of"),
        (("A", "B", "--method", "greedy-soup"), "--method greedy-soup chooses by held-out data"),
        (("A", "B", "--base", "C"), "--base has no effect with --method linear"),
        (("A", "B", "C", "--method", "slerp"), "--method slerp merges two checkpoints, and 3 are given"),
        (("A", "B", "C", "--lam", "0.5"), "--lam is for two checkpoints, and 3 are given"),
        (("A", "B", "--lam", "0.5", "--weights", "1,1"), "--lam and --weights cannot both be given"),
        (("A", "B", "--density", "0.5"), "--density has no effect with --method linear"),
        (("A", "B", "--repair"), "--repair needs data to measure on"),
        (("A", "B", "--reference", "C"), "--reference C: not one of the checkpoints"),
        (("A", "B", "--reference", "auto", "--align", "merge-many"), "--reference auto has no effect"),
        (("A", "B", "--match-method", "activation", "--align", "merge-many"), "is for --align reference"),
        (("A", "B", "--max-shard-size", "many"), "--max-shard-size many: not a size"),
    ],
)
def test_contradictions_are_refused_in_one_line(desk: Desk, words: tuple[str, ...], said: str) -> None:
    files = {"A": "plain-0.safetensors", "B": "plain-1.safetensors", "C": "plain-2.safetensors"}
    named = [
        files.get(word, word) if place != words.index(word) or words[place - 1] != "--reference" else word
        for place, word in enumerate(words)
    ]
    done = desk.run(*named, "-m", "net.py:plain", "-o", "o.safetensors")
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not (desk.path / "o.safetensors").exists()


def test_a_file_given_twice_is_noted(desk: Desk) -> None:
    words = ("plain-0.safetensors", "plain-0.safetensors", "-m", "net.py:plain", *SHAPE, "-o", "o.safetensors")
    done = desk.run(*words)
    assert "plain-0.safetensors is given twice" in done.err
    merged, original = desk.load("o.safetensors"), desk.load("plain-0.safetensors")
    assert all(torch.equal(value, original[key]) for key, value in merged.items())


def test_activations_match_pairs_to_the_reference(desk: Desk) -> None:
    data = desk.merge("plain", "--match-method", "activation", "--data", "test.npz")
    naive = desk.merge("plain", "--align", "none", "--data", "test.npz")
    assert data["settings"]["match_method"] == "activation"
    assert data["result"]["accuracy"] > naive["result"]["accuracy"] + 0.1


def test_the_function_of_the_library_does_the_same(desk: Desk) -> None:
    files = [desk.path / f"plain-{number}.safetensors" for number in range(3)]
    result = merge(files, model="net.py:plain", inputs=("2,1,8,8",), out=desk.path / "lib.safetensors")
    assert isinstance(result, MergeResult)
    assert result.out == desk.path / "lib.safetensors"
    known: dict[str, Any] = json.loads((desk.path / "lib.json").read_text())
    assert [one["sha256"] for one in known["inputs"]] == [one.sha256 for one in result.inputs]
    with pytest.raises(UsageError):
        merge(files[:1], model="net.py:plain", out=desk.path / "x.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("align", ALIGNS)
def test_two_processes_give_the_bytes_of_one_and_one_of_them_speaks(desk: Desk, align: str) -> None:
    import sys

    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    files = [f"plain-{number}.safetensors" for number in range(3)]
    words = (*files, "-m", "net.py:plain", *SHAPE, "--align", align, "--data", "test.npz", "--effort", "fast")
    one = desk.process(*words, "-o", "one.safetensors")
    two = desk.process(*words, "-o", "two.safetensors", launcher=torchrun)
    assert one.code == two.code == 0, two.err
    assert two.out.count("alignment ") == 1
    assert (desk.path / "one.safetensors").read_bytes() == (desk.path / "two.safetensors").read_bytes()
