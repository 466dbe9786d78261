"""Files whose weights lie in parts, for a model that has them whole, and the reverse: what is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from rebasin_cli.checkpoint.computed_weights import explained
from rebasin_cli.errors import ModelError
from rebasin_cli.verbs.align import AlignOptions, run_align

NET = """
from torch import nn
from torch.nn.utils import parametrizations

def plain():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

def normed():
    net = plain()
    parametrizations.weight_norm(net[0])
    return net
"""


def _pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-any-return, no-untyped-call]


WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str]] = {
    "old weight norm": (weight_norm, "'0.weight_g' and '0.weight_v' (weight norm)", "remove_weight_norm"),
    "new weight norm": (
        parametrizations.weight_norm,
        "'0.parametrizations.weight.original0' and '0.parametrizations.weight.original1' (weight norm)",
        "remove_parametrizations",
    ),
    "pruned": (_pruned, "'0.weight_orig' and '0.weight_mask' (pruning)", "prune.remove"),
    "old spectral norm": (spectral_norm, "'0.weight_orig' and '0.weight_u' (spectral norm)", "remove_spectral_norm"),
    "new spectral norm": (
        parametrizations.spectral_norm,
        "'0.parametrizations.weight.original' and '0.parametrizations.weight.0._u' (spectral norm)",
        "remove_parametrizations",
    ),
    "orthogonal": (
        parametrizations.orthogonal,
        "'0.parametrizations.weight.original' (a parametrization)",
        "remove_parametrizations",
    ),
}


def _saved(path: Path, change: Callable[[nn.Module], nn.Module] | None, prefix: str = "") -> Path:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    if change is not None:
        change(net[0])
    torch.save({f"{prefix}{key}": value for key, value in net.state_dict().items()}, path)
    return path


def _refused(folder: Path, name: str, path: Path) -> ModelError:
    (folder / "net.py").write_text(NET)
    with pytest.raises(ModelError) as caught:
        run_align(AlignOptions(path, path, model=f"{folder / 'net.py'}:{name}", inputs=("2,5",), out=folder / "o.pt"))
    assert caught.value.exit_code == 4
    assert not (folder / "o.pt").exists()
    return caught.value


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("way", list(WAYS))
def test_a_plain_model_is_given_a_file_whose_weights_are_computed(tmp_path: Path, way: str, prefix: str) -> None:
    change, parts, undo = WAYS[way]
    error = _refused(tmp_path, "plain", _saved(tmp_path / "b.pt", change, prefix))
    assert f"'0.weight' lies in parts, as {parts.replace(chr(39) + '0.', chr(39) + prefix + '0.')}" in error.message
    assert "the model would have to compute it" in error.message
    assert error.hint is not None
    assert undo in error.hint


def test_a_model_with_weight_norm_is_given_a_plain_file(tmp_path: Path) -> None:
    error = _refused(tmp_path, "normed", _saved(tmp_path / "b.pt", None))
    assert "'0.weight' lies whole, and the model has it in parts" in error.message
    assert error.hint is not None
    assert "build the model without weight norm" in error.hint


def test_several_layers_are_counted() -> None:
    missing = [f"{layer}.weight" for layer in "abc"]
    found = explained(missing, [f"{layer}.weight_{part}" for layer in "abc" for part in "gv"])
    assert found is not None
    assert "'a.weight_g' and 'a.weight_v' (weight norm, and 2 more)" in found[0]


def test_other_missing_keys_are_not_explained() -> None:
    assert explained(["a.weight"], ["b.weight_g", "b.weight_v"]) is None
    assert explained(["a.weight"], ["a.weight_g"]) is None
    assert explained(["weight"], ["a_weight_orig"]) is None
