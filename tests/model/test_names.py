"""Names read from a zoo's files are those that importing it gives."""

from __future__ import annotations

import importlib.util

import pytest

from rebasin_cli.errors import ModelError
from rebasin_cli.model import names as names_module
from rebasin_cli.model.names import check_model, models, open_clip_names, timm_names, torchvision_names
from rebasin_cli.model.source import import_optional
from rebasin_cli.model.torchvision_import import import_torchvision


def test_torchvision() -> None:
    listed = import_torchvision("models").list_models()
    assert torchvision_names() == [name for name in listed if not name.startswith("quantized_")]


def test_timm() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("the optional package timm is not installed")
    assert timm_names() == sorted(import_optional("timm", "timm").list_models())


def test_open_clip() -> None:
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("the optional package open_clip is not installed")
    assert open_clip_names() == sorted(import_optional("open_clip", "open-clip").list_models())


def test_names_are_listed_by_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = models()
    assert "torchvision:resnet50" in everything.specs
    assert set(models("resnet1*").specs) >= {"torchvision:resnet101", "torchvision:resnet152", "torchvision:resnet18"}
    assert "torchvision:wide_resnet50_2" in models("RESNET50").specs
    assert "torchvision:wide_resnet50_2" not in models("torchvision:resnet*").specs
    assert models("no such model").specs == ()
    monkeypatch.setattr(names_module, "is_installed", lambda package: package == "torchvision")
    alone = models()
    assert alone.absent["timm"] == "pip install 'rebasin-cli[timm]'"
    assert all(spec.startswith("torchvision:") for spec in alone.specs)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("torchvision:resnt50", r"unknown model 'resnt50' in torchvision \d.*; did you mean resnet50"),
        ("absent.py:build", "absent.py: no such file"),
        ("resnet50", "not a model spec; did you mean torchvision:resnet50"),
    ],
)
def test_a_model_that_does_not_exist_is_refused_early(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_model(text)


def test_models_that_exist_are_accepted() -> None:
    for text in ("torchvision:resnet50", "torchvision:quantized_resnet50", "package.module:build", "transformers:x"):
        check_model(text)
