"""Python code that lies in a directory of transformers (`auto_map` in `config.json`). It runs only if it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.errors import ModelError, quoted
from rebasin_cli.model.source import import_optional

_CONFIG = "AutoConfig"
_PREFERRED = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel")


@dataclass(frozen=True, slots=True)
class DirectoryCode:
    """The classes that a directory brings along, by the name of the automatic class that each is for."""

    directory: Path
    classes: Mapping[str, str]

    def config_class(self) -> Any:
        """The class of the configuration; None if transformers has it.

        Raises:
            ModelError: the code lies elsewhere, or fails.
        """
        return self._load(self.classes[_CONFIG]) if _CONFIG in self.classes else None

    def model_class(self, architecture: str | None) -> Any:
        """The class of the model: the one with this name, or else the first of the usual kinds.

        Raises:
            ModelError: there is none, the code lies elsewhere, or fails.
        """
        models = {kind: where for kind, where in self.classes.items() if kind.startswith("AutoModel")}
        named = [where for where in models.values() if where.rpartition(".")[2] == architecture]
        usual = [models[kind] for kind in _PREFERRED if kind in models]
        found = [*named, *usual, *models.values()]
        if not found:
            raise ModelError(
                f"{self.directory / 'config.json'}: auto_map names no class of a model",
                path=self.directory,
                slug="unknown-model",
            )
        return self._load(found[0])

    def _load(self, where: str) -> Any:
        if "--" in where:
            raise ModelError(
                f"{self.directory / 'config.json'}: auto_map names code of another repository, {quoted(where)}",
                path=self.directory,
                hint="nothing is downloaded; copy the code into the directory",
                slug="needs-download",
            )
        modules = import_optional("transformers.dynamic_module_utils", "transformers")
        try:
            return modules.get_class_from_dynamic_module(where, str(self.directory), local_files_only=True)
        except OSError as error:
            raise ModelError(
                f"{self.directory}: the code {quoted(where)} that config.json names is not there",
                path=self.directory,
                slug="not-found",
            ) from error


def directory_code(directory: Path, config: Mapping[str, Any]) -> DirectoryCode | None:
    """The code that a configuration names; None if it names none."""
    found = config.get("auto_map")
    if not isinstance(found, Mapping):
        return None
    classes = {str(kind): where for kind, where in found.items() if isinstance(where, str)}
    return DirectoryCode(directory, classes) if classes else None
