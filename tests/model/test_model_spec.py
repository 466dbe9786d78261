"""`--model` and `--model-arg` as text."""

from __future__ import annotations

import pytest

from rebasin_cli.errors import ModelError, UsageError
from rebasin_cli.model.model_spec import ModelSpec, parse_model_args, parse_model_spec


@pytest.mark.parametrize(
    ("text", "kind", "target", "attribute"),
    [
        ("torchvision:resnet50", "torchvision", "resnet50", ""),
        ("timm:vit_tiny_patch16_224.augreg_in21k", "timm", "vit_tiny_patch16_224.augreg_in21k", ""),
        ("transformers:/models/a:b", "transformers", "/models/a:b", ""),
        ("nets/net.py:make", "file", "nets/net.py", "make"),
        ("net.py:Nets.small", "file", "net.py", "Nets.small"),
        (r"C:\nets\net.py:make", "file", r"C:\nets\net.py", "make"),
        ("package.module:make", "module", "package.module", "make"),
    ],
)
def test_the_forms(text: str, kind: str, target: str, attribute: str) -> None:
    assert parse_model_spec(text) == ModelSpec(text, kind, target, attribute)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet50", "did you mean torchvision:resnet50"),
        ("net.py", r"name the callable too, as in net\.py:make_model"),
        ("torchvision:", "name the model too"),
        ("torchvison:resnet-50", "did you mean torchvision"),
        ("", "not a model spec"),
        ("a b:c", "not a model spec"),
    ],
)
def test_other_texts_are_refused_with_a_guess(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_model_spec(text)


def test_arguments_are_json_or_text() -> None:
    items = ["a=10", "b=1.5", "c=true", "d=null", "e=[1, 2]", "f=ten", 'g="10"', "h=x=y"]
    expected = {"a": 10, "b": 1.5, "c": True, "d": None, "e": [1, 2], "f": "ten", "g": "10", "h": "x=y"}
    assert parse_model_args(items) == expected


@pytest.mark.parametrize("items", [["num_classes"], ["=3"], ["a b=3"], ["a=1", "a=2"]])
def test_malformed_arguments_are_usage_errors(items: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_model_args(items)
