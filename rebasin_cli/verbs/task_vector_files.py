"""The files of `metrics`: labels of the fine-tuned checkpoints, the base of each, and the data of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.checkpoint import split_name
from rebasin_cli.errors import UsageError, did_you_mean

PLAIN_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "open_clip_pytorch_model", "checkpoint", "weights")
"""Names that libraries give to every checkpoint: then the directory says which one it is."""


@dataclass(frozen=True, slots=True)
class TaskVectorFiles:
    """Labels in the order of the command line, and by label the checkpoint, its base, and its data (None: no data)."""

    labels: tuple[str, ...]
    tuned: Mapping[str, Path]
    bases: Mapping[str, Path]
    data: Mapping[str, str | None]

    @property
    def reference(self) -> str:
        return self.labels[0]

    @property
    def all(self) -> tuple[Path, ...]:
        """Every checkpoint once: the fine-tuned ones, then the bases."""
        return tuple(dict.fromkeys((*self.tuned.values(), *self.bases.values())))


def name_files(base: Path, finetuned: Sequence[Path], base_of: Sequence[str], data: Sequence[str]) -> TaskVectorFiles:
    """Label the checkpoints and give each its base and data.

    Args:
        finetuned: paths, each alone or as `LABEL=PATH`.
        base_of: `LABEL=PATH` for checkpoints whose base is not `base`.
        data: `LABEL=DATA`, or DATA for all.

    Raises:
        UsageError: fewer than two checkpoints, a label that is used twice or is unknown, or data for some only.
    """
    if len(finetuned) < 2:
        raise UsageError(
            f"{len(finetuned)} fine-tuned checkpoint given: metrics compare at least two",
            hint="usage: rebasin metrics BASE FINETUNED FINETUNED …",
        )
    given = [_labelled(path) for path in finetuned]
    made = _unique([path for label, path in given if label is None], [label for label, _ in given if label is not None])
    labels = tuple(next(made) if label is None else label for label, _ in given)
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise UsageError(f"two checkpoints have the label {twice[0]!r}", hint="name them: LABEL=PATH")
    pairs = Counter(f"{a}__{b}" for i, a in enumerate(labels) for b in labels[i + 1 :])
    if max(pairs.values()) > 1:
        raise UsageError(
            f"the labels make two pairs named {pairs.most_common(1)[0][0]!r}", hint="use others: LABEL=PATH"
        )
    bases = dict.fromkeys(labels, base)
    for text in base_of:
        label, _, path = text.partition("=")
        if not path:
            raise UsageError(f"--base-of {text}: expected LABEL=PATH", hint=f"labels are {', '.join(labels)}")
        bases[_known(label, labels, "--base-of")] = Path(path)
    return TaskVectorFiles(labels, dict(zip(labels, (p for _, p in given), strict=True)), bases, _data_of(labels, data))


def _labelled(path: Path) -> tuple[str | None, Path]:
    """The label and the path of `LABEL=PATH`; of a file whose name has an equals sign, no label."""
    label, sign, rest = str(path).partition("=")
    if not sign or path.exists() or "/" in label or not rest:
        return None, path
    if not label:
        raise UsageError(f"{path}: the label before '=' is empty")
    return label, Path(rest)


def _unique(paths: Sequence[Path], taken: Sequence[str]) -> Iterator[str]:
    """A label for each path: its stem; with its directory where stems repeat, then with a number."""
    stems = [_stem(path) for path in paths]
    repeated = {stem for stem, count in Counter([*stems, *taken]).items() if count > 1}
    longer = [
        f"{path.resolve().parent.name}-{stem}" if stem in repeated else stem
        for stem, path in zip(stems, paths, strict=True)
    ]
    seen = set(taken)
    for label in longer:
        number, unique = 1, label
        while unique in seen:
            number += 1
            unique = f"{label}-{number}"
        seen.add(unique)
        yield unique


def _stem(path: Path) -> str:
    real = path.resolve()
    if path.is_dir():
        return real.name
    stem = split_name(path)[0]
    return real.parent.name if stem.lower() in PLAIN_STEMS and real.parent.name else stem


def _known(label: str, labels: Sequence[str], option: str) -> str:
    if label not in labels:
        raise UsageError(
            f"{option} {label}=…: no checkpoint has this label{did_you_mean(label, labels)}",
            hint=f"labels are {', '.join(labels)}",
        )
    return label


def _data_of(labels: Sequence[str], data: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(labels)
    shared = [text for text in data if text.partition("=")[0] not in labels]
    if len(shared) > 1 or (shared and len(shared) < len(data) and not Path(shared[0]).exists()):
        _known(shared[-1].partition("=")[0], labels, "--data")
    if shared:
        found = dict.fromkeys(labels, shared[0])
    for text in data:
        label, _, name = text.partition("=")
        if label in labels:
            found[label] = name
    lacking = [label for label, name in found.items() if name is None]
    if data and lacking:
        raise UsageError(
            f"--data is given for some checkpoints, but not for {lacking[0]}",
            hint=f"--data {lacking[0]}=DATA, or one --data DATA for all",
        )
    return found
