"""A local model directory: its `config.json`, read as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rebasin_cli.errors import ModelError
from rebasin_cli.model.failures import one_line

MAX_CONFIG_BYTES = 16 * 2**20


def read_config(text: str, directory: Path) -> dict[str, Any]:
    """The mapping in the directory's `config.json`.

    Raises:
        ModelError: no such directory, no such file in it, or not a JSON object.
    """
    if not directory.is_dir():
        raise ModelError(
            f"{text}: {directory} is no directory", path=directory, hint="give a local directory with config.json"
        )
    file = directory / "config.json"
    if not file.is_file():
        raise ModelError(f"{text}: {directory} holds no config.json", path=directory)
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{file}: {file.stat().st_size} bytes is too large for a config.json", path=file)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {one_line(error)}", path=file) from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: a JSON {type(config).__name__} where an object was expected", path=file)
    return config
