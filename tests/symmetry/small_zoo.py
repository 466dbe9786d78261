"""The small zoo: finds the models in `tests/zoo`, derives them, and sums up what was found.

`python -m tests.symmetry.small_zoo --write` keeps the summaries as the golden file that the tests compare with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rebasin_cli.model.example_input import ExampleInput, as_example
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.tracer import trace_model

FOLDER = Path(__file__).parents[1] / "zoo"
GOLDEN = Path(__file__).parents[1] / "golden" / "zoo.json"


@dataclass(frozen=True)
class ZooModel:
    """One file of the zoo: builds its model, gives its input, and says what ought to be found."""

    module: ModuleType

    @property
    def expected(self) -> Mapping[str, int]:
        expected: Mapping[str, int] = self.module.EXPECTED
        return expected

    def example(self) -> ExampleInput:
        return as_example(self.module.example_input())

    def derive(self) -> Derivation:
        return derive(trace_model(self.module.build(), self.example(), with_numbers=self.module.build))


def zoo_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> ZooModel:
    spec = importlib.util.spec_from_file_location(f"zoo_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ZooModel(module)


def counts(found: Derivation) -> dict[str, int]:
    """What every zoo file expects, as it was found."""
    return {
        "roots": found.roots,
        "families": found.families,
        "groups": len(found.spec.groups),
        "units": found.units,
    }


def summary(found: Derivation) -> dict[str, Any]:
    """Counts, groups (size, parent, the axes they move) and pinned axes with their reasons."""
    groups = {}
    for group in found.spec.groups:
        inside = "" if group.parent is None else f" in {group.parent.group}:{group.parent.block}"
        axes = sorted({f"{site.key}/{site.axis}" for site in group.sites})
        groups[group.name] = f"{group.size}{inside}: {' '.join(axes)}"
    return {
        **counts(found),
        "free_fraction": round(found.free_fraction, 6),
        "unknown_ops": sorted({op.op for op in found.unknown_ops}),
        "sites": groups,
        "pinned": {f"{pin.key}/{pin.axis}": pin.reason for pin in found.spec.pinned},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="derive the models of tests/zoo and print what was found")
    parser.add_argument("--write", action="store_true", help=f"keep the summaries in {GOLDEN.name}")
    options = parser.parse_args()
    golden = {}
    for name in zoo_names():
        model = load(name)
        try:
            found = model.derive()
        except Exception as error:  # the table goes on: the test says which
            print(f"{name:32} {type(error).__name__}: {error}")
            continue
        golden[name] = summary(found)
        seen = counts(found)
        wrong = "" if seen == dict(model.expected) else f"   expected {dict(model.expected)}"
        print(f"{name:32} {found.roots}+{found.families} {seen['groups']:4d} {seen['units']:5d}{wrong}")
    if options.write:
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
