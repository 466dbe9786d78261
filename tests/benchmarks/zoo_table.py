"""The zoo table: what is derived for every torchvision classification model, and how exactly execution confirms it.

`python -m tests.benchmarks.zoo_table` prints the table; `--write` also keeps it as the golden file that the tests
compare with. Small models come first, so that an interrupted run leaves most of the rows behind it.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.factory import ModelFactory, load_factory
from rebasin_cli.model.torchvision_import import import_torchvision
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.tracer import trace_model

GOLDEN = Path(__file__).parents[1] / "golden" / "torchvision.json"


@dataclass(frozen=True)
class Row:
    """One model: what was derived, how far the outputs moved in float64, and the seconds to build, trace and derive."""

    groups: int
    roots: int
    families: int
    units: int
    parameters: int
    free_fraction: float
    unknown_ops: tuple[str, ...]
    max_relative_error: float | None
    max_in_noise_floors: float | None
    noise_floor: float | None
    seconds: float


def classification_models() -> list[str]:
    """Names of all classification models, the quantized ones left out."""
    models = import_torchvision("models")
    return sorted(models.list_models(module=models))


def derive_model(factory: ModelFactory, module: nn.Module) -> Derivation:
    return derive(trace_model(module, factory.example_input(module), with_numbers=factory.build))


def row(name: str, *, verify: bool = True) -> Row:
    """Derive one torchvision model, and check it by execution if `verify`."""
    factory = load_factory(f"torchvision:{name}")
    began = time.perf_counter()
    module = factory.build_weightless()
    found = derive_model(factory, module)
    seconds = time.perf_counter() - began
    error = floors = floor = None
    if verify:
        check = verify_by_execution(factory.build_weightless, factory.example_input(module), found.spec)
        error, floors, floor = check.max_relative_error, check.floors, check.noise_floor
        if not check.ok:
            raise SystemExit(f"{name} is not sound: {check}")
    return Row(
        groups=len(found.spec.groups),
        roots=found.roots,
        families=found.families,
        units=found.units,
        parameters=found.parameters,
        free_fraction=round(found.free_fraction, 6),
        unknown_ops=tuple(sorted({op.op for op in found.unknown_ops})),
        max_relative_error=error,
        max_in_noise_floors=floors,
        noise_floor=floor,
        seconds=round(seconds, 2),
    )


def by_size(names: Iterable[str]) -> list[str]:
    """Names with the smallest model first."""
    sizes = {
        name: sum(p.numel() for p in load_factory(f"torchvision:{name}").build_weightless().parameters())
        for name in names
    }
    return sorted(sizes, key=lambda name: sizes[name])


def rows(names: Iterable[str], *, verify: bool) -> Iterator[tuple[str, Row]]:
    for name in names:
        yield name, row(name, verify=verify)
        gc.collect()


def line(name: str, found: Row) -> str:
    error = "-" if found.max_relative_error is None else f"{found.max_relative_error:.1e}"
    shape = f"{found.roots}+{found.families}"
    return (
        f"{name:22} {shape:>9} {found.groups:6d} {found.units:8d} {found.free_fraction:9.6f} {error:>9} "
        f"{found.seconds:7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="derive all torchvision classification models and print the table")
    parser.add_argument("--write", action="store_true", help=f"keep the rows in {GOLDEN.name}")
    parser.add_argument("--only", default="*", help="a pattern of model names")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="leave execution out")
    options = parser.parse_args()
    if options.write and not options.verify:
        parser.error("the golden file keeps the errors of an execution: leave out --no-verify")
    names = [name for name in classification_models() if fnmatchcase(name, options.only)]
    print(f"{'model':22} {'r+f':>9} {'groups':>6} {'units':>8} {'free':>9} {'error':>9} {'seconds':>7}")
    for name, found in rows(by_size(names), verify=options.verify):
        print(line(name, found), flush=True)
        if options.write:
            golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
            golden[name] = asdict(found)
            GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
