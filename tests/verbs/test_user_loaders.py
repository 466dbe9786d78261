"""Files that a user's module loads through its own hooks: each is aligned, and written so that it is loaded again."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.user_code import user_function
from rebasin_cli.verbs.align import AlignOptions, AlignResult, run_align
from rebasin_cli.verbs.apply import ApplyOptions, run_apply

NETS = textwrap.dedent(
    '''
    import torch
    from torch import nn
    from torch.nn.utils import parametrizations


    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 16)
            self.mid = nn.Linear(16, 16)
            self.out = nn.Linear(16, 3)

        def forward(self, x):
            return self.out(torch.relu(self.mid(torch.relu(self.fc(x)))))


    class Renamed(Base):
        """`first` was renamed to `fc`."""

        def __init__(self):
            super().__init__()
            self._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            for key in [key for key in tensors if key.startswith(prefix + "first.")]:
                tensors[prefix + "fc." + key.split(".")[-1]] = tensors.pop(key)


    class Concatenated(Base):
        """The rows of `fc` were in four layers."""

        def __init__(self):
            super().__init__()
            self.register_load_state_dict_pre_hook(self._old)

        def _old(self, module, tensors, prefix, *_):
            if prefix + "fc0.weight" in tensors:
                for name in ("weight", "bias"):
                    rows = [tensors.pop(f"{prefix}fc{i}.{name}") for i in range(4)]
                    tensors[f"{prefix}fc.{name}"] = torch.cat(rows)


    class Split(Base):
        """`fc` and `mid` were rows of one tensor; the columns of `fc` were padded."""

        def _load_from_state_dict(self, tensors, prefix, *rest):
            if prefix + "both" in tensors:
                first, second = tensors.pop(prefix + "both").split([16, 16])
                tensors[prefix + "fc.weight"] = first[:, :6]
                tensors[prefix + "mid.weight"] = second
            super()._load_from_state_dict(tensors, prefix, *rest)


    class Transposed(Base):
        """All weights were stored as (inputs, outputs), the square one too, under the names of today."""

        def __init__(self):
            super().__init__()
            for layer in (self.fc, self.mid, self.out):
                layer._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            tensors[prefix + "weight"] = tensors[prefix + "weight"].t()


    class Stacked(Base):
        """Weight and bias of a layer were the columns of one tensor, in half precision, in a buffer made before."""

        def load_state_dict(self, tensors, strict=True):
            new = {}
            for name in ("fc", "mid", "out"):
                layer, both = getattr(self, name), tensors[name]
                weight = torch.empty(layer.weight.shape)
                for row in range(len(weight)):
                    weight[row] = both[row, :-1]
                new[f"{name}.weight"], new[f"{name}.bias"] = weight, both[:, -1].clone()
            return super().load_state_dict(new, strict)


    class Wrapped(nn.Module):
        """The hook belongs to a part of the network."""

        def __init__(self):
            super().__init__()
            self.net = Renamed()

        def forward(self, x):
            return self.net(x)


    class Scaled(Base):
        """The file holds the weights times two."""

        def __init__(self):
            super().__init__()
            self._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            tensors[prefix + "mid.weight"] = tensors[prefix + "mid.weight"] / 2


    class Deciding(Base):
        """Only weights that are not zero are renamed."""

        def __init__(self):
            super().__init__()
            self._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            if prefix + "first.weight" in tensors and bool(tensors[prefix + "first.weight"].any()):
                for name in ("weight", "bias"):
                    tensors[f"{prefix}fc.{name}"] = tensors.pop(f"{prefix}first.{name}")


    class WithScale(Base):
        """`scale` came later; the hook gives older files ones."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((16,), 7.0))
            self._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            tensors.setdefault(prefix + "scale", torch.full((16,), 0.5))

        def forward(self, x):
            return self.out(torch.relu(self.mid(self.scale * torch.relu(self.fc(x)))))


    class Twice(Base):
        """Old files have one weight for two layers, which are different parameters now."""

        def __init__(self):
            super().__init__()
            self.mid = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
            self._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            for name in ("weight", "bias"):
                shared = tensors.pop(f"{prefix}mid.{name}")
                tensors[f"{prefix}mid.0.{name}"] = shared
                tensors[f"{prefix}mid.2.{name}"] = shared


    class Classes(Base):
        """The head was renamed from `classifier`."""

        def __init__(self, num_classes=3):
            super().__init__()
            self.out = nn.Linear(16, num_classes)
            self._register_load_state_dict_pre_hook(self._old)

        def _old(self, tensors, prefix, *_):
            for name in ("weight", "bias"):
                if f"{prefix}classifier.{name}" in tensors:
                    tensors[f"{prefix}out.{name}"] = tensors.pop(f"{prefix}classifier.{name}")


    class Normed(Base):
        def __init__(self):
            super().__init__()
            self.mid = parametrizations.weight_norm(self.mid)


    class OldNormed(Base):
        def __init__(self):
            super().__init__()
            self.mid = nn.utils.weight_norm(self.mid)


    class Spectral(Base):
        def __init__(self):
            super().__init__()
            self.mid = parametrizations.spectral_norm(self.mid)


    class OldSpectral(Base):
        def __init__(self):
            super().__init__()
            self.mid = nn.utils.spectral_norm(self.mid)
    '''
)

Tensors = dict[str, Tensor]


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETS)
    return tmp_path


def built(nets: Path, name: str) -> nn.Module:
    found = user_function(f"{nets / 'net.py'}:{name}")()
    assert isinstance(found, nn.Module)
    return found


def plain(seed: int) -> Tensors:
    torch.manual_seed(seed)
    sizes = {"fc": (16, 6), "mid": (16, 16), "out": (3, 16)}
    state = {f"{name}.weight": torch.randn(size) for name, size in sizes.items()}
    return state | {f"{name}.bias": torch.randn(size[0]) for name, size in sizes.items()}


def renamed(new: Tensors) -> Tensors:
    return {key.replace("fc.", "first."): value for key, value in new.items()}


def concatenated(new: Tensors) -> Tensors:
    rest = {key: value for key, value in new.items() if not key.startswith("fc.")}
    return rest | {
        f"fc{i}.{name}": rows.clone()
        for name in ("weight", "bias")
        for i, rows in enumerate(new[f"fc.{name}"].chunk(4))
    }


def split(new: Tensors) -> Tensors:
    padded = torch.cat([new["fc.weight"], torch.arange(160.0).view(16, 10)], 1)
    rest = {key: value for key, value in new.items() if key not in ("fc.weight", "mid.weight")}
    return rest | {"both": torch.cat([padded, new["mid.weight"]])}


def transposed(new: Tensors) -> Tensors:
    return {key: value.t().contiguous() if value.dim() == 2 else value for key, value in new.items()}


def stacked(new: Tensors) -> Tensors:
    return {
        name: torch.cat([new[f"{name}.weight"], new[f"{name}.bias"][:, None]], 1).half()
        for name in ("fc", "mid", "out")
    }


def wrapped(new: Tensors) -> Tensors:
    return {f"module.net.{key}": value for key, value in renamed(new).items()}


LAYOUTS = {
    "Renamed": renamed,
    "Concatenated": concatenated,
    "Split": split,
    "Transposed": transposed,
    "Stacked": stacked,
    "Wrapped": wrapped,
}


def aligned(nets: Path, name: str, a: Tensors, b: Tensors, **more: Any) -> AlignResult:
    torch.save(a, nets / "a.pt")
    torch.save(b, nets / "b.pt")
    model = f"{nets / 'net.py'}:{name}"
    options = AlignOptions(nets / "a.pt", nets / "b.pt", out=nets / "out.pt", model=model, inputs=("2,6",), **more)
    return run_align(options)


def function(nets: Path, name: str, file: Tensors) -> Tensor:
    """What the user's own code computes with a file, in float64."""
    net = built(nets, name)
    net.load_state_dict({key.removeprefix("module."): value for key, value in file.items()})
    torch.manual_seed(5)
    with torch.no_grad():
        return torch.as_tensor(net.double()(torch.randn(8, 6, dtype=torch.float64)))


def check_written(nets: Path, name: str, result: AlignResult) -> Tensors:
    """Same keys, shapes and dtypes as B's, the same function, and units that moved."""
    b, out = (torch.load(nets / f"{file}.pt") for file in ("b", "out"))
    assert {key: (value.shape, value.dtype) for key, value in out.items()} == {
        key: (value.shape, value.dtype) for key, value in b.items()
    }
    assert list(out) == list(b)
    assert result.moved_units > 8
    assert any(not torch.equal(out[key], b[key]) for key in b)
    expected = function(nets, name, b)
    assert expected.abs().max() > 1
    torch.testing.assert_close(function(nets, name, out), expected, rtol=1e-12, atol=1e-12)
    return dict(out)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_file_that_the_modules_hook_converts_is_aligned(nets: Path, name: str) -> None:
    layout = LAYOUTS[name]
    result = aligned(nets, name, layout(plain(0)), layout(plain(1)))
    check_written(nets, name, result)


@pytest.mark.parametrize("name", ["Renamed", "Concatenated", "Split"])
@pytest.mark.parametrize("older", ["a", "b"])
def test_an_old_file_and_a_new_one_are_aligned_with_each_other(nets: Path, name: str, older: str) -> None:
    layout = LAYOUTS[name]
    a, b = plain(0), plain(1)
    result = aligned(nets, name, layout(a) if older == "a" else a, layout(b) if older == "b" else b)
    found = check_written(nets, name, result)
    both_new = aligned(nets, name, a, b, force=True)
    assert result.distance == both_new.distance
    new = torch.load(nets / "out.pt")
    expected = layout(new) if older == "b" else new
    assert all(torch.equal(found[key], expected[key]) for key in expected if key != "both")


def test_a_permuted_copy_in_the_old_layout_comes_back_bit_for_bit(nets: Path) -> None:
    a = plain(0)
    order = torch.randperm(16)
    b = a | {
        "fc.weight": a["fc.weight"][order],
        "fc.bias": a["fc.bias"][order],
        "mid.weight": a["mid.weight"][:, order],
    }
    aligned(nets, "Transposed", transposed(a), transposed(b))
    out = torch.load(nets / "out.pt")
    assert all(torch.equal(out[key], value) for key, value in transposed(a).items())


def test_elements_that_the_loader_drops_stay_as_they_were(nets: Path) -> None:
    aligned(nets, "Split", split(plain(0)), split(plain(1)))
    assert torch.equal(torch.load(nets / "out.pt")["both"][:16, 6:], torch.arange(160.0).view(16, 10))


def test_the_number_of_classes_is_that_of_a_head_which_the_hook_renames(nets: Path) -> None:
    states = []
    for seed in (0, 1):
        state = plain(seed)
        torch.manual_seed(seed)
        state = {key: value for key, value in state.items() if not key.startswith("out.")}
        states.append(state | {"classifier.weight": torch.randn(7, 16), "classifier.bias": torch.randn(7)})
    result = aligned(nets, "Classes", *states)
    assert result.model_args == {"num_classes": 7}
    assert any("the checkpoint has 7 classes" in text for text in result.warnings)
    assert result.moved_units > 8
    written = torch.load(nets / "out.pt")
    assert {key: value.shape for key, value in written.items()} == {k: v.shape for k, v in states[1].items()}


def test_a_loader_that_computes_is_refused_with_the_tensor_and_the_operation(nets: Path) -> None:
    with pytest.raises(ModelError, match=r"computes 'mid\.weight' with aten\.div") as raised:
        aligned(nets, "Scaled", plain(0), plain(1))
    assert raised.value.exit_code == 4
    assert not (nets / "out.pt").exists()


def test_a_loader_that_asks_for_values_is_run_on_numbers(nets: Path) -> None:
    result = aligned(nets, "Deciding", renamed(plain(0)), renamed(plain(1)))
    check_written(nets, "Deciding", result)


def test_a_parameter_that_the_hook_makes_has_the_hooks_values(nets: Path) -> None:
    result = aligned(nets, "WithScale", plain(0), plain(1))
    check_written(nets, "WithScale", result)


def test_what_the_loader_makes_and_leaves_out_is_said(nets: Path) -> None:
    state = plain(1) | {"aux": torch.randn(3)}
    result = aligned(nets, "WithScale", plain(0), state, ignore_extra=True)
    assert any(note.endswith("does not use 'aux' and makes 'scale' itself") for note in result.warnings)


def test_a_parameter_that_nobody_makes_is_missing(nets: Path) -> None:
    a, b = renamed(plain(0)), renamed(plain(1))
    del b["mid.bias"]
    with pytest.raises(ModelError, match=r"missing key 'mid\.bias'"):
        aligned(nets, "Renamed", a, b)


def test_a_tensor_that_the_hook_leaves_out_is_named(nets: Path) -> None:
    a, b = renamed(plain(0)), renamed(plain(1)) | {"aux.weight": torch.randn(16, 6)}
    result = aligned(nets, "Renamed", a, b)
    assert any("the model does not have 'aux.weight'" in sentence for sentence in result.warnings)
    assert torch.equal(torch.load(nets / "out.pt")["aux.weight"], b["aux.weight"])
    with pytest.raises(ModelError, match=r"could read what is permuted: 'aux\.weight'"):
        aligned(nets, "Renamed", a, b, strict=True, force=True)


def test_a_tensor_that_is_read_into_two_layers_is_refused_where_they_would_differ(nets: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'mid\.(weight|bias)' is loaded into 'mid\.[02]\.\w+' and into another place"
    ):
        aligned(nets, "Twice", plain(0), plain(1))
    assert not (nets / "out.pt").exists()


CROSSED = [
    *(("Normed", a, b) for a, b in (("OldNormed", "Normed"), ("Normed", "OldNormed"), ("OldNormed", "OldNormed"))),
    ("OldNormed", "OldNormed", "Normed"),
    *(("Spectral", a, b) for a, b in (("OldSpectral", "Spectral"), ("Spectral", "OldSpectral"))),
    ("OldSpectral", "Spectral", "Spectral"),
]


@pytest.mark.parametrize(("model", "a", "b"), CROSSED)
def test_normed_weights_of_the_old_and_the_new_interface_are_aligned(nets: Path, model: str, a: str, b: str) -> None:
    states = []
    for seed, name in enumerate((a, b)):
        torch.manual_seed(seed)
        state = built(nets, name).state_dict()
        states.append({key: value if key.endswith(("_u", "_v")) else 3 * value for key, value in state.items()})
    result = aligned(nets, model, *states)
    assert result.moved_units > 8
    before, after = states[1], torch.load(nets / "out.pt")
    assert list(after) == list(before)
    expected = function(nets, b, before)
    torch.testing.assert_close(function(nets, b, after), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["of the alignment", "named"])
def test_saved_permutations_are_applied_to_a_file_of_the_old_layout(nets: Path, model: str) -> None:
    b = _saved_in_the_old_layout(nets)
    named = f"{nets / 'net.py'}:Concatenated" if model == "named" else None
    run_apply(ApplyOptions(nets / "perm.json", nets / "b.pt", nets / "applied.pt", model=named))
    out, applied = torch.load(nets / "out.pt"), torch.load(nets / "applied.pt")
    assert all(torch.equal(out[key], applied[key]) for key in b)


def test_permutations_of_new_files_are_applied_to_a_file_of_the_old_layout(nets: Path) -> None:
    aligned(nets, "Concatenated", plain(0), plain(1), save_permutations=nets / "perm.json")
    torch.save(concatenated(plain(1)), nets / "old.pt")
    run_apply(ApplyOptions(nets / "perm.json", nets / "old.pt", nets / "applied.pt"))
    expected = concatenated(torch.load(nets / "out.pt"))
    applied = torch.load(nets / "applied.pt")
    assert all(torch.equal(applied[key], expected[key]) for key in expected)


def test_an_alignment_that_was_moved_with_its_model_is_applied(
    nets: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _saved_in_the_old_layout(nets)
    place = tmp_path_factory.mktemp("moved") / "all"
    nets.rename(place)
    run_apply(ApplyOptions(place / "perm.json", place / "b.pt", place / "applied.pt"))
    assert torch.equal(torch.load(place / "out.pt")["fc1.bias"], torch.load(place / "applied.pt")["fc1.bias"])


@pytest.mark.parametrize(
    ("change", "said"), [("edited", "net.py has changed since .*perm.json"), ("removed", "net.py: no such file")]
)
def test_a_model_that_is_not_the_aligned_one_any_more_is_asked_for(nets: Path, change: str, said: str) -> None:
    _saved_in_the_old_layout(nets)
    (nets / "net.py").rename(nets / "moved.py")
    if change == "edited":
        (nets / "net.py").write_text(NETS + "\n# a comment\n")
    with pytest.raises(ModelError, match=said) as caught:
        run_apply(ApplyOptions(nets / "perm.json", nets / "b.pt", nets / "applied.pt"))
    assert "the model is needed" in caught.value.message
    assert caught.value.hint == "give the model that was aligned with --model"
    run_apply(
        ApplyOptions(nets / "perm.json", nets / "b.pt", nets / "applied.pt", model=f"{nets / 'moved.py'}:Concatenated")
    )
    assert torch.equal(torch.load(nets / "out.pt")["fc1.bias"], torch.load(nets / "applied.pt")["fc1.bias"])


def _saved_in_the_old_layout(nets: Path) -> Tensors:
    a, b = concatenated(plain(0)), concatenated(plain(1))
    aligned(nets, "Concatenated", a, b, save_permutations=nets / "perm.json")
    return b
