"""The user's own file: found, run, judged; failures name its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rebasin_cli.errors import ModelError, UsageError
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import state_shapes

NET = """
import torch
from torch import nn

def make_net(width: int = 8, num_classes: int = 10, bias: bool = True):
    print("building")
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, num_classes, bias=bias))

def make_dict():
    return {"a": 1}

def make_pair():
    return nn.Linear(1, 1), "optimizer"

def make_class():
    return nn.Linear

def needs(width):
    return nn.Linear(width, width)

def fails():
    raise ValueError("no such\\nthing")

def leaves():
    raise SystemExit(3)

class Net(nn.Module):
    def __init__(self, n_classes=5):
        super().__init__()
        self.layer = nn.Linear(3, n_classes)

    def forward(self, x):
        return self.layer(x)

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def test_a_callable_is_called_with_its_arguments(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factory = load_factory(f"{file}:make_net", {"width": 3})
    module = factory.build()
    assert state_shapes(module)["0.weight"] == (3, 4)
    assert factory.example_input(module).describe() == "1x4"
    captured = capsys.readouterr()
    assert captured.out == ""  # results alone go to stdout
    assert "building" in captured.err
    assert list(file.parent.iterdir()) == [file]  # no __pycache__ either


def test_a_class_is_a_callable(file: Path) -> None:
    assert state_shapes(load_factory(f"{file}:Net").build_weightless()) == {"layer.weight": (5, 3), "layer.bias": (5,)}


@pytest.mark.parametrize(("callable_", "argument"), [("make_net", "num_classes"), ("Net", "n_classes")])
def test_the_class_count_is_found_by_its_usual_names(file: Path, callable_: str, argument: str) -> None:
    factory = load_factory(f"{file}:{callable_}")
    wanted = state_shapes(factory.with_args(**{argument: 7}).build_weightless())
    adapted, sentence = factory.adapt_to(wanted)
    assert adapted.args == {argument: 7}
    assert sentence is not None
    assert f"{argument}=7" in sentence


def test_what_a_class_count_does_not_explain_is_left_alone(file: Path) -> None:
    factory = load_factory(f"{file}:make_net")
    shapes = state_shapes(factory.build_weightless())
    assert factory.adapt_to(shapes) == (factory, None)
    both = {**state_shapes(factory.with_args(num_classes=7).build_weightless()), "0.bias": (9,)}
    assert factory.adapt_to(both) == (factory, None)
    told = factory.with_args(num_classes=3)
    assert told.adapt_to(state_shapes(factory.with_args(num_classes=7).build_weightless())) == (told, None)


def test_a_missing_callable_is_answered_with_near_names(file: Path) -> None:
    with pytest.raises(ModelError, match=r"net\.py has no 'make_nte'; did you mean make_net") as caught:
        load_factory(f"{file}:make_nte")
    assert "make_net (net.py:5)" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("make_dict", r"returned dict, not an nn\.Module"),
        ("make_pair", r"returned tuple, not an nn\.Module"),
        ("make_class", r"returned type, not an nn\.Module"),
        ("needs", r"needs the argument 'width'"),
        ("fails", r"net\.py:\d+: ValueError: no such thing"),
        ("leaves", r"net\.py:\d+: it called sys\.exit\(3\)"),
    ],
)
def test_failures_name_the_type_or_the_line(file: Path, name: str, words: str) -> None:
    factory = load_factory(f"{file}:{name}")
    for build in (factory.build, factory.build_weightless):
        with pytest.raises(ModelError, match=words) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_number_is_no_callable(file: Path) -> None:
    with pytest.raises(ModelError, match="is of type int, not a callable"):
        load_factory(f"{file}:NUMBER")


def test_arguments_that_do_not_fit_are_named(file: Path) -> None:
    with pytest.raises(ModelError, match=r"takes no argument 'widht'; did you mean width") as caught:
        load_factory(f"{file}:make_net", {"widht": 3}).build()
    assert "width, num_classes, bias" in str(caught.value.hint)
    with pytest.raises(UsageError, match="num_classes must be a whole number of classes, not 'ten'"):
        load_factory(f"{file}:make_net", {"num_classes": "ten"})
    with pytest.raises(ModelError, match=r"net\.py:7: TypeError.*with width='wide'"):
        load_factory(f"{file}:make_net", {"width": "wide"}).build()


def test_a_syntax_error_is_quoted_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ndef make(:\n    pass\n")
    with pytest.raises(ModelError, match=r"broken\.py:2: SyntaxError: invalid syntax"):
        load_factory(f"{path}:make")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_package_here", r"user\.py:1: ModuleNotFoundError: No module named 'no_such_package_here'"),
        ("\nraise RuntimeError('at import')", r"user\.py:2: RuntimeError: at import"),
        ("import sys\nsys.exit('usage')", r"user\.py:2: it called sys\.exit\('usage'\)"),
    ],
)
def test_a_file_that_fails_while_loading_is_quoted(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "user.py").write_text(text)
    with pytest.raises(ModelError, match=words):
        load_factory(f"{tmp_path / 'user.py'}:make")


def test_absent_files_directories_and_modules(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.py: no such file"):
        load_factory(f"{tmp_path}/absent.py:make")
    with pytest.raises(ModelError, match="is a directory"):
        load_factory(f"{tmp_path}/:make")
    with pytest.raises(ModelError, match="there is no module 'no_such_package_here'"):
        load_factory("no_such_package_here.models:make")


BODY = """
from {} import WIDTH
from torch import nn
def make():
    from {} import WIDTH
    return nn.Linear(WIDTH, 1)
"""


@pytest.mark.parametrize("how", ["sizes_beside_it", ".sizes_beside_it"])
def test_neighbours_can_be_imported_in_both_ways(tmp_path: Path, how: str) -> None:
    (tmp_path / "sizes_beside_it.py").write_text("WIDTH = 6\n")
    (tmp_path / "user.py").write_text(BODY.format(how, how))
    assert state_shapes(load_factory(f"{tmp_path / 'user.py'}:make").build())["weight"] == (1, 6)


def test_a_file_in_a_package_reaches_its_parents(tmp_path: Path) -> None:
    inner = tmp_path / "outer_package" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "outer_package" / "__init__.py").write_text("")
    (tmp_path / "outer_package" / "sizes.py").write_text("WIDTH = 4\n")
    (inner / "__init__.py").write_text("")
    (inner / "user.py").write_text(BODY.format("..sizes", "..sizes"))
    assert state_shapes(load_factory(f"{inner / 'user.py'}:make").build())["weight"] == (1, 4)


def test_a_dotted_name_is_found_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_here").mkdir()
    (tmp_path / "nets_here" / "one.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    assert state_shapes(load_factory("nets_here.one:Net").build())["layer.weight"] == (5, 3)
    with pytest.raises(ModelError, match="did you mean make_net"):
        load_factory("nets_here.one:make_ne")


OFFERS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
    def forward(self, x, scale):
        return self.layer(x) * scale
class Lightning(Net):
    example_input_array = {"x": torch.zeros(2, 3), "scale": torch.ones(1)}
def example_input():
    return torch.randn(2, 3), torch.ones(3)
"""


def test_the_users_own_example_input_is_used(tmp_path: Path) -> None:
    path = tmp_path / "user.py"
    path.write_text(OFFERS)
    plain, named = load_factory(f"{path}:Net"), load_factory(f"{path}:Lightning")
    assert plain.example_input().describe() == "2x3, 3"
    assert named.example_input().describe() == "x=2x3, scale=1"
    torch.testing.assert_close(plain.example_input().args, plain.example_input().args, rtol=0, atol=0)


def test_a_module_that_keeps_what_it_computed_is_copied(tmp_path: Path) -> None:
    source = (
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer, self.store = nn.Linear(3, 4), {}\n"
        "        self.scale = self.layer.weight.norm(dim=1)\n\n    def forward(self, x):\n"
        "        self.features = self.layer(x)\n        self.store['last'] = [self.features.relu()]\n"
        "        return self.features\n\n\n"
        "def warm():\n    made = Net()\n    made(torch.zeros(1, 3))\n    return made\n\n\nKEPT = warm()\n\n\n"
        "def kept():\n    return KEPT\n"
    )
    (tmp_path / "keeps.py").write_text(source)
    for name in ("warm", "kept"):
        factory = load_factory(f"{tmp_path / 'keeps.py'}:{name}")
        first, second = factory.build(), factory.build()
        weightless = factory.build_weightless()
        assert first is not second
        assert isinstance(first.scale, torch.Tensor)
        assert isinstance(second.scale, torch.Tensor)
        assert torch.equal(first.scale, second.scale)
        assert all(parameter.is_meta for parameter in weightless.parameters())
