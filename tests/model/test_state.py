"""Tensors into modules: shapes, ties, no copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.state import load_state, parameter_keys, state_shapes, ties
from rebasin_cli.model.weightless import without_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.arange(5.0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.embed(ids))) + self.mask
        return out


def test_shapes_keys_and_ties_follow_the_state_dict() -> None:
    net = Net()
    assert list(state_shapes(net)) == list(net.state_dict())
    assert state_shapes(net)["norm.num_batches_tracked"] == ()
    assert "mask" not in state_shapes(net)
    assert ties(net) == {"head.weight": "embed.weight"}
    assert parameter_keys(net) == ("embed.weight", "norm.weight", "norm.bias")


def test_load_into_a_weightless_module_keeps_ties_and_memory() -> None:
    net = Net().eval()
    tensors = net.state_dict()
    tensors["head.weight"] = tensors["head.weight"].clone()  # a file format without ties holds it twice
    empty = without_weights(net)
    loaded = load_state(empty, tensors)
    assert loaded is empty
    assert empty.head.weight is empty.embed.weight
    assert empty.norm.weight.data_ptr() == net.norm.weight.data_ptr()
    ids = torch.tensor([0, 3, 4])
    with torch.no_grad():
        torch.testing.assert_close(empty(ids), net(ids), rtol=0, atol=0)


@pytest.mark.parametrize("dropped", ["head.weight", "embed.weight"])
def test_one_key_of_a_tie_is_enough(dropped: str) -> None:
    net = Net()
    tensors = {key: value for key, value in net.state_dict().items() if key != dropped}
    empty = load_state(without_weights(net), tensors)
    torch.testing.assert_close(empty.state_dict(), net.state_dict())


def test_memory_mapped_tensors_are_used_as_they_are(tmp_path: Path) -> None:
    net = nn.Linear(64, 64)
    file = tmp_path / "weights"
    file.write_bytes(net.weight.detach().numpy().tobytes())
    mapped = torch.from_file(str(file), shared=False, size=64 * 64).view(64, 64)
    empty = load_state(without_weights(net), {"weight": mapped, "bias": net.bias})
    assert empty.weight.data_ptr() == mapped.data_ptr()


def test_dtype_is_the_files_unless_cast() -> None:
    net = Net()
    halves = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    kept, cast = load_state(without_weights(net), halves), load_state(without_weights(net), halves, dtype=torch.float64)
    assert kept.norm.weight.dtype is torch.float16
    assert cast.norm.running_mean.dtype is torch.float64
    assert cast.norm.num_batches_tracked.dtype is torch.int64


def test_gradient_flags_of_the_caller_are_not_touched() -> None:
    net = nn.Linear(2, 2)
    given = {key: value.detach().clone() for key, value in net.state_dict().items()}
    load_state(without_weights(net), given)
    assert not any(tensor.requires_grad for tensor in given.values())


def test_what_does_not_fit_is_named() -> None:
    net = Net()
    tensors = net.state_dict()
    del tensors["norm.bias"]
    with pytest.raises(ModelError, match=r"lack the key norm\.bias"):
        load_state(without_weights(net), tensors)
    tensors = {**net.state_dict(), "norm.bias": torch.zeros(3)}
    with pytest.raises(ModelError, match=r"norm\.bias has shape \(3,\) where the model has \(4,\)"):
        load_state(without_weights(net), tensors)


def test_a_lazy_parameter_is_refused_with_advice() -> None:
    with pytest.raises(ModelError, match="lazy") as caught:
        state_shapes(nn.LazyLinear(3))
    assert "run the module once" in str(caught.value.hint)


def test_a_module_that_renames_its_state_is_refused_rather_than_half_loaded() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
            return dict(self.inner.state_dict(keep_vars=True))

    with pytest.raises(ModelError, match=r"inner\.weight of Hidden is under another key"):
        load_state(without_weights(Hidden()), Hidden().state_dict())


def test_a_class_with_its_own_way_of_loading_is_loaded() -> None:
    class Own(nn.Linear):
        def load_state_dict(self, state_dict: object, strict: bool = True) -> None:
            raise TypeError("called")

    net = Own(2, 2)
    torch.testing.assert_close(load_state(without_weights(net), net.state_dict()).state_dict(), net.state_dict())


def test_modules_that_insist_on_their_format_version_get_it() -> None:
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):  # type: ignore[no-untyped-def]
            if local_metadata.get("version") != 2:
                raise ValueError("version should be 2")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    net = nn.Sequential(Versioned(2, 3))
    tensors = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}
    assert load_state(without_weights(net), tensors)(torch.ones(1, 2)).tolist() == [[3.0, 3.0, 3.0]]
