"""`align --interpolate`: the sweep is run with the options of the alignment."""

from __future__ import annotations

from pathlib import Path

from rebasin_cli.cli.verb_align import OF_THE_ALIGNMENT, AlignCommandOptions
from rebasin_cli.options import options_of
from rebasin_cli.verbs.interpolate import InterpolateOptions

VALUES = {"flag": True, "int": 7, "float": 7.0, "text": "given", "path": Path("given")}
PAIR = {"a": "a.pt", "b": "b.pt", "model": "net.py:net", "interpolate": "test.npz"}


def test_every_option_of_both_verbs_reaches_the_sweep() -> None:
    theirs = {entry.name for entry in options_of(InterpolateOptions)}
    both = [entry for entry in options_of(AlignCommandOptions) if entry.name in theirs - OF_THE_ALIGNMENT]
    given = {
        entry.name: not entry.default
        if entry.kind == "flag"
        else entry.choices[-1]
        if entry.choices
        else VALUES[entry.kind]
        for entry in both
    }
    sweep = AlignCommandOptions(**PAIR, **given).sweep()
    assert sweep is not None
    assert {name: getattr(sweep, name) for name in given} == given
    assert {"trust_remote_code", "transform", "class_map", "device", "seed", "recalibration", "steps"} <= set(given)


def test_the_files_and_the_model_of_the_sweep_are_those_of_the_report() -> None:
    sweep = AlignCommandOptions(**PAIR, data="train.npz", out="o.pt", key_b="ema", inputs=("1,4",)).sweep()
    assert sweep is not None
    assert (sweep.data, sweep.report, sweep.out) == ("test.npz", Path("o.json"), None)
    assert (sweep.checkpoints, sweep.model, sweep.inputs, sweep.key) == ((), None, (), None)
