"""Any damage at all to a file is either harmless or refused as a checkpoint's error: nothing else ever escapes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebasin_cli.checkpoint import open_checkpoint
from rebasin_cli.errors import CheckpointError


def _saved(zipped: bool) -> bytes:
    stream = BytesIO()
    tied = torch.arange(6.0).view(2, 3)
    value = {"state_dict": {"a": tied, "b": tied, "c": torch.ones(3, dtype=torch.bfloat16)}, "epoch": 3, "s": {1}}
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


GOOD = {
    "safetensors": safetensors.torch.save({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bool)}, {"x": "y"}),
    "pt": _saved(True),
    "pth": _saved(False),
}


@pytest.mark.parametrize("suffix", GOOD)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    raw = bytearray(GOOD[suffix])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "remove"]))
        if kind == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and at:
            del raw[at:]
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(max_size=9))
        elif len(raw) > 1:
            del raw[at]
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(raw)
    refusal = None
    try:
        opened = open_checkpoint(path)
        for key, info in opened.infos.items():
            assert opened.tensor(key).shape == info.shape
        opened.verify()
    except CheckpointError as error:
        refusal = error.message
    assert refusal is None or (str(path) in refusal and "\n" not in refusal)
    assert path.read_bytes() == bytes(raw)
