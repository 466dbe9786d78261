"""Every start is found in its folder, belongs to efforts by its own word, and is listed without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rebasin_cli.errors import UsageError
from rebasin_cli.matching import starts
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.plan import ALLOWANCES, make_plan
from rebasin_cli.matching.starts import STARTS, find_start, starts_of
from tests.benchmarks.matching_specs import mlp, random_tensors


def test_a_file_in_the_folder_is_a_start() -> None:
    files = {path.stem for path in Path(starts.__file__).parent.glob("*.py")} - {"__init__"}
    assert len(STARTS) == len(files)
    assert len({start.name for start in STARTS}) == len(STARTS)


def test_every_start_can_be_run_and_explained() -> None:
    for start in STARTS:
        assert start.descend is not None or start.phases
        assert start.help.endswith(".")
        assert start.efforts <= set(ALLOWANCES)


def test_efforts_include_what_the_starts_say() -> None:
    assert starts_of("fast") == ("identity", "forward")
    assert starts_of("standard") == ("identity", "forward", "annealing", "activations", "barycentre")
    assert starts_of("thorough") == ("identity", "forward", "annealing", "activations", "random", "barycentre")


def test_a_plan_keeps_the_order_of_the_starts_asked_for() -> None:
    plan = make_plan("fast", ["forward", "identity"], None)
    assert plan.starts == ("forward", "identity")
    assert plan.asked
    assert not plan.frugal
    assert make_plan("standard", ["random"], 3).repeats
    assert not make_plan("standard", ["random", "forward"], 3).repeats


def test_unknown_starts_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown start 'nowhere'") as caught:
        find_start("nowhere")
    assert "identity" in str(caught.value.hint)


def test_a_start_with_phases_is_no_single_descent() -> None:
    spec, shapes = mlp((3, 5, 2))
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    with pytest.raises(UsageError, match="'annealing' is not a single descent"):
        weight_matching(spec, a, b, parameters=tuple(a), starts=["annealing"])


def test_listing_starts_imports_no_torch() -> None:
    check = (
        "import sys; from rebasin_cli.matching.starts import STARTS; from rebasin_cli.matching.plan import make_plan; "
        "[s.help for s in STARTS]; make_plan('fast', None, None); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", check], cwd=root, timeout=60).returncode == 0
