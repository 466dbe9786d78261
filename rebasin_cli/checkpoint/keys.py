"""Matching the keys of a file with those of the model, ignoring the prefixes that training wrappers add.

`DataParallel` adds `module.`, `torch.compile` adds `_orig_mod.` (at the front, or in the middle of a key where a
submodule was wrapped), Lightning and others put the network under an attribute (`model.`, `net.`). The file's own
names are kept for writing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.computed_weights import explained
from rebasin_cli.checkpoint.copies import copies_in_file, plain_name
from rebasin_cli.errors import ModelError, few, quoted

_USUAL_PREFIXES = ("", "model", "net", "network", "backbone", "encoder", "student")
# torch also accepts its absence: files older than PyTorch 0.4.1 do not have it.
_COUNTERS = ".num_batches_tracked"


@dataclass(frozen=True, slots=True)
class KeyMap:
    """How a file's keys and the model's correspond.

    Attributes:
        to_file: model key -> file key; tied model keys that the file stores once point to the same file key.
        to_model: file key -> model key, for every file key that the model knows.
        extra: file keys that the model does not know, in file order.
        absent: optional model keys that the file lacks.
        copies: file keys of further copies of the weights (`teacher.…`) -> the file keys that they are copies of.
    """

    to_file: Mapping[str, str]
    to_model: Mapping[str, str]
    extra: tuple[str, ...]
    absent: tuple[str, ...]
    copies: Mapping[str, str] = field(default_factory=dict)


class KeyMismatch(ModelError):
    """Keys of the model are missing in the file, or the file has others.

    Attributes:
        missing: how many of the model's.
    """

    missing: int = 0


def match_keys(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ties: Mapping[str, str],
    optional: Collection[str] = (),
    ignore_extra: bool = False,
) -> KeyMap:
    """Find every tensor of the model in a checkpoint.

    Args:
        checkpoint: the file.
        shapes: the model's keys and shapes.
        ties: model key -> the canonical key of the tensor it shares.
        optional: model keys that may be absent; `num_batches_tracked` always may.
        ignore_extra: accept file keys that the model does not know.

    Raises:
        ModelError: keys are missing or unexpected, or shapes differ; the message names keys, file and both shapes.
    """
    found = paired(tuple(checkpoint.infos), tuple(shapes))
    to_model = {file_key: model_key for model_key, file_key in found.items()}
    to_file = _with_ties(found, shapes, ties, checkpoint)
    lacking = [key for key in shapes if key not in to_file]
    absent = tuple(key for key in lacking if key in optional or key.endswith(_COUNTERS))
    tolerated = set(absent)
    missing = [key for key in lacking if key not in tolerated]
    copies = copies_in_file(checkpoint.infos, to_model, ties)
    extra = tuple(key for key in checkpoint.infos if key not in to_model and key not in copies)
    refuse_wrong_keys(checkpoint, missing, () if ignore_extra else extra, len(shapes))
    _refuse_wrong_shapes(checkpoint, to_file, shapes)
    return KeyMap(to_file, to_model, extra, absent, copies)


def is_counter(key: str) -> bool:
    """Whether the key is a counter of batches, which files older than PyTorch 0.4.1 do not have."""
    return key.endswith(_COUNTERS)


MAX_PREFIXES = 3


def offers(file_keys: tuple[str, ...], model_keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Names under which a loader may know the file's tensors, each with the file's key.

    Its own come first; then those of the other interface for normalised weights; then those without wrappers, without a
    prefix that many of the keys share, and with one that all of the model's keys share.
    """
    own = {key: key for key in file_keys}
    yield own
    plain = _by_plain_name(file_keys)
    seen = [own]
    shorter = (plain, *_without_shared(plain), *_with_first(plain, model_keys))
    for names in (_under_other_norms(own), *shorter, *map(_under_other_norms, shorter)):
        if names not in seen:
            seen.append(names)
            yield names


_NORMS = (
    (("weight_orig", "weight_u", "weight_v"), ("original", "0._u", "0._v")),  # spectral
    (("weight_g", "weight_v"), ("original0", "original1")),
)
"""Suffixes of the old and the new interface of PyTorch's normalised weights; its hooks read one of them at most."""


def _under_other_norms(names: Mapping[str, str]) -> dict[str, str]:
    """Normalised weights under the names that the other interface gives them."""
    found = dict(names)
    for old, new in _NORMS:
        wide = tuple(f"parametrizations.weight.{suffix}" for suffix in new)
        for here, there in ((old, wide), (wide, old)):
            for owner in [key.removesuffix(here[0]) for key in names if key.endswith(f".{here[0]}")]:
                if all(owner + suffix in found for suffix in here):
                    found |= {owner + to: found.pop(owner + suffix) for suffix, to in zip(here, there, strict=True)}
    return found


def _without_shared(plain: Mapping[str, str]) -> Iterator[dict[str, str]]:
    counts = Counter(name.partition(".")[0] for name in plain if "." in name)
    for prefix, _ in counts.most_common(MAX_PREFIXES):
        yield {short: key for name, key in plain.items() if (short := _without(prefix, name)) is not None}


def _with_first(plain: Mapping[str, str], model_keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
    counts = Counter(plain_name(key).partition(".")[0] for key in model_keys if "." in key)
    if len(counts) == 1:
        yield {_joined(next(iter(counts)), name): key for name, key in plain.items()}


def paired(file_keys: tuple[str, ...], model_keys: tuple[str, ...]) -> dict[str, str]:
    """Model key -> file key: equal names; otherwise equal names without wrappers, under one prefix for all of them.

    One prefix, because a file that lacks `fc.bias` and has `aux.fc.bias` must be refused.
    """
    known = set(file_keys)
    exact = {key: key for key in model_keys if key in known}
    if len(exact) == len(model_keys):
        return exact
    files, models = _by_plain_name(file_keys), _by_plain_name(model_keys)
    own, theirs = _best_prefix(files, models)
    pairs: dict[str, str] = {}
    for plain, model_key in models.items():
        wanted = _joined(own, plain) if not theirs else _without(theirs, plain)
        if wanted is not None and wanted in files:
            pairs[model_key] = files[wanted]
    taken = set(pairs.values())
    return pairs | {key: key for key in exact if key not in pairs and key not in taken}


def _by_plain_name(keys: Iterable[str]) -> dict[str, str]:
    """Plain name -> key; names that would belong to two keys are left out, so that nothing is guessed."""
    every = list(keys)
    counts = Counter(map(plain_name, every))
    return {plain_name(key): key for key in every if counts[plain_name(key)] == 1}


def _best_prefix(files: Collection[str], models: Collection[str]) -> tuple[str, str]:
    """The prefix that the file's names, or the model's, have in addition, and that matches most names.

    Ties are broken by the list of usual prefixes (no prefix first), then length, then alphabetically.
    """
    longer = _prefixes(files, models)
    shorter = _prefixes(models, files)
    ranked = [(-count, _usual(prefix), 0, len(prefix), prefix) for prefix, count in longer.items()]
    ranked += [(-count, _usual(prefix), 1, len(prefix), prefix) for prefix, count in shorter.items() if prefix]
    if not ranked:
        return "", ""
    *_, side, _, prefix = min(ranked)
    return ("", prefix) if side else (prefix, "")


def _prefixes(longer: Collection[str], shorter: Collection[str]) -> Counter[str]:
    """How many names of `longer` become one of `shorter` when a given prefix is taken off."""
    counts: Counter[str] = Counter()
    known = set(shorter)
    for name in longer:
        parts = name.split(".")
        counts.update(".".join(parts[:cut]) for cut in range(len(parts)) if ".".join(parts[cut:]) in known)
    return counts


def _usual(prefix: str) -> int:
    return _USUAL_PREFIXES.index(prefix) if prefix in _USUAL_PREFIXES else len(_USUAL_PREFIXES)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _without(prefix: str, name: str) -> str | None:
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}.") else None


def _with_ties(
    found: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    ties: Mapping[str, str],
    checkpoint: Checkpoint,
) -> dict[str, str]:
    """Add model keys whose tensor the file stores under another name, by the model's ties or the file's metadata."""
    stored: dict[str, str] = {}
    for model_key, file_key in found.items():
        stored.setdefault(ties.get(model_key, model_key), file_key)
    recorded = {name: tie[0] for tie in checkpoint.ties for name in tie[1:] if tie[0] in checkpoint.infos}
    result: dict[str, str] = {}
    for key in shapes:
        under = found.get(key) or stored.get(ties.get(key, key)) or recorded.get(key)
        if under is not None:
            result[key] = under
    return result


def refuse_wrong_keys(checkpoint: Checkpoint, missing: list[str], extra: tuple[str, ...], wanted: int) -> None:
    """Refuse keys that are missing of `wanted`; those that the model does not have are named too.

    Alone these are no error here: they are judged by what they could read, once that is known.

    Raises:
        KeyMismatch: naming them.
    """
    if not missing:
        return
    parted = explained(missing, extra)
    if parted is not None:
        error = KeyMismatch(f"{checkpoint.path}: {parted[0]}", path=checkpoint.path, hint=parted[1], slug="parts")
        error.missing = len(missing)
        raise error
    parts = [f"missing {_counted(missing)} that the model has"]
    hint = "is this a checkpoint of this model?" if len(missing) * 2 > wanted else None
    if any(".lora_A." in key for key in extra):
        hint = (
            "this is a LoRA adapter: merge it into its base first; "
            "'rebasin transfer' takes one as FINETUNED, with its adapter_config.json"
        )
    if extra:
        parts.append(f"unexpected {_counted(extra)} that the model does not have")
    error = KeyMismatch(f"{checkpoint.path}: {'; '.join(parts)}", path=checkpoint.path, hint=hint, slug="keys")
    error.missing = len(missing)
    raise error


def _counted(keys: Collection[str]) -> str:
    return f"key {few(keys)}" if len(keys) == 1 else f"{len(keys):,} keys: {few(keys)}"


def _refuse_wrong_shapes(
    checkpoint: Checkpoint, to_file: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = [
        f"{quoted(file_key)} has shape {list(checkpoint.infos[file_key].shape)}, the model's has {list(shapes[key])}"
        for key, file_key in to_file.items()
        if checkpoint.infos[file_key].shape != tuple(shapes[key])
    ]
    if wrong:
        rest = f", and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        text = f"{checkpoint.path}: shape mismatch: {'; '.join(wrong[:3])}{rest}"
        raise ModelError(text, path=checkpoint.path, slug="shapes")
