"""Pickles as data: nothing is run, every program ends at once, and what is skipped is named and not written again."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import pickle
import pickletools
import re
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rebasin_cli.checkpoint import open_checkpoint, write_like
from rebasin_cli.checkpoint.formats._pickle_writer import padded, pickled
from rebasin_cli.checkpoint.formats._torch_pickle import skipped, unpickle
from rebasin_cli.errors import CheckpointError
from tests.checkpoint.build import digest, one_line


def archive(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        made.writestr("a/data.pkl", program)
        made.writestr("a/byteorder", "little")
        made.writestr("a/version", "3\n")
    return path


PAIR = b"2\x86"
HOSTILE = {
    "tuple as a key": b"\x80\x02})" + PAIR * 60 + b"Ns.",
    "in a dict of a mark": b"\x80\x02()" + PAIR * 60 + b"Nd.",
    "in an ordered dict": b"\x80\x02ccollections\nOrderedDict\n)R)" + PAIR * 60 + b"Ns.",
    "in a set": b"\x80\x04\x8f()" + PAIR * 60 + b"\x90.",
    "in a frozenset": b"\x80\x04()" + PAIR * 60 + b"\x91.",
    "frozensets in frozensets": b"\x80\x04()" + b"\x91q\x00(h\x00h\x00" * 60 + b"\x91.",
    "set of a list by a call": b"\x80\x02c__builtin__\nset\n](" + b")" + PAIR * 60 + b"e\x85R.",
    "frozenset as a key by calls": b"\x80\x02}" + b"c__builtin__\nfrozenset\n" * 50 + b"]" + b"\x85R" * 50 + b"Ns.",
    "size as a key": b"\x80\x02}ctorch\nSize\n)" + PAIR * 60 + b"\x85RNs.",
    "state of an object": b"\x80\x02cmine\nThing\n)\x81}" + b")" + PAIR * 60 + b"Nsb.",
    "a wide tuple of wide tuples": b"\x80\x02})" + (b"q\x00(" + b"h\x00" * 200 + b"t") * 12 + b"Ns.",
    "lists in lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "dicts in dicts": b"\x80\x02" + b"}N" * 200_000 + b"}" + b"s" * 200_000 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "objects in objects": b"\x80\x02" + b"cmine\nThing\n" * 20_000 + b")" + b"\x81\x85" * 20_000 + b".",
    "marks": b"\x80\x02" + b"(" * 500_000 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dict in itself": b"\x80\x02}q\x00Nh\x00s.",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number of a million digits": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "a large number as many keys": b"\x80\x02}\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000 + b"q\x00"
    + b"Nsh\x00" * 9_999 + b"Ns.",
    "equal hashes": b"\x80\x02}("
    + b"".join(b"\x8a\x0c" + (i * ((1 << 61) - 1)).to_bytes(12, "little") + b"N" for i in range(1, 40_001))
    + b"u.",
    "memo grows": b"\x80\x04N" + b"\x94" * 1_000_000 + b".",
    "memo index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "text of 2^62": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x3f.",
    "bytearray of 2^31": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "repeated text": b"\x80\x02cmine\nThing\nX\x03\x00\x00\x00abcJ\xff\xff\xff\x7f\x86R.",
    "no end": b"\x80\x02cbuiltins\nlist\n",
    "a line without an end": b"\x80\x02c" + b"x" * 2_000_000,
    "many states": b"\x80\x02cmine\nThing\n)\x81" + b"}b" * 200_000 + b".",
    "a cut number": b"\x80\x02J\x00",
    "empty": b"",
}  # fmt: skip


@pytest.mark.timeout(120)  # most of them, read naively, never end
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "bad.pt", HOSTILE[name])
    with pytest.raises(CheckpointError, match=r"bad\.pt: ") as info:
        open_checkpoint(path)
    assert len(one_line(info)) < 2_000
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_the_program_answers_and_can_be_stopped_while_it_reads(tmp_path: Path) -> None:
    archive(tmp_path / "nested.pt", HOSTILE["tuple as a key"])
    command = [sys.executable, "-m", "rebasin_cli", "inspect"]
    done = subprocess.run([*command, "nested.pt"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    archive(tmp_path / "long.pt", b"\x80\x02" + b"N0" * 3_900_000 + b".")
    started = subprocess.Popen([*command, "long.pt"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.2)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=20)
    assert started.returncode in {143, 3}


CALLS = {
    "posix.system": b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.",
    "nt.system": b"cnt\nsystem\nX\x02\x00\x00\x00ls\x85R.",
    "os.popen": b"cos\npopen\nX\x02\x00\x00\x00ls\x85R.",
    "builtins.eval": b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    "builtins.exec": b"cbuiltins\nexec\nX\x01\x00\x00\x001\x85R.",
    "builtins.__import__": b"cbuiltins\n__import__\nX\x02\x00\x00\x00os\x85R.",
    "subprocess.Popen": b"csubprocess\nPopen\nX\x02\x00\x00\x00ls\x85R.",
    "subprocess.check_output": b"csubprocess\ncheck_output\n.",
    "importlib.import_module": b"cimportlib\nimport_module\nX\x02\x00\x00\x00os\x85R.",
    "runpy.run_path": b"crunpy\nrun_path\n)R.",
    "torch.hub.load": b"ctorch.hub\nload\n)R.",
    "torch.load": b"ctorch\nload\n)R.",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\nC\x00\x85R.",
    "mine.run_me": b"cmine\nrun_me\n)R.",
    "operator.methodcaller": b"coperator\nmethodcaller\n)R.",
    "os.system": b"(X\x02\x00\x00\x00lsios\nsystem\n.",
    "builtins.getattr": b"cbuiltins\ngetattr\ncmine\nThing\nX\x0e\x00\x00\x00__subclasses__\x86R.",
    "the result of another call": b"cmine\nThing\n)R)R.",
    "webbrowser.open": b"\x8c\nwebbrowser\x8c\x04open\x93)R.",
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("within", [b"", b"cargparse\nNamespace\n)\x81", b"cfunctools\npartial\n"])
def test_a_call_of_a_function_is_refused_by_its_name(tmp_path: Path, name: str, within: bytes) -> None:
    path = archive(tmp_path / "bad.pt", b"\x80\x04" + within + CALLS[name])
    with pytest.raises(CheckpointError, match=r"unsafe: refusing") as info:
        open_checkpoint(path)
    assert name in one_line(info)


class Colour(enum.Enum):
    RED = 1


class Settings:
    def __init__(self) -> None:
        self.width = 3


class Table(dict[str, Any]):
    """A dictionary of the user's own class."""


STATE = {"w": torch.arange(4.0), "v": torch.ones(2, 3)}
OBJECTS = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, path=Path("x")),
    "pathlib.PosixPath": pathlib.PosixPath("/data/x"),
    "collections.defaultdict": collections.defaultdict(list, {"a": [1]}),
    "datetime.datetime": datetime.datetime(2024, 1, 2),
    "datetime.timedelta": datetime.timedelta(3),
    f"{__name__}.Colour": Colour.RED,
    f"{__name__}.Settings": Settings(),
    f"{__name__}.Table": Table(a=1),
    "types.SimpleNamespace": types.SimpleNamespace(a=1),
    "functools.partial": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "re._compile": re.compile("a+"),
    "collections.deque": collections.deque([1, 2]),
    "numpy.random._pickle.__randomstate_ctor": np.random.RandomState(0),
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.functional.relu": torch.nn.functional.relu,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_beside_the_weights_is_skipped_named_and_not_written(tmp_path: Path, name: str, zipped: bool) -> None:
    path, out = tmp_path / "b.pt", tmp_path / "o.pt"
    shared = {"lr": 0.1}
    value = {
        "state_dict": STATE, "epoch": 3, "args": OBJECTS[name], "hyper": {"keep": shared, "object": OBJECTS[name]},
        "list": [1, OBJECTS[name], (2, OBJECTS[name])], "again": shared, "names": {"x"}, "raw": b"\xff\x00",
    }  # fmt: skip
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    before = digest(path)
    opened = open_checkpoint(path)
    assert list(opened.infos) == list(STATE)
    (note,) = opened.notes
    assert f"skipped: {name} at 'args'" in note
    assert "a copy does not have them" in note
    write_like(opened, out, lambda _, t: t.flip(0), provenance={}, force=False)
    assert digest(path) == before
    read = torch.load(out, weights_only=True)
    assert read["state_dict"]["w"].equal(STATE["w"].flip(0))
    assert (read["epoch"], read["hyper"], read["again"]) == (3, {"keep": shared}, shared)
    assert read["hyper"]["keep"] is read["again"]
    assert read["list"] == [1, None, (2, None)]
    assert (read["names"], read["raw"]) == ({"x"}, b"\xff\x00")
    assert "args" not in read
    assert name.rpartition(".")[2].encode() not in out.read_bytes().replace(b"torch._utils", b"")
    assert open_checkpoint(out).notes == ()


def test_weights_in_a_dictionary_of_another_class_are_read_and_stay(tmp_path: Path) -> None:
    path, out = tmp_path / "b.pt", tmp_path / "o.pt"
    torch.save(collections.defaultdict(int, {"model": Table(STATE), "epoch": 1}), path)
    opened = open_checkpoint(path)
    assert list(opened.infos) == list(STATE)
    assert "a copy has plain dictionaries in their place" in opened.notes[0]
    write_like(opened, out, lambda _, t: t, provenance={}, force=False)
    read = torch.load(out, weights_only=True)
    assert read["epoch"] == 1
    assert read["model"]["v"].equal(STATE["v"])


def test_deep_nesting_beside_the_weights_is_no_recursion(tmp_path: Path) -> None:
    deep = b"]" * 100_000 + b"a" * 99_999
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    tensor += b"X\x03\x00\x00\x00cpuK\x01tQK\x00))\x89NtR"
    program = b"\x80\x02}(X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + tensor + b"sX\x01\x00\x00\x00x" + deep
    program += b"X\x01\x00\x00\x00pcmine\nThing\n)\x81u."
    path = archive(tmp_path / "b.pt", program)
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("a/data/0", b"\0\0\x80?")
    opened = open_checkpoint(path)
    assert opened.tensor("w").item() == 1.0
    assert "skipped: mine.Thing at 'p'" in opened.notes[0]
    write_like(opened, tmp_path / "o.pt", lambda _, t: t, provenance={}, force=False)
    again = open_checkpoint(tmp_path / "o.pt")
    assert (again.tensor("w").item(), again.notes) == (1.0, ())


def test_numbers_and_arrays_of_numpy_are_data(tmp_path: Path) -> None:
    path, out = tmp_path / "b.pt", tmp_path / "o.pt"
    torch.save({"model": STATE, "best": np.float64(0.5), "table": np.arange(3), "at": torch.device("cpu")}, path)
    opened = open_checkpoint(path)
    assert opened.notes == ()
    write_like(opened, out, lambda _, t: t, provenance={}, force=False)
    assert out.read_bytes() == path.read_bytes()


def test_a_whole_module_anywhere_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "hyper_parameters": {"loss": torch.nn.CrossEntropyLoss()}}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"whole pickled nn\.Module.*CrossEntropyLoss"):
        open_checkpoint(tmp_path / "b.pt")


def test_a_graph_is_written_as_it_was_read() -> None:
    shared = [1, 2.5, None, True, "größer", 1 << 80, -5, 70_000, ()]
    cycle: list[Any] = [shared]
    cycle.append(cycle)
    value = {"a": shared, "b": (shared, shared), 3: {"x": -1.0}, "c": cycle, "d": [(1, 2, 3, 4)] * 2}
    for protocol in (2, 3, 4, 5):
        program = pickle.dumps({**value, "s": {1}, "f": frozenset([2]), "y": b"\xfe"}, protocol=protocol)
        found = unpickle(program)
        assert (found.protocol, found.end, found.refused) == (protocol, len(program), ())
        again = pickle.loads(pickled(found.root, protocol))
        assert again["c"][1] is again["c"]
        assert again["b"][0] is again["b"][1] is again["a"] is again["c"][0]
        assert again["a"] == shared
        assert (again[3], again["d"], again["s"], again["f"], again["y"]) == (
            {"x": -1.0},
            [(1, 2, 3, 4)] * 2,
            {1},
            frozenset([2]),
            b"\xfe",
        )


def test_padding_does_nothing() -> None:
    program = pickle.dumps([1], protocol=2)
    for longer in (0, 2, 4, 5, 6, 7, 100, 101):
        more = padded(program, len(program) + longer)
        assert more is not None
        assert len(more) == len(program) + longer
        assert pickle.loads(more) == [1]
        list(pickletools.genops(more))
    assert padded(program, len(program) - 1) is padded(program, len(program) + 3) is None


def test_places_of_skipped_objects_are_found_in_bounded_time() -> None:
    parts: Any = [Path("x")]
    for _ in range(60):
        parts = [parts, parts]
    (one,) = skipped(unpickle(pickle.dumps({"a": parts}, protocol=2)).root)
    assert one.name == "pathlib.PosixPath"
    assert one.at[-1] == "0"
