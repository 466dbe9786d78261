"""Every matching method is found in its folder, and can be listed without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rebasin_cli.errors import UsageError
from rebasin_cli.matching import methods
from rebasin_cli.matching.methods import METHODS, MethodOptions, find_method, names
from rebasin_cli.matching.methods.activation import ActivationOptions
from rebasin_cli.options import options_of
from rebasin_cli.verbs.align import AlignOptions


def test_a_file_in_the_folder_is_a_method() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__"}
    assert len(METHODS) == len(files)
    assert {"weight", "activation", "learned", "auto"} <= {method.name for method in METHODS}


def test_no_name_is_used_twice() -> None:
    assert len(names()) == len(set(names()))
    assert find_method("straight-through") is find_method("learned")


def test_every_method_has_one_line_of_help() -> None:
    assert all(method.help.endswith(".") and "\n" not in method.help for method in METHODS)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown method 'nearest'") as caught:
        find_method("nearest")
    assert "weight" in str(caught.value.hint)


def test_the_verb_has_the_options_of_every_method() -> None:
    shown = {entry.name for entry in options_of(AlignOptions)}
    for method in METHODS:
        if method.options is not None:
            assert {entry.name for entry in options_of(method.options)} <= shown
            assert issubclass(MethodOptions, method.options)


def test_a_method_gets_its_own_options_from_those_of_the_verb() -> None:
    chosen = AlignOptions("a.pt", "b.pt", model="m.py:f", method="activation", mix=0.25)
    assert find_method("activation").own_options(chosen) == ActivationOptions(mix=0.25)
    assert find_method("weight").own_options(chosen) is None


def test_listing_methods_imports_no_torch() -> None:
    check = (
        "import sys; from rebasin_cli.matching.methods import METHODS, MethodOptions; "
        "from rebasin_cli.options import options_of; [m.help for m in METHODS]; options_of(MethodOptions); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", check], cwd=root, timeout=60).returncode == 0
