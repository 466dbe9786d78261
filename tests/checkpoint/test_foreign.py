"""What cannot be read is named, with the exact command that converts it or the reason why nothing does."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebasin_cli.checkpoint import open_checkpoint
from rebasin_cli.checkpoint.foreign import refuse_quantized
from rebasin_cli.errors import CheckpointError
from tests.checkpoint.build import one_line


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(path)
    assert str(path) in info.value.message
    return one_line(info)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x80\x02}.")
    return folder


def test_a_distributed_checkpoint(tmp_path: Path) -> None:
    folder = files(tmp_path / "step 5", ".metadata", "__0_0.distcp", "__1_0.distcp")
    convert = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch '{folder}' '{folder}.pt'"
    assert convert in refused(folder)
    assert convert in refused(folder / "__0_0.distcp")
    nested = files(tmp_path / "checkpoint-5", "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp")
    assert f"dcp_to_torch {nested}/pytorch_model_fsdp_0 {nested}/pytorch_model_fsdp_0.pt" in refused(nested)


def test_a_checkpoint_of_deepspeed(tmp_path: Path) -> None:
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    root = files(tmp_path / "run", *(f"global_step7/{name}" for name in names), "latest")
    assert f"python -m deepspeed.utils.zero_to_fp32 {root} {root}-fp32" in refused(root)
    (root / "zero_to_fp32.py").write_text("")
    assert f"python {root}/zero_to_fp32.py {root} {root}-fp32" in refused(root)
    tagged = f"python {root}/zero_to_fp32.py {root} {root}-fp32 --tag global_step7"
    for path in (root / "global_step7", *(root / "global_step7" / name for name in names)):
        assert tagged in refused(path)
    torch.save({"w": torch.ones(1)}, root / "pytorch_model.bin")
    assert list(open_checkpoint(root).infos) == ["w"]


def test_a_pipeline_names_its_models(tmp_path: Path) -> None:
    folder = files(tmp_path / "sd", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["x", "y"], "vae": ["x", "y"], "scheduler": []}))
    text = refused(folder)
    assert "a pipeline of 'unet', 'vae', not one model" in text
    assert f"for example {folder}/unet" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.onnx", b"\x08\x07\x12\x07pytorch", ["ONNX", "exported from"]),
        ("m.msgpack", b"\x81\xa1w", ["Flax", "from_flax=True"]),
        ("flax_model.msgpack", b"\x81\xa1w", ["Flax"]),
        ("m.h5", b"\x89HDF\r\n\x1a\n", ["HDF5", "Keras"]),
        ("m.ckpt.index", b"\0\0", ["TensorFlow checkpoint"]),
        ("m.ckpt.data-00000-of-00001", b"\0\0", ["TensorFlow checkpoint"]),
        ("m.gguf", b"GGUF\x03", ["GGUF", "gguf_file"]),
        ("m.bin", b"GGUF\x03", ["GGUF", "gguf_file"]),
        ("m.tflite", b"\x1c\0\0\0TFL3", ["TensorFlow Lite"]),
        ("saved_model.pb", b"\x08\x01", ["TensorFlow graph"]),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    text = refused(tmp_path / name)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flax_model.msgpack", ["Flax", "from_flax"]),
        ("tf_model.h5", ["tf_model.h5", "from_tf"]),
        ("model.onnx", ["ONNX"]),
        ("q4.gguf", ["gguf_file"]),
        ("saved_model.pb", ["SavedModel"]),
        ("_CHECKPOINT_METADATA", ["Orbax"]),
        ("model.ckpt.index", ["TensorFlow checkpoint"]),
    ],
)
def test_directories_with_weights_of_other_kinds_only(tmp_path: Path, name: str, words: list[str]) -> None:
    folder = files(tmp_path / "model", name, "config.json")
    text = refused(folder)
    assert all(word in text for word in words), text
    safetensors.torch.save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    assert list(open_checkpoint(folder).infos) == ["w"]


def test_a_keras_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    assert "Keras archive" in refused(tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"l.weight": torch.ones(2, 2, dtype=torch.int8), "l.SCB": torch.ones(2)}, "bitsandbytes, 8 bits"),
        ({"l.weight": torch.ones(2, 1, dtype=torch.uint8), "l.weight.absmax": torch.ones(1)}, "bitsandbytes, 4 bits"),
        ({"l.qweight": torch.ones(2, 2, dtype=torch.int32), "l.g_idx": torch.ones(2)}, "GPTQ"),
        ({"l.qweight": torch.ones(2, 2, dtype=torch.int32), "l.qzeros": torch.ones(2, dtype=torch.int32)}, "AWQ"),
        ({"l.weight": torch.ones(2).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(1)}, "float8_e4m3fn"),
        ({"l.weight_packed": torch.ones(2, dtype=torch.int32)}, "compressed-tensors"),
    ],
)
def test_quantized_weights(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "q.safetensors")
    opened = open_checkpoint(tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match="quantized weights") as info:
        refuse_quantized(opened)
    assert words in one_line(info)
    assert "float checkpoint" in one_line(info)


def test_float_weights_with_such_names_are_not_quantized(tmp_path: Path) -> None:
    tensors = {"l.qweight": torch.ones(2), "l.weight_scale": torch.ones(1), "norm.scales": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors")
    refuse_quantized(open_checkpoint(tmp_path / "f.safetensors"))


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_tensor_of_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "q.pt")
    text = refused(tmp_path / "q.pt")
    assert "'w' is a quantized tensor of torch" in text
    assert "align the float checkpoint" in text
