"""Configuration files: TOML with one table per verb, whose keys are the options' names without dashes in front."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rebasin_cli.errors import UsageError
from rebasin_cli.options import Option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_EXPECTED: dict[str, tuple[type, ...]] = {
    "flag": (bool,),
    "int": (int,),
    "float": (int, float),
    "text": (str,),
    "path": (str,),
}


def config_key(option: Option) -> str:
    """The option's name in a configuration file: its long spelling without the dashes."""
    return option.name.replace("_", "-") if option.positional else option.flag[2:]


def read_config(path: Path, verb: str, options: Iterable[Option]) -> dict[str, Any]:
    """Values by field name from the verb's table; other tables are left alone.

    Raises:
        UsageError: the file cannot be read, an option is unknown, or a value has the wrong type.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", path=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}", path=path) from error
    table = tables.get(verb, {})
    if not isinstance(table, Mapping):
        raise UsageError(f"{path}: {verb} is not a table", path=path, hint=f"write [{verb}] above its options")
    known = {spelled: option for option in options for spelled in (option.name, config_key(option))}
    found = {}
    for key, value in table.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            meant = f", did you mean {near[0]}?" if near else ""
            raise UsageError(f"{path}: [{verb}] has the unknown option {key}{meant}", path=path)
        option = known[key]
        given = _value(option, value, f"{path}: [{verb}] {key}")
        found[option.name] = not given if option.inverted and key == config_key(option) else given
    return found


def _value(option: Option, value: Any, where: str) -> Any:
    if option.mapping:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} must be a table, found {json.dumps(value, default=str)}")
        return dict(value)
    items = value if option.many and isinstance(value, list) else [value]
    for item in items:
        right = isinstance(item, _EXPECTED[option.kind])
        if not right or (isinstance(item, bool) and option.kind != "flag"):
            raise UsageError(f"{where} must be {_in_words(option)}, found {json.dumps(item, default=str)}")
    return tuple(items) if option.many else value


def _in_words(option: Option) -> str:
    words = {"flag": "true or false", "int": "a whole number", "float": "a number", "text": "a text", "path": "a path"}
    return words[option.kind]


def config_text(verb: str, values: Iterable[tuple[Option, Any]]) -> str:
    """The verb's table with every option that has a value."""
    lines, tables = [f"[{verb}]"], []
    for option, value in values:
        if value is None or (option.many and not value):
            continue
        if option.mapping:
            tables += ["", f"[{verb}.{config_key(option)}]", *(f"{_key(k)} = {_toml(v)}" for k, v in value.items())]
        else:
            lines.append(f"{config_key(option)} = {_toml(not value if option.inverted else value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(str(k))} = {_toml(v)}' for k, v in value.items())}}}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
