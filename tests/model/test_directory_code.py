"""Python code in a directory of transformers: it runs only if the user trusts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rebasin_cli.errors import ModelError, UsageError
from rebasin_cli.model.factory import load_factory

pytest.importorskip("transformers")

CODE = """
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

Path({seen!r}).touch()


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, width=6, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.into = nn.Linear(3, config.width)
        self.out = nn.Linear(config.width, 2)
        self.post_init()

    def forward(self, pixel_values):
        return self.out(self.into(pixel_values).relu())
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose model is its own code, which leaves a file when it is imported."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    home = tmp_path / "own"
    home.mkdir()
    (home / "own_code.py").write_text(CODE.format(seen=str(tmp_path / "ran")))
    written(home, {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"})
    return home


def written(home: Path, auto_map: dict[str, str] | None, model_type: str = "own") -> None:
    config: dict[str, object] = {"model_type": model_type, "architectures": ["OwnModel"], "width": 5}
    if auto_map is not None:
        config["auto_map"] = auto_map
    (home / "config.json").write_text(json.dumps(config))


def test_without_trust_the_code_does_not_run_and_the_option_is_named(directory: Path) -> None:
    with pytest.raises(ModelError, match="Python code in the directory") as refused:
        load_factory(f"transformers:{directory}")
    assert "--trust-remote-code" in str(refused.value.hint)
    assert not (directory.parent / "ran").exists()


def test_with_trust_the_directorys_own_classes_are_built(directory: Path) -> None:
    module = load_factory(f"transformers:{directory}", trust_remote_code=True).build()
    assert (directory.parent / "ran").exists()
    assert type(module).__name__ == "OwnModel"
    assert tuple(module.get_parameter("into.weight").shape) == (5, 3)


def test_code_beside_a_type_that_transformers_has_is_left_out_with_a_note(directory: Path) -> None:
    written(directory, {"AutoModel": "own_code.OwnModel"}, model_type="bert")
    source = load_factory(f"transformers:{directory}").source
    assert source.note is not None
    assert "is not run" in source.note
    assert not (directory.parent / "ran").exists()


def test_code_of_another_repository_is_not_fetched(directory: Path) -> None:
    written(directory, {"AutoConfig": "someone/repo--own_code.OwnConfig", "AutoModel": "own_code.OwnModel"})
    with pytest.raises(ModelError, match="another repository"):
        load_factory(f"transformers:{directory}", trust_remote_code=True).build()


def test_code_that_config_json_names_and_the_directory_lacks_is_named(directory: Path) -> None:
    written(directory, {"AutoConfig": "absent.OwnConfig", "AutoModel": "absent.OwnModel"})
    with pytest.raises(ModelError, match=r"absent\.OwnConfig"):
        load_factory(f"transformers:{directory}", trust_remote_code=True).build()


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "transformers:bert"])
def test_trust_that_has_no_effect_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="no effect"):
        load_factory(spec, trust_remote_code=True)


def test_trust_in_a_directory_without_code_is_refused(directory: Path) -> None:
    written(directory, None, model_type="bert")
    with pytest.raises(UsageError, match="names no code"):
        load_factory(f"transformers:{directory}", trust_remote_code=True)


def test_an_infinity_in_a_configuration_is_a_number(tmp_path: Path) -> None:
    limits = {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 8, "head_dim": 8, "n_groups": 1, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba2", "state_size": 8, **sizes, **limits}))
    module = load_factory(f"transformers:{tmp_path}").build_weightless()
    assert list(module.config.time_step_limit) == [0.0, float("inf")]
