"""Every torchvision model builds without weights and takes the input that is known for it."""

from __future__ import annotations

import pytest
import torch

from rebasin_cli.errors import ModelError
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.names import torchvision_names
from rebasin_cli.model.state import state_shapes
from rebasin_cli.model.torchvision_import import import_torchvision
from rebasin_cli.model.weightless import without_weights

DETECTION = ("rcnn", "retinanet", "ssd", "fcos")


def test_all_eighty_classification_models_are_named() -> None:
    models = import_torchvision("models")
    names = torchvision_names()
    classification = [name for name in models.list_models(module=models) if not name.startswith("quantized_")]
    assert len(classification) >= 80
    assert set(classification) <= set(names)
    assert not any(name.startswith("quantized") for name in names)
    assert {"raft_small", "r3d_18", "fcn_resnet50", "ssd300_vgg16"} <= set(names)


@pytest.mark.parametrize("name", torchvision_names())
def test_builds_without_weights_and_accepts_its_input(name: str) -> None:
    factory = load_factory(f"torchvision:{name}")
    module = factory.build_weightless()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())
    example = factory.example_input(module).to("meta")
    if any(word in name for word in DETECTION):  # their post-processing needs values
        assert example.args[0][0].shape == (3, 320, 320)
        return
    with torch.no_grad():
        without_weights(module, buffers=True)(*example.args, **example.kwargs)


def test_a_smaller_side_would_not_do_for_fixed_sizes() -> None:
    assert load_factory("torchvision:inception_v3").example_input().describe() == "1x3x299x299"
    vit = load_factory("torchvision:vit_b_16", {"image_size": 64})
    assert vit.example_input().describe() == "1x3x64x64"
    assert load_factory("torchvision:r3d_18").example_input().describe() == "1x3x8x112x112"
    assert load_factory("torchvision:raft_small").example_input().describe() == "1x3x128x128, 1x3x128x128"


def test_weightless_and_real_have_the_same_shapes_and_the_seed_decides() -> None:
    factory = load_factory("torchvision:squeezenet1_1", {"num_classes": 3})
    one, two = factory.build(), factory.build()
    assert state_shapes(one) == state_shapes(factory.build_weightless())
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    assert not one.training


def test_a_typo_is_answered_with_near_names() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'resnet5' in torchvision .*did you mean resnet50\b") as caught:
        load_factory("torchvision:resnet5")
    assert caught.value.exit_code == 4
    with pytest.raises(ModelError, match="did you mean vit_b_16"):
        load_factory("torchvision:ViT-B-16")


def test_quantized_models_are_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"torchvision:quantized_resnet18 is quantized") as caught:
        load_factory("torchvision:quantized_resnet18")
    assert "torchvision:resnet18" in str(caught.value.hint)


@pytest.mark.parametrize("argument", ["weights", "weights_backbone"])
def test_weights_are_never_downloaded(argument: str) -> None:
    with pytest.raises(ModelError, match=f"{argument}=DEFAULT would download weights"):
        load_factory("torchvision:fcn_resnet50", {argument: "DEFAULT"}).build_weightless()


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(ModelError, match=r"torchvision:resnet18 takes no argument 'num_clases'"):
        load_factory("torchvision:resnet18", {"num_clases": 10}).build_weightless()


CLASSES = ["resnet18", "vgg11", "googlenet", "vit_b_32", "fcn_resnet50", "s3d", "fasterrcnn_resnet50_fpn"]


@pytest.mark.parametrize("name", [*CLASSES, "retinanet_resnet50_fpn", "ssd300_vgg16"])
def test_the_class_count_is_taken_from_the_checkpoint(name: str) -> None:
    factory = load_factory(f"torchvision:{name}")
    shapes = state_shapes(factory.with_args(num_classes=13).build_weightless())
    adapted, sentence = factory.adapt_to({f"module.{key}": shape for key, shape in shapes.items()})
    assert adapted.args == {"num_classes": 13}
    assert sentence is not None
    assert "13 classes" in sentence
    assert state_shapes(adapted.build_weightless()) == shapes


@pytest.mark.parametrize(
    ("name", "switch"), [("googlenet", {"aux_logits": False}), ("fcn_resnet50", {"aux_loss": True})]
)
def test_auxiliary_heads_are_taken_from_the_checkpoint(name: str, switch: dict[str, bool]) -> None:
    factory = load_factory(f"torchvision:{name}")
    shapes = state_shapes(factory.with_args(num_classes=5, **switch).build_weightless())
    adapted, sentence = factory.adapt_to(shapes)
    assert adapted.args == {"num_classes": 5, **switch}
    assert sentence is not None
    assert "aux" in sentence
    assert "5 classes" in sentence
    short = {key: shape for key, shape in shapes.items() if "bias" not in key}  # not what a switch explains
    assert factory.adapt_to(short)[0].args.keys() <= {"num_classes"}
