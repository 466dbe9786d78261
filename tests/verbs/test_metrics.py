"""What a user of `metrics` did, and what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rebasin_cli import metrics
from rebasin_cli.cli.app import main
from rebasin_cli.errors import DataError, ModelError, NumericalError, OutputError, UsageError
from rebasin_cli.verbs.metrics import MetricsResult
from rebasin_cli.verbs.metrics_files import Journal
from tests.task_vectors.formulas import evaluate_directly

ROOT = Path(__file__).resolve().parents[2]
NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 5)
    )
"""
State = dict[str, Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 5)
    )


def tuned(base: State, seed: int) -> State:
    """A fine-tuning: the base, what all fine-tunings add, and what this one adds."""
    shared, own = (torch.Generator().manual_seed(number) for number in (1, seed))

    def step(value: Tensor) -> Tensor:
        return 0.05 * (torch.randn(value.shape, generator=shared) + torch.randn(value.shape, generator=own))

    steps = {key: step(value) for key, value in base.items() if value.is_floating_point()}
    return {key: value + steps[key] if key in steps else value for key, value in base.items()}


def permuted(state: State) -> State:
    """The units of both hidden layers in another order, written out by hand."""
    first = torch.randperm(40, generator=torch.Generator().manual_seed(8))
    second = torch.randperm(48, generator=torch.Generator().manual_seed(9))
    moved = {"0.weight": state["0.weight"][first], "0.bias": state["0.bias"][first]}
    moved["2.weight"] = state["2.weight"][second][:, first]
    for key in ("2.bias", "3.weight", "3.bias", "3.running_mean", "3.running_var"):
        moved[key] = state[key][second]
    moved["5.weight"] = state["5.weight"][:, second]
    return {key: moved.get(key, value).contiguous() for key, value in state.items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, three fine-tunings of it, permuted copies of the base and of two of them, a model, and data."""
    base = {key: value.clone() for key, value in network().state_dict().items()}
    states = {"base": base, **{name: tuned(base, seed) for seed, name in enumerate(("cars", "mnist", "dtd"), 3)}}
    states |= {f"{name}2": permuted(states[name]) for name in ("base", "mnist", "dtd")}
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    (tmp_path / "net.py").write_text(NET)
    draw = np.random.default_rng(0)
    for name in ("x", "y"):
        inputs, labels = draw.normal(size=(30, 12)).astype("float32"), draw.integers(0, 5, 30)
        np.savez(tmp_path / f"{name}.npz", x=inputs, y=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(name: str) -> State:
    from safetensors.torch import load_file

    found: State = load_file(f"{name}.safetensors")
    return found


def difference(name: str, base: str = "base") -> dict[str, np.ndarray[Any, Any]]:
    one, other = state(name), state(base)
    return {key: (one[key].double() - other[key].double()).numpy() for key in one if one[key].is_floating_point()}


TUNED = ("cars.safetensors", "mnist.safetensors", "dtd.safetensors")
MOVED = ("cars.safetensors", "mnist=mnist2.safetensors", "dtd=dtd2.safetensors")
OWN = ("mnist=base2.safetensors", "dtd=base2.safetensors")


def pairs_of(result: MetricsResult) -> dict[tuple[str, str], float | None]:
    return {(name, pair): value for name, found in result.metrics.items() for pair, value in found["pairs"].items()}


def test_every_pair_has_every_metric_of_its_formula(place: Path) -> None:
    result = metrics("base.safetensors", TUNED)
    assert result.datasets == ("cars", "mnist", "dtd")
    assert result.pairs == ("cars__mnist", "cars__dtd", "mnist__dtd")
    assert len(result.metrics) == 18
    for pair in result.pairs:
        a, b = pair.split("__")
        for name, wanted in evaluate_directly(difference(a), difference(b)).items():
            assert result.value(name, pair) == pytest.approx(wanted, rel=1e-6, abs=1e-6), (name, pair)
    matrix = result.metrics["spectral_gap"]["matrix"]
    assert [[cell is None for cell in row] for row in matrix] == [[True, False, False], [True, True, False], [True] * 3]
    assert matrix[0][2] == result.value("spectral_gap", "cars__dtd")


def test_metrics_of_aligned_networks_equal_those_of_the_unpermuted_ones(place: Path) -> None:
    plain = metrics("base.safetensors", TUNED, model="net.py:build", data=["x.npz"])
    apart = metrics("base.safetensors", MOVED, base_of=OWN, model="net.py:build", data=["x.npz"], out="apart.json")
    found = metrics(
        "base.safetensors",
        MOVED,
        base_of=OWN,
        model="net.py:build",
        align="reference",
        data=["x.npz"],
        out="aligned.json",
    )
    assert len(plain.metrics) == 28
    wanted = pairs_of(plain)
    for name, value in pairs_of(found).items():
        assert value == pytest.approx(wanted[name], rel=1e-5, abs=1e-5), name
    assert found.perm_matching
    assert [one.label for one in found.alignment] == ["mnist", "dtd"]
    assert all(one.moved_units > 60 and one.cosine["after"] > one.cosine["before"] for one in found.alignment)
    cosine = "task_vector_cosine_similarity"
    assert abs(apart.value(cosine, "cars__mnist") or 0) < 0.6 * (plain.value(cosine, "cars__mnist") or 0)
    assert apart.value(cosine, "mnist__dtd") == pytest.approx(plain.value(cosine, "mnist__dtd"), rel=1e-6)


def test_axis_groups_can_be_saved_read_and_pinned(place: Path) -> None:
    options: dict[str, Any] = {"base_of": OWN, "model": "net.py:build", "align": "reference", "force": True}
    whole = metrics("base.safetensors", MOVED, save_spec="groups.json", **options)
    again = metrics("base.safetensors", MOVED, spec="groups.json", **options)
    assert pairs_of(again) == pairs_of(whole)
    pinned = metrics("base.safetensors", MOVED, pins=["0.*"], **options)
    assert [one.units for one in pinned.alignment] == [48, 48]


def test_networks_of_one_base_are_not_moved(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["metrics", "base.safetensors", *TUNED, "--model", "net.py:build", "--perm-matching"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "nothing was permuted: all networks share one base" in shown.out
    data = json.loads((place / "base-metrics.json").read_text())["data"]
    assert data["perm_matching"] is True
    assert data["alignment"] == []
    unaligned = metrics("base.safetensors", TUNED, out="plain.json")
    assert {name: found["pairs"] for name, found in data["metrics"].items()} == {
        name: found["pairs"] for name, found in unaligned.metrics.items()
    }


def test_a_model_that_does_not_fit_falls_back_to_unaligned_vectors(place: Path) -> None:
    result = metrics("base.safetensors", TUNED, model="torchvision:resnet18", align="reference", layout="pairwise")
    assert not result.perm_matching
    assert result.fallback is not None
    assert "missing" in result.fallback
    assert result.out.name == "pairwise_metrics_3tasks_cars_mnist_dtd.json"
    plain = metrics("base.safetensors", TUNED)
    assert pairs_of(result) == pairs_of(plain)


def test_heads_of_other_sizes_are_left_out_and_named(place: Path) -> None:
    head = state("mnist")
    head["5.weight"], head["5.bias"] = torch.zeros(9, 48), torch.zeros(9)
    save_file({f"module.{key}": value for key, value in head.items()}, "mnist.safetensors")
    result = metrics("base.safetensors", TUNED)
    assert set(result.left_out) == {"5.weight", "5.bias"}
    assert any("5.weight" in warning for warning in result.warnings)
    bodies = [{k: v for k, v in difference(name).items() if not k.startswith("5.")} for name in ("cars", "dtd")]
    wanted = evaluate_directly(*bodies)
    assert result.value("stable_rank", "cars__dtd") == pytest.approx(wanted["stable_rank"], rel=1e-6)


def test_the_pairwise_layout_is_the_object_alone_and_grows(place: Path) -> None:
    one = metrics("base.safetensors", TUNED, metrics=["spectral_gap"], layout="pairwise", benchmark="N3")
    assert one.out == Path("pairwise_metrics_N3.json")
    document = json.loads(one.out.read_text())
    assert list(document)[:7] == [
        *("model_name", "datasets", "n_datasets", "layer_wise", "perm_matching", "fallback", "metrics")
    ]
    metrics("base.safetensors", TUNED, metrics=["stable_rank"], layout="pairwise", benchmark="N3", per_layer=True)
    grown = json.loads(one.out.read_text())["metrics"]
    assert list(grown) == ["spectral_gap", "stable_rank"]
    assert grown["spectral_gap"] == document["metrics"]["spectral_gap"]
    assert set(grown["stable_rank"]["per_layer"]["cars__mnist"]) == set(difference("cars"))
    with pytest.raises(OutputError, match="datasets"):
        metrics("base.safetensors", TUNED[:2], layout="pairwise", benchmark="N3")
    save_file(tuned(state("base"), 99), "dtd.safetensors")
    with pytest.raises(OutputError, match=r"another content of dtd\.safetensors"):
        metrics("base.safetensors", TUNED, layout="pairwise", benchmark="N3")


def test_the_name_of_the_pairwise_file_says_that_networks_were_aligned(place: Path) -> None:
    options: Mapping[str, Any] = {"model": "net.py:build", "metrics": ["stable_rank"], "layout": "pairwise"}
    result = metrics("base.safetensors", MOVED, base_of=OWN, perm_matching=True, **options)
    assert result.out == Path("pairwise_metrics_3tasks_cars_mnist_dtd_perm_matched.json")
    assert json.loads(result.out.read_text())["perm_matching"] is True


def test_each_matrix_of_each_task_vector_is_decomposed_once_for_all(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rebasin_cli.task_vectors import measure
    from rebasin_cli.task_vectors.decomposition import decompose

    seen: list[tuple[tuple[int, ...], bool]] = []

    def counted(matrix: Tensor, *, vectors: bool = True) -> Any:
        seen.append((tuple(matrix.shape), vectors))
        return decompose(matrix, vectors=vectors)

    monkeypatch.setattr(measure, "decompose", counted)
    metrics("base.safetensors", TUNED)
    assert sorted(seen) == sorted([((40, 12), True), ((48, 40), True), ((5, 48), True)] * 3)
    seen.clear()
    metrics("base.safetensors", TUNED, metrics=["singular_value_overlap", "stable_rank"], out="spectra.json")
    assert {vectors for _, vectors in seen} == {False}
    seen.clear()
    metrics("base.safetensors", TUNED, metrics=["layerwise_effective_rank"], out="layers.json")
    assert seen == []


def test_results_are_written_to_a_directory_that_is_made(place: Path) -> None:
    result = metrics("base.safetensors", TUNED, out="new/place/results.json", mkdir=True)
    assert result.out.exists()
    assert [path.name for path in result.out.parent.iterdir()] == ["results.json"]


class Stop(Exception):
    """Ends a run in its middle, as a signal does."""


def test_a_killed_run_is_resumed_and_gives_the_same_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = metrics("base.safetensors", TUNED, out="whole.json")
    add, kept = Journal.add, []

    def interrupted(self: Journal, part: Any) -> None:
        add(self, part)
        kept.append(part.key)
        if len(kept) == 4:
            raise Stop

    monkeypatch.setattr(Journal, "add", interrupted)
    with pytest.raises(Stop):
        metrics("base.safetensors", TUNED, out="half.json")
    monkeypatch.setattr(Journal, "add", add)
    journal = place / ".half.json.progress"
    journal.write_text(journal.read_text() + '{"key": "torn')
    measured: list[str] = []
    from rebasin_cli.task_vectors.measure import tensor_part as part_of
    from rebasin_cli.verbs import metrics_run

    def counted(vectors: Any, key: str, chosen: Any) -> Any:
        measured.append(key)
        return part_of(vectors, key, chosen)

    monkeypatch.setattr(metrics_run, "tensor_part", counted)
    resumed = metrics("base.safetensors", TUNED, out="half.json")
    assert resumed.resumed
    assert len(measured) == whole.tensors - 4
    assert not set(measured) & set(kept)
    assert pairs_of(resumed) == pairs_of(whole)
    assert sorted(path.name for path in place.glob(".half*")) == []


def test_a_run_that_is_killed_between_networks_runs_each_network_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"model": "net.py:build", "data": ["x.npz"]}
    whole = metrics("base.safetensors", TUNED, out="whole.json", **options)
    from rebasin_cli.verbs.metrics_data import NetworkData

    vectors = NetworkData._vectors
    ran: list[str] = []

    def interrupted(self: NetworkData, label: str, *rest: Any) -> Any:
        if len(ran) == 2 and label not in ran:
            ran.append("stopped")
            raise Stop
        ran.append(label)
        return vectors(self, label, *rest)

    monkeypatch.setattr(NetworkData, "_vectors", interrupted)
    with pytest.raises(Stop):
        metrics("base.safetensors", TUNED, out="half.json", **options)
    resumed = metrics("base.safetensors", TUNED, out="half.json", **options)
    assert ran == ["cars", "mnist", "stopped", "dtd"]
    assert pairs_of(resumed) == pairs_of(whole)
    assert sorted(path.name for path in place.glob(".half*")) == []


def test_the_same_run_writes_the_same_bytes_but_for_the_seconds(place: Path) -> None:
    texts = []
    for _ in range(2):
        metrics("base.safetensors", TUNED, model="net.py:build", data=["x.npz"], per_layer=True, force=True)
        document = json.loads(Path("base-metrics.json").read_text())
        assert set(document["data"].pop("seconds")) == {"read", "trace", "verify", "match", "measure", "total"}
        texts.append(json.dumps(document))
    assert texts[0] == texts[1]


def test_activations_of_a_named_module_are_those_that_it_returns(place: Path) -> None:
    result = metrics(
        *("base.safetensors", TUNED[:2]),
        model="net.py:build",
        data=["x.npz"],
        activation_layer="0",
        metrics=["activation_dot_product"],
    )
    x = torch.from_numpy(np.load("x.npz")["x"]).double()
    means = []
    for name in ("cars", "mnist"):
        weights = {key: value.double() for key, value in state(name).items()}
        means.append((x @ weights["0.weight"].T + weights["0.bias"]).mean(0))
    assert result.value("activation_dot_product", "cars__mnist") == pytest.approx(float(means[0] @ means[1]), rel=1e-5)


def test_a_journal_of_other_files_is_not_used(place: Path) -> None:
    journal = Journal(place / "x.json", {"sha256": {"a": "1"}})
    journal.close()
    assert (place / ".x.json.progress").exists()
    result = metrics("base.safetensors", TUNED, out="x.json")
    assert not result.resumed


def test_a_complete_run_is_read_and_another_one_is_refused(place: Path) -> None:
    first = metrics("base.safetensors", TUNED, per_layer=True)
    again = metrics("base.safetensors", TUNED, per_layer=True)
    assert again.resumed
    assert again.to_json() == json.loads(json.dumps(first.to_json(), default=str)) or pairs_of(again) == pairs_of(first)
    with pytest.raises(OutputError, match="another run"):
        metrics("base.safetensors", TUNED[:2])
    save_file(tuned(state("base"), 77), "dtd.safetensors")
    with pytest.raises(OutputError, match=r"another content of dtd\.safetensors"):
        metrics("base.safetensors", TUNED, per_layer=True)
    assert not metrics("base.safetensors", TUNED, per_layer=True, force=True).resumed


def test_activations_and_gradients_are_those_of_autograd(place: Path) -> None:
    result = metrics(
        "base.safetensors", TUNED[:2], model="net.py:build", data=["cars=x.npz", "mnist=y.npz"], batch_size=7
    )
    activations, weights, inputs = [], [], []
    for name, own in (("cars", "x"), ("mnist", "y")):
        net = network().eval()
        net.load_state_dict(state(name))
        every = torch.cat([torch.from_numpy(np.load(f"{data}.npz")["x"]) for data in ("x", "y")])
        activations.append(net[:5](every).mean(0).detach().double().numpy())  # type: ignore[index]
        with np.load(f"{own}.npz") as arrays:
            x, y = torch.from_numpy(arrays["x"]).requires_grad_(), torch.from_numpy(arrays["y"])
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        encoder = [(key, parameter) for key, parameter in net.named_parameters() if not key.startswith("5.")]
        grads = {key: parameter.grad for key, parameter in encoder}
        weights.append(torch.cat([grads[key].reshape(-1) for key in sorted(grads)]).double().numpy())  # type: ignore[union-attr]
        assert x.grad is not None
        inputs.append(x.grad.sum(0).double().numpy() / 1)
    for prefix, (a, b) in (("activation", activations), ("encoder_gradient", weights), ("input_gradient", inputs)):
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert result.value(f"{prefix}_cosine_similarity", "cars__mnist") == pytest.approx(cosine, abs=1e-5)
        distance = float(np.linalg.norm(a - b))
        assert result.value(f"{prefix}_l2_distance", "cars__mnist") == pytest.approx(distance, rel=1e-4)


def test_data_without_labels_give_activations_only(place: Path) -> None:
    np.savez("bare.npz", x=np.load("x.npz")["x"])
    result = metrics("base.safetensors", TUNED[:2], model="net.py:build", data=["bare.npz"])
    assert "activation_l2_distance" in result.metrics
    assert not any("gradient" in name for name in result.metrics)
    assert any("no labels" in warning for warning in result.warnings)
    with pytest.raises(DataError, match="needs labels"):
        metrics(
            "base.safetensors",
            TUNED[:2],
            model="net.py:build",
            data=["bare.npz"],
            metrics=["input_gradient_dot_product"],
            out="other.json",
        )


def test_a_checkpoint_of_another_base_is_pointed_out(place: Path) -> None:
    result = metrics("base.safetensors", ("cars.safetensors", "mnist2.safetensors"))
    assert any("mnist2 differs from its base" in warning for warning in result.warnings)
    assert not any("cars differs" in warning for warning in result.warnings)


def test_labels_come_from_names_and_are_made_unique(place: Path) -> None:
    for name in ("cars", "mnist"):
        (place / name / "final").mkdir(parents=True)
        save_file(state(name), place / name / "model.safetensors")
        save_file(state(name), place / name / "final" / "last.safetensors")
    by_directory = metrics("base.safetensors", ["cars/model.safetensors", "mnist/model.safetensors"], out="1.json")
    assert by_directory.datasets == ("cars", "mnist")
    files = ["cars/final/last.safetensors", "mnist/final/last.safetensors", "a=dtd.safetensors"]
    assert metrics("base.safetensors", files, out="2.json").datasets == ("final-last", "final-last-2", "a")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"finetuned": TUNED[:1]}, UsageError, "at least two"),
        ({"finetuned": ("a=cars.safetensors", "a=dtd.safetensors")}, UsageError, "two checkpoints have the label 'a'"),
        ({"metrics": ["stable_rnk"]}, UsageError, "did you mean stable_rank"),
        ({"metrics": ["activation_l2_distance"]}, UsageError, "needs data"),
        ({"align": "reference"}, UsageError, "needs a model"),
        ({"base_of": ["mnst=base.safetensors"]}, UsageError, "no checkpoint has this label"),
        ({"base_of": ["base.safetensors"]}, UsageError, "expected LABEL=PATH"),
        ({"model": "net.py:build", "data": ["cars=x.npz"]}, UsageError, "not for mnist"),
        ({"model": "net.py:build", "data": ["crs=x.npz", "mnist=y.npz"]}, UsageError, "no checkpoint has this label"),
        ({"max_passes": 3}, UsageError, "no effect"),
        ({"pins": ["0.*"]}, UsageError, "--pin has no effect"),
        ({"limit": 3}, UsageError, "no effect without data"),
        ({"model": "torchvision:resnt18"}, ModelError, "resnt18"),
        ({"out": "cars.safetensors"}, OutputError, "same file as the input"),
        ({"out": "net.py"}, OutputError, "exists"),
        ({"model": "net.py:build", "data": ["x.npz"], "activation_layer": "9"}, ModelError, "no such module"),
    ],
)
def test_a_mistake_is_one_line(place: Path, options: dict[str, Any], error: type[Exception], words: str) -> None:
    before = sorted(place.iterdir())
    with pytest.raises(error, match=words) as caught:
        metrics(**{"base": "base.safetensors", "finetuned": TUNED, **options})
    assert "\n" not in str(caught.value)
    assert sorted(path for path in place.iterdir() if path.name != "__pycache__") == before


def test_a_checkpoint_that_is_not_finite_is_refused(place: Path) -> None:
    bad = state("dtd")
    bad["5.bias"][1] = float("nan")
    save_file(bad, "dtd.safetensors")
    for model in (None, "net.py:build"):
        with pytest.raises(NumericalError, match="NaN"):
            metrics("base.safetensors", TUNED, model=model)


def test_half_precision_and_torch_files_are_measured_as_they_are(place: Path) -> None:
    for name in ("base", *("cars", "mnist")):
        torch.save(
            {"state_dict": {key: v.bfloat16() if v.is_floating_point() else v for key, v in state(name).items()}},
            f"{name}.pt",
        )
    result = metrics("base.pt", ["cars.pt", "mnist.pt"])
    loaded = [torch.load(f"{name}.pt")["state_dict"] for name in ("base", "cars", "mnist")]
    vectors = [
        {k: (one[k].double() - loaded[0][k].double()).numpy() for k in one if one[k].is_floating_point()}
        for one in loaded[1:]
    ]
    for name, wanted in evaluate_directly(*vectors).items():
        assert result.value(name, "cars__mnist") == pytest.approx(wanted, rel=1e-6, abs=1e-6), name


def test_the_picture_and_all_formats_are_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["metrics", "base.safetensors", *TUNED, "--force"]
    assert main([*words, "--plot", "map.svg", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "rebasin.metrics/1"
    assert document["data"]["n_datasets"] == 3
    picture = (place / "map.svg").read_text()
    assert picture.count("<rect") == 6
    assert "task_vector_cosine_similarity" in picture
    assert main([*words, "--plot", "map.png"]) == 0
    assert (place / "map.png").read_bytes().startswith(b"\x89PNG")
    for form in ("table", "csv", "md", "latex"):
        capsys.readouterr()
        assert main([*words, "--format", form]) == 0
        assert "stable" in capsys.readouterr().out
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr().out == "base-metrics.json\n"
    assert main([*words, "--plot", "map.txt"]) == 2


def test_a_run_can_be_repeated_from_its_configuration(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["metrics", "base.safetensors", *MOVED, "--model", "net.py:build", "--metrics", "stable_rank"]
    words += ["--base-of", OWN[0], "--base-of", OWN[1], "--perm-matching"]
    assert main([*words, "--print-config"]) == 0
    (place / "run.toml").write_text(capsys.readouterr().out)
    assert main(["metrics", "--config", "run.toml", "-q"]) == 0
    document = json.loads((place / "base-metrics.json").read_text())["data"]
    assert [one["label"] for one in document["alignment"]] == ["mnist", "dtd"]
    assert list(document["metrics"]) == ["stable_rank"]


def test_two_processes_give_the_numbers_of_one(place: Path) -> None:
    words = ["metrics", "base.safetensors", *TUNED, "--model", "net.py:build", "--data", "x.npz"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "rebasin_cli", *words, "-o", "two.json"),
        ],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("task vectors  ") == 1
    one = metrics("base.safetensors", TUNED, model="net.py:build", data=["x.npz"], out="one.json")
    two = json.loads((place / "two.json").read_text())["data"]
    for name, found in one.metrics.items():
        for pair, value in found["pairs"].items():
            assert two["metrics"][name]["pairs"][pair] == pytest.approx(value, rel=1e-9, abs=1e-12)
    weights = [name for name in one.metrics if "gradient" not in name and "activation" not in name]
    assert {name: two["metrics"][name]["pairs"] for name in weights} == {
        name: one.metrics[name]["pairs"] for name in weights
    }


def test_a_file_that_is_given_twice_and_one_without_a_change_are_reported(place: Path) -> None:
    found = metrics("base.safetensors", [TUNED[0], TUNED[0]], out="twice.json")
    assert any("are the same file" in said for said in found.warnings)
    found = metrics("base.safetensors", [TUNED[0], "base.safetensors"], out="still.json")
    assert any(said.startswith("base does not differ from its base") for said in found.warnings)
