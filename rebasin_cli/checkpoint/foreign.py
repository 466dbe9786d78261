"""Files and directories that hold weights in a way that cannot be permuted: what each is, and how to convert it.

Every entry ends in one line with the exact command or the reason. Files are told by their first bytes where they have
any, otherwise by their names; directories by what lies in them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import Checkpoint, TensorInfo
from rebasin_cli.errors import CheckpointError, few, quoted

_COMPRESSED = "decompress it first"
_WEB_PAGE = "the download returned a web page, perhaps an error or a login page; fetch the file again"
_SAVE = "save its state_dict: torch.save(model.state_dict(), path)"
_FROM_TENSORFLOW = (
    "load it with its own library, copy the arrays into the PyTorch model, and save that model's state_dict;"
    " of a model of transformers 4: AutoModel.from_pretrained(DIR, from_tf=True).save_pretrained(OUT)"
)
_FROM_FLAX = "of a model of transformers 4: AutoModel.from_pretrained(DIR, from_flax=True).save_pretrained(OUT)"
_FROM_GGUF = (
    "transformers dequantizes it: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=NAME).save_pretrained(OUT)"
)
_FROM_ONNX = "align the PyTorch checkpoint that it was exported from, and export the result again"


@dataclass(frozen=True, slots=True)
class Foreign:
    """What something is, with an article, and what to do with it."""

    what: str
    hint: str | None = None


_BY_BYTES: tuple[tuple[bytes, Foreign], ...] = (
    (b"version https://git-lfs", Foreign("a git-lfs pointer: the real file was not fetched", "run `git lfs pull`")),
    (b"GGUF", Foreign("a GGUF file", _FROM_GGUF)),
    (b"\x89HDF\r\n", Foreign("an HDF5 file, as Keras and TensorFlow write", _FROM_TENSORFLOW)),
    (b"\x93NUMPY", Foreign("a NumPy array file", "torch.save({name: torch.from_numpy(array), …}, path)")),
    (b"\x1f\x8b", Foreign("a gzip archive", _COMPRESSED)),
    (b"\x28\xb5\x2f\xfd", Foreign("a zstd archive", _COMPRESSED)),
    (b"BZh", Foreign("a bzip2 archive", _COMPRESSED)),
    (b"\xfd7zXZ", Foreign("an xz archive", _COMPRESSED)),
    (b"\x7fELF", Foreign("a program (ELF)")),
    (b"\x89PNG", Foreign("a PNG image")),
)
"""First bytes of files that are often mistaken for checkpoints."""

_BY_NAME: tuple[tuple[re.Pattern[str], Foreign], ...] = (
    (re.compile(r".*\.onnx"), Foreign("an ONNX graph", _FROM_ONNX)),
    (re.compile(r".*\.msgpack"), Foreign("a Flax checkpoint (msgpack)", _FROM_FLAX)),
    (re.compile(r".*\.ckpt\.(index|meta|data-\d+-of-\d+)"), Foreign("a TensorFlow checkpoint", _FROM_TENSORFLOW)),
    (re.compile(r".*\.(pb|tflite)"), Foreign("a TensorFlow graph", _FROM_TENSORFLOW)),
    (re.compile(r".*\.keras"), Foreign("a Keras archive", _FROM_TENSORFLOW)),
    (re.compile(r".*\.mlmodel"), Foreign("a Core ML model", "align the PyTorch checkpoint and convert the result")),
    (
        re.compile(r".*\.engine|.*\.plan"),
        Foreign("a TensorRT engine", "align the PyTorch checkpoint and build it again"),
    ),
)
_ZERO_FILE = re.compile(r"(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+.*\.pt|mp_rank_\d+_model_states\.pt")
_ZERO_FOLDER = re.compile(r"global_step\d+")


def foreign_file(path: Path, head: bytes) -> Foreign | None:
    """What a file that begins with `head` is, if it is certainly not a checkpoint that can be read."""
    name = path.name.lower()
    if _ZERO_FILE.fullmatch(name) and path.parent.name:
        return _zero(path.parent)
    if name.endswith(".distcp") or name == ".metadata":
        return _distributed(path.parent)
    for start, found in _BY_BYTES:
        if head.startswith(start):
            return found
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return Foreign("an HTML page", _WEB_PAGE)
    if text.startswith(b"<?xml"):
        return Foreign("an XML or HTML page", _WEB_PAGE)
    if head[257:262] == b"ustar":
        return Foreign("a tar archive", "unpack it and name the checkpoint inside")
    if head[4:8] == b"TFL3":
        return Foreign("a TensorFlow Lite graph", _FROM_TENSORFLOW)
    if head.startswith(b"PK\x03\x04") and head[30:].startswith((b"metadata.json", b"config.json", b"model.weights.h5")):
        return Foreign("a Keras archive", _FROM_TENSORFLOW)
    return next((found for pattern, found in _BY_NAME if pattern.fullmatch(name)), None)


def foreign_directory(directory: Path, names: Iterable[str]) -> Foreign | None:
    """What a directory with these names is, hidden ones included, if its weights cannot be read where they lie."""
    every = sorted(names)
    if "model_index.json" in every:
        return _pipeline(directory)
    if any(name.endswith(".distcp") for name in every):
        return _distributed(directory)
    if any(_ZERO_FILE.fullmatch(name) for name in every) or any(_ZERO_FOLDER.fullmatch(name) for name in every):
        return _zero(directory)
    inner = [name for name in every if (directory / name / ".metadata").is_file()]
    if inner:
        return _distributed(directory / inner[0])
    if "saved_model.pb" in every:
        return Foreign("a TensorFlow SavedModel", _FROM_TENSORFLOW)
    if {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"} & set(every):
        return Foreign("an Orbax checkpoint of JAX", "restore it with Orbax and save the arrays with safetensors.flax")
    for name in every:
        if name.endswith((".h5", ".gguf")):
            return Foreign(f"a directory with {name}", _FROM_TENSORFLOW if name.endswith(".h5") else _FROM_GGUF)
        for pattern, found in _BY_NAME:
            if pattern.fullmatch(name.lower()):
                return Foreign(f"a directory with {found.what}, {name}", found.hint)
    return None


def _distributed(directory: Path) -> Foreign:
    given = shlex.quote(str(directory))
    out = shlex.quote(f"{directory}.pt")
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {given} {out}"
    return Foreign("a distributed checkpoint (DCP), which is split over ranks", f"convert it: {command}")


def _zero(directory: Path) -> Foreign:
    """The script that DeepSpeed leaves beside its folders, or the same one of the package."""
    tag = f" --tag {directory.name}" if _ZERO_FOLDER.fullmatch(directory.name) else ""
    root = directory.parent if tag else directory
    script = root / "zero_to_fp32.py"
    program = shlex.quote(str(script)) if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
    command = f"python {program} {shlex.quote(str(root))} {shlex.quote(f'{root}-fp32')}{tag}"
    return Foreign("a DeepSpeed (ZeRO) checkpoint, which is split over ranks", f"convert it: {command}")


def _pipeline(directory: Path) -> Foreign:
    """A diffusers pipeline: several models in one directory, of which one has to be named."""
    try:
        index = json.loads((directory / "model_index.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        index = {}
    listed = [name for name in index if isinstance(name, str) and (directory / name / "config.json").is_file()]
    named = f" of {few(listed, shown=6)}" if listed else ""
    first = next((name for name in ("unet", "transformer", "prior") if name in listed), (listed or ["unet"])[0])
    return Foreign(f"a pipeline{named}, not one model", f"name one of its models, for example {directory / first}")


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse weights that are packed or quantized: their elements are no longer single weights.

    Raises:
        CheckpointError: naming the method, a tensor, and what to align instead.
    """
    for info in checkpoint.infos.values():
        method = _quantization(info, checkpoint)
        if method is not None:
            raise CheckpointError(
                f"{checkpoint.path}: quantized weights ({method}, as in {quoted(info.key)}), which cannot be permuted",
                path=checkpoint.path,
                hint=_DEQUANTIZE if method.startswith("bitsandbytes") else _ALIGN_FLOAT,
                slug="quantized",
            )


_DEQUANTIZE = (
    "align the float checkpoint and quantize the result;"
    " or AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(OUT)"
)
_ALIGN_FLOAT = "align the float checkpoint that it was made from, and quantize the result"


def _quantization(info: TensorInfo, checkpoint: Checkpoint) -> str | None:
    stem, _, last = info.key.rpartition(".")
    integers = "int" in info.dtype_name

    def beside(name: str) -> TensorInfo | None:
        return checkpoint.infos.get(f"{stem}.{name}")

    if last == "SCB":
        return "bitsandbytes, 8 bits"
    if last in {"absmax", "quant_map", "nested_absmax"} and "weight" in stem:
        return "bitsandbytes, 4 bits"
    if last.startswith("quant_state"):
        return "bitsandbytes, 4 bits"
    if last == "qweight" and integers:
        return "GPTQ" if beside("g_idx") is not None else "AWQ" if beside("qzeros") is not None else "packed integers"
    if last == "weight_packed" and integers:
        return "compressed-tensors"
    if last in {"weight_scale_inv", "weight_scale"}:
        weight = beside("weight")
        return None if weight is None or weight.dtype_name.startswith("float32") else f"{weight.dtype_name} with scales"
    if info.dtype_name.startswith(("qint", "quint")):
        return f"torch's {info.dtype_name}"
    return None
