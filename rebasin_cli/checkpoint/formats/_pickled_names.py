"""Which names in a pickle are harmless data, which are objects to be skipped, and which make it a program.

Nothing that a pickle names is ever imported or called here, so reading is safe whatever it names. A file that would
run a program elsewhere is refused all the same: with `torch.load(weights_only=False)` it would run. An instance of a
class is data; a call of a function is a program, except for the few functions by which harmless objects are rebuilt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rebasin_cli.checkpoint.checkpoint import ITEM_SIZES
from rebasin_cli.checkpoint.formats._pickle_machine import Made, Name

_PLAIN = {
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "torch.memory_format",
    "torch.serialization._get_layout", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "torch._tensor._rebuild_from_type_v2", "_codecs.encode", "numpy.dtype", "numpy.ndarray",
    "torch.per_tensor_affine", "torch.per_tensor_symmetric", "torch.per_channel_affine",
    "torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"builtins.{name}" for name in ("set", "frozenset", "bytearray", "bytes", "complex", "object")),
}  # fmt: skip
"""Names of plain data: tensors, arrays, containers. They are not mentioned."""

DTYPE_ALIASES = {
    "half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64",
    "chalf": "complex32", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip

_VALUES = {"strided", "sparse_coo", "preserve_format", "contiguous_format", "channels_last", "channels_last_3d"}
"""Values of torch, besides dtypes."""

_TYPES = {
    "bool", "int", "float", "str", "bytes", "bytearray", "complex", "list", "tuple", "dict", "set", "frozenset",
    "object", "type", "slice", "range", "NoneType", "ellipsis", "long", "unicode", "xrange", "buffer",
}  # fmt: skip
"""Types of `builtins`; everything else there is a function."""

_REBUILDERS = {
    "copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "copy_reg._reconstructor",
    "collections.defaultdict", "collections.deque", "functools.partial", "re._compile", "sre_compile.compile",
    "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "types.SimpleNamespace", "types.MappingProxyType", "enum._make_self",
    "numpy.random.__randomstate_ctor", "numpy.random.__bit_generator_ctor", "numpy.random.__generator_ctor",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__generator_ctor", "pandas._libs.internals._unpickle_block", "pytz._UTC", "pytz._p",
}  # fmt: skip
"""Lower-case classes, and functions that rebuild an object from plain data."""

_DANGEROUS = frozenset(
    """
    os posix posixpath nt ntpath subprocess _posixsubprocess sys importlib _frozen_importlib
    _frozen_importlib_external imp runpy shutil socket _socket socketserver ssl pty ctypes _ctypes codeop popen2
    webbrowser pickle _pickle cPickle marshal shelve dill cloudpickle joblib jsonpickle operator _operator
    asyncio multiprocessing threading _thread concurrent signal tempfile urllib urllib2 http httplib requests
    aiohttp ftplib smtplib poplib imaplib nntplib telnetlib xmlrpc pip pdb bdb timeit cProfile doctest unittest
    io _io idlelib lib2to3 ensurepip venv pkgutil zipimport distutils setuptools pydoc linecache sqlite3 atexit
    faulthandler tracemalloc fcntl mmap fileinput symtable compileall py_compile cffi torch.hub torch.jit
    torch.package torch.multiprocessing torch.distributed.rpc torch.utils.cpp_extension numpy.testing numpy.f2py
    numpy.distutils logging.config tkinter rlcompleter getpass
    """.split()  # noqa: SIM905  (a hundred words)
)
"""Modules whose functions run code, open files or reach the network."""

_DANGEROUS_ALONE = {
    "code", "cmd", "commands", "site", "trace", "profile", "platform", "dis", "glob", "inspect", "ast", "gc", "weakref",
}  # fmt: skip
"""Likewise, but a user's own package may have the name: `code.config.Settings` is not of the standard library."""

_STORAGE = re.compile(r"torch(\.cuda|\.storage)?\.\w*Storage")
_CLASS = re.compile(r"_*[A-Z]\w*")


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a pickle is refused: the name, and whether it is part of a whole model."""

    name: str
    is_model: bool = False


def is_plain(full: str) -> bool:
    """Whether this names a part of tensors, arrays and plain containers."""
    module, _, name = full.rpartition(".")
    return (
        full in _PLAIN
        or (module == "torch" and (name in _VALUES or DTYPE_ALIASES.get(name, name) in ITEM_SIZES))
        or (module == "torch._utils" and name.startswith("_rebuild_"))
        or _STORAGE.fullmatch(full) is not None
    )


def refusal_of_name(name: Name) -> Refused | None:
    """Why a name alone makes a pickle dangerous."""
    full = name.full
    if full in _PLAIN or full in _REBUILDERS:
        return None
    if full.startswith("builtins."):
        last = full.removeprefix("builtins.")
        return None if last in _TYPES or last == "getattr" or _CLASS.fullmatch(last) else Refused(full)
    parts = full.split(".")
    inside = (".".join(parts[:end]) for end in range(1, len(parts)))
    dangerous = ".".join(parts[:-1]) in _DANGEROUS_ALONE or any(module in _DANGEROUS for module in inside)
    return Refused(full) if dangerous else None


def refusal_of_object(made: Made) -> Refused | None:
    """Why the way in which an object is built makes a pickle a program, or a whole model."""
    callee = made.callee
    if not isinstance(callee, Name):
        return Refused("the result of another call, which it calls")
    full = callee.full
    if full in {"copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"}:
        made_of = made.args[0] if made.args else None
        return _refused_class(made_of.full) if isinstance(made_of, Name) else None
    if full == "builtins.getattr":
        # How Python 3.11 and protocol 2 write a member of an enumeration, or a class inside a class.
        plain = len(made.args) == 2 and isinstance(made.args[0], (Name, Made)) and isinstance(made.args[1], str)
        return None if plain and not made.args[1].startswith("_") else Refused(full)
    if made.how == "REDUCE" and not (
        is_plain(full)
        or full in _REBUILDERS
        or full.removeprefix("builtins.") in _TYPES
        or _CLASS.fullmatch(full.rpartition(".")[2])
    ):
        return Refused(full)
    return _refused_class(full)


def _refused_class(full: str) -> Refused | None:
    return Refused(full, is_model=True) if full.startswith("torch.nn.modules.") else None


def label(made: Made) -> str:
    """What an object is called in messages: its class."""
    if made.full.startswith(("copyreg.", "copy_reg.", "builtins.getattr")) and made.args:
        first = made.args[0]
        return first.full if isinstance(first, Name) else made.full
    return made.full
