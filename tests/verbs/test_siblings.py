"""What lies beside the weights in B's file: what follows them, what stays, what is said about it, what is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rebasin_cli import align, apply
from rebasin_cli.verbs.align import AlignResult
from tests.verbs.resuming import INPUT, assert_same_losses, furnish, moved, network, train

DTYPE = torch.float64


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save(_net(1).state_dict(), tmp_path / "a.pt")
    return tmp_path


def _net(seed: int, name: str = "convolutional") -> nn.Module:
    return network(Path.cwd(), name, seed=seed, dtype=DTYPE)


def _align(b: str, out: str = "out.pt", net: str = "convolutional", **more: Any) -> AlignResult:
    more = {"effort": "fast", "force": True, "inputs": INPUT[1:], **more}
    return align("a.pt", b, model=f"nets.py:{net}", out=out, **more)


def _same_function(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether two state dicts are different orders of the units of one function."""
    net = _net(9).eval()
    inputs = torch.randn(5, 2, 4, 4, dtype=DTYPE)
    net.load_state_dict(before)
    wanted = net(inputs)
    net.load_state_dict(after)
    return moved(before, after) > 5 and torch.allclose(net(inputs), wanted, rtol=1e-10, atol=1e-10)


def _kinds(result: AlignResult) -> dict[str, tuple[str, bool]]:
    return {one.path: (one.kind, one.moved) for one in result.siblings}


def test_an_ema_copy_in_a_dict_of_its_own(place: Path) -> None:
    torch.save({"state_dict": _net(2).state_dict(), "state_dict_ema": _net(3).state_dict(), "epoch": 1}, "b.pt")
    result = _align("b.pt")
    assert _kinds(result) == {"state_dict_ema": ("ema", True)}
    before, after = torch.load("b.pt"), torch.load("out.pt")
    assert _same_function(before["state_dict_ema"], after["state_dict_ema"])
    assert _same_function(before["state_dict"], after["state_dict"])


def test_the_raw_weights_move_with_the_ema_that_was_taken(place: Path) -> None:
    torch.save(
        {"model": _net(2).state_dict(), "model_ema": {"module." + k: v for k, v in _net(3).state_dict().items()}},
        "b.pt",
    )
    result = _align("b.pt", ema_b=True)
    assert _kinds(result) == {"model": ("copy", True)}
    assert _same_function(torch.load("b.pt")["model"], torch.load("out.pt")["model"])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("own", "other"), [("student", "teacher"), ("model", "ema_model"), ("net", "net_avg")])
def test_several_copies_by_prefix_in_one_flat_file(place: Path, own: str, other: str, suffix: str) -> None:
    both = {f"{own}.{k}": v for k, v in _net(2).state_dict().items()}
    both |= {f"{other}.{k}": v for k, v in _net(3).state_dict().items()}
    b, out = f"b.{suffix}", f"out.{suffix}"
    if suffix == "pt":
        torch.save(both, b)
    else:
        safetensors.torch.save_file(both, b)
    result = _align(b, out)
    assert [(one.path, one.moved) for one in result.siblings] in ([(other, True)], [(own, True)])
    after = torch.load(out) if suffix == "pt" else safetensors.torch.load_file(out)
    for prefix in (own, other):
        old, new = (
            {k[len(prefix) + 1 :]: v for k, v in d.items() if k.startswith(f"{prefix}.")} for d in (both, after)
        )
        assert _same_function(old, new), prefix


def test_the_names_without_dots_of_latent_diffusion(place: Path) -> None:
    flat = {f"model.{k}": v for k, v in _net(2).state_dict().items()}
    names = dict(_net(3).named_parameters())
    flat |= {"model_ema." + k.replace(".", ""): v.detach() for k, v in names.items()}
    torch.save({"state_dict": {**flat, "model_ema.decay": torch.tensor(0.9)}}, "b.pt")
    assert _kinds(_align("b.pt")) == {"model_ema": ("ema", True)}
    after = torch.load("out.pt")["state_dict"]
    rest = {k: v for k, v in _net(3).state_dict().items() if k not in names}
    old = {k: v.detach() for k, v in names.items()} | rest
    new = {k: after["model_ema." + k.replace(".", "")] for k in names}
    assert moved({k: old[k] for k in names}, new) > 5
    assert sorted(map(float, new["head.bias"])) == sorted(map(float, old["head.bias"]))


def test_a_list_in_the_order_of_the_parameters_as_torch_ema_keeps_it(place: Path) -> None:
    net = _net(2)
    shadow = [p.detach() * 0.5 for p in net.parameters()]
    ema = {"decay": 0.9, "num_updates": 3, "shadow_params": shadow, "collected_params": None}
    torch.save({"model": net.state_dict(), "ema": ema}, "b.pt")
    assert _kinds(_align("b.pt")) == {"ema.shadow_params": ("ema", True)}
    after = torch.load("out.pt")
    names = [name for name, _ in net.named_parameters()]
    for name, value in zip(names, after["ema"]["shadow_params"], strict=True):
        assert torch.equal(value, after["model"][name] * 0.5), name


def test_gradients_and_master_weights(place: Path) -> None:
    net = _net(2)
    gradients = {name: p.detach() * 2 for name, p in net.named_parameters() if name.startswith("conv")}
    masters = [
        [p.detach() * 3 for p in net.parameters() if p.dim() > 1],
        [p.detach() * 3 for p in net.parameters() if p.dim() < 2],
    ]
    torch.save({"model": net.state_dict(), "grads": gradients, "optimizer": {"fp32_from_fp16": masters}}, "b.pt")
    kinds = _kinds(_align("b.pt"))
    assert kinds == {"grads": ("gradients", True), "optimizer.fp32_from_fp16": ("master weights", True)}
    after = torch.load("out.pt")
    for name, value in after["grads"].items():
        assert torch.equal(value, after["model"][name] * 2)
    names = [n for n, p in net.named_parameters() if p.dim() > 1], [n for n, p in net.named_parameters() if p.dim() < 2]
    for group, values in zip(names, after["optimizer"]["fp32_from_fp16"], strict=True):
        for name, value in zip(group, values, strict=True):
            assert torch.equal(value, after["model"][name] * 3), name


def _with_optimizer(
    groups: Callable[[nn.Module], Any], make: Any = torch.optim.AdamW, net: str = "convolutional"
) -> nn.Module:
    model = _net(2, net)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3)
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "b.pt")
    return model


def _moments_match(names: list[str]) -> None:
    """Where a momentum was the gradient's, its largest entry lies where the permuted one's does."""
    before, after = torch.load("b.pt"), torch.load("out.pt")
    for number, name in enumerate(names):
        for kind in ("exp_avg", "exp_avg_sq"):
            old = before["optimizer"]["state"][number][kind]
            new = after["optimizer"]["state"][number][kind]
            pairs_before = sorted(zip(before["model"][name].flatten().tolist(), old.flatten().tolist(), strict=True))
            pairs_after = sorted(zip(after["model"][name].flatten().tolist(), new.flatten().tolist(), strict=True))
            assert pairs_before == pairs_after, (name, kind)


@pytest.mark.parametrize("net", ["convolutional", "attentive"])
def test_groups_with_and_without_weight_decay(place: Path, net: str) -> None:
    torch.save(_net(1, net).state_dict(), "a.pt")
    model = _with_optimizer(
        lambda m: [
            {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        net=net,
    )
    result = _align("b.pt", net=net)
    assert _kinds(result) == {"optimizer": ("optimizer", True)}
    names = [n for n, p in model.named_parameters() if p.dim() > 1] + [
        n for n, p in model.named_parameters() if p.dim() < 2
    ]
    _moments_match(names)


def test_groups_whose_order_shapes_do_not_tell_are_named_and_left(place: Path) -> None:
    torch.save(_net(1, "attentive").state_dict(), "a.pt")
    _with_optimizer(
        lambda m: [
            {"params": [p for n, p in m.named_parameters() if "blocks.1" in n]},
            {"params": [p for n, p in m.named_parameters() if "blocks.1" not in n]},
        ],
        net="attentive",
    )
    result = _align("b.pt", net="attentive")
    assert _kinds(result) == {"optimizer": ("optimizer", False)}
    assert any("optimizer" in text and "resuming" in text for text in result.warnings)
    before, after = torch.load("b.pt")["optimizer"], torch.load("out.pt")["optimizer"]
    assert all(torch.equal(before["state"][n]["exp_avg"], after["state"][n]["exp_avg"]) for n in before["state"])


def test_the_same_groups_with_their_names(place: Path) -> None:
    torch.save(_net(1, "attentive").state_dict(), "a.pt")
    model = _with_optimizer(
        lambda m: [
            {"params": [(n, p) for n, p in m.named_parameters() if "blocks.1" in n]},
            {"params": [(n, p) for n, p in m.named_parameters() if "blocks.1" not in n]},
        ],
        net="attentive",
    )
    assert _kinds(_align("b.pt", net="attentive")) == {"optimizer": ("optimizer", True)}
    names = [n for n, _ in model.named_parameters()]
    _moments_match([n for n in names if "blocks.1" in n] + [n for n in names if "blocks.1" not in n])


def test_an_optimizer_of_the_parameters_that_were_not_frozen(place: Path) -> None:
    model = _with_optimizer(lambda m: [p for n, p in m.named_parameters() if n.startswith(("hidden", "head"))])
    assert _kinds(_align("b.pt")) == {"optimizer": ("optimizer", True)}
    _moments_match([n for n, _ in model.named_parameters() if n.startswith(("hidden", "head"))])


def test_an_eight_bit_state_is_named_and_left(place: Path) -> None:
    net = _net(2)
    state = {
        place: {
            "step": 1,
            "state1": torch.zeros(p.shape, dtype=torch.uint8),
            "absmax1": torch.ones(7),
            "qmap1": torch.ones(256),
        }
        for place, p in enumerate(net.parameters())
    }
    groups = [{"lr": 0.1, "params": list(state)}]
    torch.save({"model": net.state_dict(), "optimizer": {"state": state, "param_groups": groups}}, "b.pt")
    result = _align("b.pt")
    assert _kinds(result) == {"optimizer": ("optimizer", False)}
    assert any("absmax1" in text and "resuming" in text for text in result.warnings)


def test_preconditioners_of_a_square_matrix_are_not_taken_for_its_moments(place: Path) -> None:
    net = _net(2)
    state = {
        place: {"step": 1, "momentum_buffer": torch.zeros(p.shape), "precond_0": torch.eye(p.shape[0])}
        for place, p in enumerate(net.parameters())
    }
    groups = [{"lr": 0.1, "params": list(state)}]
    torch.save({"model": net.state_dict(), "optimizer": {"state": state, "param_groups": groups}}, "b.pt")
    assert _kinds(_align("b.pt")) == {"optimizer": ("optimizer", False)}


def test_the_other_network_of_a_gan_stays(place: Path) -> None:
    generator, critic = _net(2), nn.Sequential(nn.Conv2d(2, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 1)).to(DTYPE)
    one, two = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
    train(generator, one)
    critic(torch.ones(3, 2, 4, 4, dtype=DTYPE)).sum().backward()
    two.step()
    torch.save(
        {
            "generator": generator.state_dict(),
            "discriminator": critic.state_dict(),
            "opt_g": one.state_dict(),
            "opt_d": two.state_dict(),
        },
        "b.pt",
    )
    result = _align("b.pt", key_b="generator")
    assert _kinds(result) == {
        "discriminator": ("network", False),
        "opt_g": ("optimizer", True),
        "opt_d": ("optimizer", False),
    }
    assert result.warnings == ()
    before, after = torch.load("b.pt"), torch.load("out.pt")
    assert not moved(before["discriminator"], after["discriminator"])


def test_the_other_network_of_a_gan_stays_though_it_has_the_same_shapes(place: Path) -> None:
    nets = _net(2), _net(3)
    optimizers = [torch.optim.Adam(net.parameters()) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer)
    names = ("generator", "discriminator", "optimizer_G", "optimizer_D")
    torch.save(dict(zip(names, [one.state_dict() for one in (*nets, *optimizers)], strict=True)), "b.pt")
    result = _align("b.pt", key_b="generator")
    assert {path: one[1] for path, one in _kinds(result).items()} == {
        "discriminator": False,
        "optimizer_G": True,
        "optimizer_D": False,
    }
    before, after = torch.load("b.pt"), torch.load("out.pt")
    assert not moved(before["discriminator"], after["discriminator"])
    assert torch.equal(before["optimizer_D"]["state"][0]["exp_avg"], after["optimizer_D"]["state"][0]["exp_avg"])
    assert not torch.equal(before["optimizer_G"]["state"][0]["exp_avg"], after["optimizer_G"]["state"][0]["exp_avg"])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_weights_alone(place: Path, suffix: str) -> None:
    b, out = f"b.{suffix}", f"out.{suffix}"
    if suffix == "pt":
        _with_optimizer(lambda m: m.parameters())
        weights = torch.load(b)["model"]
    else:
        weights = {f"model.{k}": v for k, v in _net(2).state_dict().items()}
        safetensors.torch.save_file({**weights, **{f"model_ema.{k[6:]}": v * 1 for k, v in weights.items()}}, b)
    result = _align(b, out, drop_siblings=True)
    assert [(one.moved, one.dropped, one.reason) for one in result.siblings] == [(False, True, None)]
    after = torch.load(out) if suffix == "pt" else safetensors.torch.load_file(out)
    assert sorted(after) == sorted(weights)
    assert _same_function(*({k.removeprefix("model."): v for k, v in d.items()} for d in (weights, after)))
    names = {one.name for one in place.iterdir()}
    assert names - {"__pycache__"} == {"a.pt", b, out, "out.json", "nets.py"}


def test_a_file_of_torch_before_version_1_6(place: Path) -> None:
    _with_optimizer(lambda m: m.parameters())
    torch.save(torch.load("b.pt"), "b.pt", _use_new_zipfile_serialization=False)
    assert _kinds(_align("b.pt")) == {"optimizer": ("optimizer", True)}
    _moments_match([name for name, _ in _net(2).named_parameters()])


def test_apply_moves_what_lies_beside_too(place: Path) -> None:
    _with_optimizer(lambda m: m.parameters())
    _align("b.pt", save_permutations="p.json")
    result = apply("p.json", "b.pt", "applied.pt", force=True)
    assert [(one.path, one.moved) for one in result.siblings] == [("optimizer", True)]
    assert Path("applied.pt").read_bytes()[:1000] == Path("out.pt").read_bytes()[:1000]
    wanted, found = torch.load("out.pt")["optimizer"]["state"], torch.load("applied.pt")["optimizer"]["state"]
    assert all(torch.equal(wanted[n]["exp_avg"], found[n]["exp_avg"]) for n in wanted)


def test_an_alignment_of_an_earlier_version_says_that_the_optimizer_stays(place: Path) -> None:
    import json

    _with_optimizer(lambda m: m.parameters())
    _align("b.pt", save_permutations="p.json")
    document = json.loads(Path("p.json").read_text())
    del document["parameters"]
    Path("p.json").write_text(json.dumps(document))
    result = apply("p.json", "b.pt", "applied.pt", force=True)
    assert [(one.path, one.moved) for one in result.siblings] == [("optimizer", False)]
    assert any("resuming" in text for text in result.warnings)


@pytest.fixture
def trained(place: Path) -> Path:
    """The directory that a Trainer writes: the weights, the optimizer in a file of its own, its arguments."""
    folder = place / "checkpoint-500"
    folder.mkdir()
    model = _net(2)
    train(model, _two_groups(model))
    optimizer = _two_groups(model)
    train(model, optimizer)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"last_epoch": 3}, folder / "scheduler.pt")
    return folder


def _two_groups(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=1e-3)


def _resumed(folder: Path) -> list[float]:
    model = _net(3)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    optimizer = _two_groups(model)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
    return train(model, optimizer)


def test_training_goes_on_from_a_trainers_directory(trained: Path) -> None:
    result = _align(str(trained), "out")
    assert _kinds(result) == {"optimizer.pt": ("optimizer", True)}
    before = safetensors.torch.load_file(trained / "model.safetensors")
    assert moved(before, safetensors.torch.load_file("out/model.safetensors")) > 5
    assert_same_losses(_resumed(Path("out")), _resumed(trained), DTYPE)
    assert Path("out/scheduler.pt").read_bytes() == (trained / "scheduler.pt").read_bytes()


def test_a_trainers_directory_without_its_optimizer(trained: Path) -> None:
    result = _align(str(trained), "out", drop_siblings=True)
    assert [(one.path, one.dropped) for one in result.siblings] == [("optimizer.pt", True)]
    assert sorted(path.name for path in Path("out").iterdir()) == ["model.safetensors", "scheduler.pt"]


def _sharded(folder: Path, *, ema: bool) -> dict[str, Tensor]:
    """A network of double precision in two shards, with an average under another prefix in the same index."""
    folder.mkdir()
    state = {f"model.{key}": value for key, value in _net(3).state_dict().items()}
    if ema:
        state |= {f"ema.{key}": value for key, value in _net(4).state_dict().items()}
    names = sorted(state)
    where = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(names)}
    for shard in sorted(set(where.values())):
        safetensors.torch.save_file({key: state[key].clone() for key in names if where[key] == shard}, folder / shard)
    index = {"metadata": {"total_size": sum(value.nbytes for value in state.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return state


def _read_shards(index: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    document = json.loads(index.read_text())
    tensors: dict[str, Tensor] = {}
    for shard in set(document["weight_map"].values()):
        tensors |= safetensors.torch.load_file(index.with_name(shard))
    assert set(tensors) == set(document["weight_map"])
    return document, tensors


@pytest.mark.parametrize("given", ["index", "directory"])
@pytest.mark.parametrize("ema", [True, False])
def test_a_sharded_checkpoint_without_the_average_that_lies_in_it(place: Path, given: str, ema: bool) -> None:
    state = _sharded(place / "b", ema=ema)
    index = "model.safetensors.index.json"
    b, out = (f"b/{index}", f"alone.{index}") if given == "index" else ("b", "alone")
    result = _align(b, out, drop_siblings=True)
    assert [(one.path, one.dropped) for one in result.siblings] == ([("ema", True)] if ema else [])
    document, tensors = _read_shards(Path(out) if given == "index" else Path(out, index))
    weights = {key: value for key, value in state.items() if key.startswith("model.")}
    assert set(tensors) == set(weights)
    assert document["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())
    before, after = ({key.removeprefix("model."): one[key] for key in weights} for one in (weights, tensors))
    assert _same_function(before, after)


def test_an_optimizer_that_no_parameter_explains_is_named(trained: Path) -> None:
    state = torch.load(trained / "optimizer.pt")
    for entry in state["state"].values():
        entry["exp_avg"] = entry["exp_avg"].reshape(-1)  # as a flat, sharded optimizer saves it
    torch.save(state, trained / "optimizer.pt")
    result = _align(str(trained), "out")
    assert _kinds(result) == {"optimizer.pt": ("optimizer", False)}
    assert any("resuming" in text for text in result.warnings)


def test_an_optimizer_that_cannot_be_read_is_left_out_and_named(trained: Path) -> None:
    (trained / "optimizer.pt").write_bytes(b"no pickle")
    result = _align(str(trained), "out")
    assert not Path("out/optimizer.pt").exists()
    assert any("optimizer.pt" in text for text in result.warnings)


def test_another_format_has_the_weights_alone_and_says_so(place: Path) -> None:
    model = _net(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "b.pt")
    result = _align("b.pt", "out.safetensors")
    assert [(one.path, one.dropped) for one in result.siblings] == [("optimizer", True)]
    assert safetensors.torch.load_file("out.safetensors").keys() == model.state_dict().keys()


def test_a_file_for_a_directory_has_the_weights_alone(trained: Path) -> None:
    result = _align(str(trained), "out.safetensors")
    assert [(one.path, one.dropped) for one in result.siblings] == [("optimizer.pt", True)]
    assert Path("out.safetensors").is_file()
