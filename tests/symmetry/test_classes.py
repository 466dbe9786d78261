"""Symmetry classes: what is derived is what ought to be, holds by execution, and no larger class would."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.execution.class_check import narrowed
from rebasin_cli.freedom import ScaleFreedom, SymmetryClass
from rebasin_cli.model.example_input import as_example
from rebasin_cli.spec import AxisGroup, PermutationSpec
from tests.symmetry.class_ledger import GOLDEN, LIBRARIES, TRANSFORMERS, Entry, entry, names, summary
from tests.symmetry.small_zoo import zoo_names

_golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}

QUICK = [*zoo_names(), *(f"transformers/{name}" for name in TRANSFORMERS)]


def net(build: Callable[[], nn.Module], *shape: int) -> Entry:
    return Entry(
        lambda: build().eval(), as_example(torch.linspace(-1.0, 1.0, int(torch.tensor(shape).prod())).view(*shape))
    )


def group_of(spec: PermutationSpec, key: str, axis: int) -> AxisGroup:
    """The group without a parent that has a site on this axis of this tensor."""
    return next(
        group
        for group in spec.groups
        if group.parent is None and any((site.key, site.axis) == (key, axis) for site in group.sites)
    )


@pytest.mark.parametrize("name", QUICK)
def test_classes_are_those_of_the_ledger_and_hold_by_execution(name: str) -> None:
    if name.startswith("transformers/"):
        pytest.importorskip("transformers")
    model = entry(name)
    found = model.derive()
    assert summary(found.classified) == _golden[name], "deliberate? python -m tests.symmetry.class_ledger --write"
    check = model.check(found.classified, seed=5)
    assert check.ok, check
    permuted = [group.permuted() for group in found.classified.groups if group.symmetry.permutable]
    assert [group.name for group in permuted] == [group.name for group in found.spec.groups]


@pytest.mark.parametrize("name", LIBRARIES)
def test_classes_of_library_models_are_those_of_the_ledger(name: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    assert summary(entry(name).derive().classified) == _golden[name]


def test_the_ledger_has_no_other_models() -> None:
    assert list(_golden) == names()


def test_deriving_classes_leaves_the_permutations_as_they_are() -> None:
    found = entry("attention_packed").derive()
    before = json.dumps(found.spec.to_json())
    assert found.classified is not found.spec
    assert json.dumps(found.spec.to_json()) == before
    assert {group.symmetry for group in found.spec.groups} == {SymmetryClass.PERMUTATION}


def test_a_pre_norm_vision_transformer_has_a_rotating_stream_and_linear_heads() -> None:
    pytest.importorskip("transformers")
    spec = entry("transformers/vit").derive().classified
    stream = group_of(spec, "vit.embeddings.patch_embeddings.projection.weight", 0)
    assert stream.symmetry is SymmetryClass.ORTHOGONAL_ONES
    assert stream.class_reason is not None
    assert "LayerNorm at vit.layers.0.layernorm_before" in stream.class_reason
    assert stream.centred
    folded = {gauge.scale for gauge in stream.gauges}
    assert folded == {key for key in (site.key for site in stream.sites) if "layernorm" in key and "weight" in key}
    assert all(gauge.side == "read" and None not in gauge.biases for gauge in stream.gauges)
    heads = [group for group in spec.groups if group.parent is not None]
    assert {group.symmetry for group in heads} == {SymmetryClass.LINEAR}
    assert all({site.dual for site in group.sites} == {False, True} for group in heads)
    units = group_of(spec, "vit.layers.0.mlp.fc1.weight", 0)
    assert units.symmetry is SymmetryClass.PERMUTATION
    assert units.class_reason == "permutation: gelu at vit.layers.0.mlp.activation_fn"


def test_an_untied_decoder_has_planes_and_scales_on_the_linear_side_of_its_gates() -> None:
    pytest.importorskip("transformers")
    spec = entry("transformers/llama").derive().classified
    stream = group_of(spec, "model.embed_tokens.weight", 1)
    assert stream.symmetry is SymmetryClass.ORTHOGONAL
    assert len(stream.gauges) == 5
    units = group_of(spec, "model.layers.0.mlp.up_proj.weight", 0)
    (freedom,) = units.scales
    assert freedom.sign == "any"
    moved = {(units.sites[index].key.rpartition("mlp.")[2], power) for index, power in freedom.sites}
    assert moved == {("up_proj.weight", 1), ("down_proj.weight", -1)}
    planes = [group for group in spec.groups if group.symmetry is SymmetryClass.PLANES]
    assert len(planes) == 4  # two layers with two key heads
    for group in planes:
        assert group.pairing == "halves"
        query, key = (
            next(s for s in group.sites if s.key.endswith(name)) for name in ("q_proj.weight", "k_proj.weight")
        )
        assert (query.dual, key.dual, query.outer) == (True, False, 2)


@pytest.mark.parametrize(
    ("name", "key", "symmetry", "said"),
    [
        ("llama_tied", "model.embed_tokens.weight", SymmetryClass.SIGNED, "tied.*model.norm.weight"),
        ("gpt2", "transformer.wte.weight", SymmetryClass.PERMUTATION, "tied.*transformer.ln_f.weight"),
        ("bert", "bert.embeddings.word_embeddings.weight", SymmetryClass.PERMUTATION, "post-norm"),
        ("t5", "shared.weight", SymmetryClass.SIGNED, "tied"),
    ],
)
def test_a_stream_that_cannot_rotate_says_why(name: str, key: str, symmetry: SymmetryClass, said: str) -> None:
    pytest.importorskip("transformers")
    stream = group_of(entry(f"transformers/{name}").derive().classified, key, 1)
    assert stream.symmetry is symmetry
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(stream.class_reason)


class Factors(nn.Module):
    """A layer whose change is a product of low rank (Hu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.down, self.up = nn.Linear(5, 7), nn.Linear(5, 3, bias=False), nn.Linear(3, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.sigmoid(self.layer(x) + 0.5 * self.up(self.down(x)))
        return out


def mlp(function: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 6), function, nn.Linear(6, 3))


class Block(nn.Module):
    """Convolutions with BatchNorm and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((2, 5), (5, 6), (6, 5)))
        self.norms = nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(6), nn.BatchNorm2d(5)])
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        x = torch.relu(x + self.norms[2](self.second(torch.relu(self.norms[1](self.first(x))))))
        out: Tensor = self.last(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("model", "key", "symmetry", "signs"),
    [
        (net(mlp(nn.ReLU()), 2, 4), "0.weight", SymmetryClass.MONOMIAL, ["positive"]),
        (net(mlp(nn.LeakyReLU()), 2, 4), "0.weight", SymmetryClass.MONOMIAL, ["positive"]),
        (net(mlp(nn.Tanh()), 2, 4), "0.weight", SymmetryClass.SIGNED, ["sign"]),
        (net(mlp(nn.GELU()), 2, 4), "0.weight", SymmetryClass.PERMUTATION, []),
        (net(mlp(nn.Identity()), 2, 4), "0.weight", SymmetryClass.LINEAR, []),
        (net(Factors, 2, 5), "down.weight", SymmetryClass.LINEAR, []),
    ],
)
def test_a_hidden_layer_has_the_class_of_its_function(
    model: Entry, key: str, symmetry: SymmetryClass, signs: list[str]
) -> None:
    spec = model.derive().classified
    group = group_of(spec, key, 0)
    assert group.symmetry is symmetry
    assert [freedom.sign for freedom in group.scales] == signs
    assert model.check(spec).ok


def test_what_holds_of_batch_norm_in_eval_mode() -> None:
    """Before the norm any factor is absorbed by the running mean and the norm's scale; behind it ReLU passes positive
    ones; the running variance stays, as a constant is added to it."""
    model = net(Block, 2, 2, 5, 5)
    spec = model.derive().classified
    inner = group_of(spec, "first.weight", 0)
    assert inner.symmetry is SymmetryClass.MONOMIAL
    assert sorted(freedom.sign for freedom in inner.scales) == ["any", "positive"]
    absorbed = next(freedom for freedom in inner.scales if freedom.sign == "any")
    assert {(inner.sites[index].key, power) for index, power in absorbed.sites} == {
        ("first.weight", 1),
        ("first.bias", 1),
        ("norms.1.running_mean", 1),
        ("norms.1.weight", -1),
    }
    reached = {inner.sites[index].key for freedom in inner.scales for index, _ in freedom.sites}
    assert "norms.1.running_var" not in reached
    assert model.check(spec).ok


def _matrix(group: AxisGroup, symmetry: SymmetryClass) -> AxisGroup:
    """The group with a class of matrices: what is read along axis 1 is dual."""
    sites = tuple(replace(site, dual=site.axis == 1 and site.span == 1) for site in group.sites)
    return replace(group, sites=sites, symmetry=symmetry, scales=())


def _stream(spec: PermutationSpec) -> AxisGroup:
    return max((group for group in spec.groups if group.parent is None), key=lambda group: len(group.sites))


def _of_class(spec: PermutationSpec, symmetry: SymmetryClass) -> AxisGroup:
    return next(group for group in spec.groups if group.symmetry is symmetry)


def _relu_rotated(spec: PermutationSpec) -> AxisGroup:
    return _matrix(_of_class(spec, SymmetryClass.MONOMIAL), SymmetryClass.ORTHOGONAL)


def _relu_of_any_sign(spec: PermutationSpec) -> AxisGroup:
    group = _of_class(spec, SymmetryClass.MONOMIAL)
    return replace(group, scales=tuple(ScaleFreedom("any", freedom.sites) for freedom in group.scales))


def _gelu_signed(spec: PermutationSpec) -> AxisGroup:
    group = _of_class(spec, SymmetryClass.PERMUTATION)
    return replace(
        group,
        symmetry=SymmetryClass.SIGNED,
        scales=(ScaleFreedom("sign", tuple((place, 1) for place in range(len(group.sites)))),),
    )


def _stream_of(symmetry: SymmetryClass) -> Callable[[PermutationSpec], AxisGroup]:
    return lambda spec: replace(_stream(spec), symmetry=symmetry, centred=False)


def _stream_rotated(spec: PermutationSpec) -> AxisGroup:
    return _matrix(_stream(spec), SymmetryClass.ORTHOGONAL)


def _stream_without_gauges(spec: PermutationSpec) -> AxisGroup:
    return replace(_stream(spec), gauges=())


def _stream_centred(spec: PermutationSpec) -> AxisGroup:
    return replace(_stream(spec), centred=True)


def _heads_alike(spec: PermutationSpec) -> AxisGroup:
    group = _of_class(spec, SymmetryClass.LINEAR)
    return replace(group, sites=tuple(replace(site, dual=False) for site in group.sites))


def _planes_apart(spec: PermutationSpec) -> AxisGroup:
    """Numbers for q that do not undo those for k."""
    group = _of_class(spec, SymmetryClass.PLANES)
    return replace(group, sites=tuple(replace(site, dual=False) for site in group.sites))


def _planes_of_other_pairs(spec: PermutationSpec) -> AxisGroup:
    return replace(_of_class(spec, SymmetryClass.PLANES), pairing="adjacent")


def _planes_free(spec: PermutationSpec) -> AxisGroup:
    return replace(_of_class(spec, SymmetryClass.PLANES), symmetry=SymmetryClass.LINEAR, pairing=None)


def _planes_rotated(spec: PermutationSpec) -> AxisGroup:
    return replace(_of_class(spec, SymmetryClass.PLANES), symmetry=SymmetryClass.ORTHOGONAL, pairing=None)


def _tied_rotated(spec: PermutationSpec) -> AxisGroup:
    """As if the head were not tied: with the gauges of the untied network."""
    free, tied = _stream(entry("transformers/llama").derive().classified), _stream(spec)
    dual = {(site.key, site.axis) for site in free.sites if site.dual and site.key != "lm_head.weight"}
    place = {(site.key, site.axis): index for index, site in enumerate(tied.sites)}
    return replace(
        tied,
        symmetry=SymmetryClass.ORTHOGONAL,
        scales=(),
        sites=tuple(replace(site, dual=(site.key, site.axis) in dual) for site in tied.sites),
        gauges=tuple(
            replace(gauge, sites=tuple(place[free.sites[index].key, free.sites[index].axis] for index in gauge.sites))
            for gauge in free.gauges
        ),
    )


MUTATIONS: dict[str, tuple[str, Callable[[PermutationSpec], AxisGroup]]] = {
    "a rotation through ReLU": ("shared_linear", _relu_rotated),
    "signs through ReLU": ("shared_linear", _relu_of_any_sign),
    "signs through GELU": ("mlp_mixer", _gelu_signed),
    "a stream that does not fix the ones, with LayerNorm": ("attention_packed", _stream_of(SymmetryClass.ORTHOGONAL)),
    "a general linear stream, with LayerNorm": ("attention_packed", _stream_of(SymmetryClass.LINEAR)),
    "a general linear stream, with RMSNorm": ("transformers/llama", _stream_of(SymmetryClass.LINEAR)),
    "a rotated stream whose gains stay behind": ("transformers/llama", _stream_without_gauges),
    "a tied head behind a scale": ("transformers/llama_tied", _tied_rotated),
    "a rotated stream, post-norm": ("transformers/bert", _stream_rotated),
    "a rotated stream, tied behind LayerNorm": ("transformers/gpt2", _stream_rotated),
    "a rotated stream of patches, read by GELU": ("mlp_mixer", _stream_rotated),
    "a mean that some readers see": ("tied_embedding", _stream_centred),
    "heads whose readers are no inverse of their writers": ("attention_packed", _heads_alike),
    "two numbers for the planes of q and k": ("transformers/llama", _planes_apart),
    "planes of the other pairs": ("transformers/llama", _planes_of_other_pairs),
    "any map of q and k under a rotary embedding": ("transformers/llama", _planes_free),
    "any rotation of q and k under a rotary embedding": ("transformers/llama", _planes_rotated),
    "complex rotary embedding, any map": ("attention_rotary_complex", _planes_free),
    "rotation of q and k behind qk-norm": (
        "attention_qk_norm",
        lambda spec: _matrix(_of_class(spec, SymmetryClass.SIGNED), SymmetryClass.ORTHOGONAL),
    ),
    "an autoencoder's tied weights, rotated": (
        "tied_autoencoder",
        lambda spec: _matrix(_of_class(spec, SymmetryClass.SIGNED), SymmetryClass.ORTHOGONAL),
    ),
}


@pytest.mark.parametrize("claim", MUTATIONS)
def test_a_class_that_is_too_large_is_refused_and_narrowed(claim: str) -> None:
    name, change = MUTATIONS[claim]
    if name.startswith("transformers/"):
        pytest.importorskip("transformers")
    model = entry(name)
    spec = model.derive().classified
    wrong = change(spec)
    assert wrong != spec.by_name[wrong.name]
    claimed = PermutationSpec(tuple(wrong if group.name == wrong.name else group for group in spec.groups), spec.pinned)
    for seed in range(3):
        assert not model.check(claimed, seed).ok
    if claim in ("a rotation through ReLU", "planes of the other pairs", "a general linear stream, with LayerNorm"):
        smaller, broken = narrowed(claimed, lambda part: model.check(part).ok)
        assert broken == (() if "planes" in claim else (wrong.name,))
        assert model.check(smaller).ok
        kept = {group.name: group.symmetry for group in spec.groups if group.name != wrong.name}
        assert {name: smaller.by_name[name].symmetry for name in kept} == kept
