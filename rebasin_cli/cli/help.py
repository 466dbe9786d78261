"""Help as text: examples first, options in named groups, at the width of the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rebasin_cli.cli.command import VerbCommand, value_name
from rebasin_cli.cli.layout import UNBROKEN, rows, width, wrapped
from rebasin_cli.cli.topics import TOPICS
from rebasin_cli.options import Option, bounds

GROUPS = (
    "Arguments", "Model", "Data", "Matching", "Learning", "Interpolation", "Verification", "Output", "Checkpoint",
    "General",
)  # fmt: skip
"""The order of the headings; others follow in the order of the options."""


def verb_help(command: VerbCommand) -> str:
    """The help of one verb."""
    columns = width()
    parts = [wrapped(f"Usage: {command.usage()}", columns), wrapped(command.summary, columns)]
    if command.details:
        parts.append(wrapped(command.details, columns))
    if command.examples:
        parts.append("\n".join(["Examples:", *_examples(command.examples, columns)]))
    for group, entries in _grouped(command.all_options):
        listed = [(_spelling(entry), _explained(entry)) for entry in entries]
        if group == "General":
            listed.append(("-h, --help", "Show this help and stop."))
        parts.append("\n".join([f"{group}:", *rows(listed, columns)]))
    parts.append(
        wrapped(
            "Exit codes: 0 done, 1 bug, 2 usage, 3 checkpoint, 4 model, 5 data, 6 output, 7 numbers, "
            "8 resources, 9 limit exceeded. See 'rebasin help exit-codes'.",
            columns,
        )
    )
    return "\n\n".join(parts)


SUMMARY = (
    "Align, verify and interpolate trained networks: rebasin finds the permutation of checkpoint B's hidden units that "
    "makes its weights most similar to checkpoint A's, without changing the function of B."
)


def program_help(commands: Sequence[VerbCommand]) -> str:
    """The help of the program: its verbs and the topics of `rebasin help`."""
    columns = width()
    general = [("-h, --help", "Show this help and stop."), ("--version", "Show the version and stop.")]
    examples = (
        ("rebasin align a.safetensors b.safetensors --model torchvision:resnet50", "permute b to match a"),
        ("rebasin interpolate --steps 10 --data imagenet/val", "evaluate the line between the two"),
        ("rebasin demo", "run an end-to-end demo, in about a minute"),
    )
    sections = (
        ("Examples:", _examples(examples, columns)),
        ("Verbs:", rows([(command.name, command.summary) for command in commands], columns, indent=16)),
        ("Topics of 'rebasin help TOPIC':", rows([(t.name, t.summary) for t in TOPICS], columns, indent=16)),
        ("Options:", rows(general, columns, indent=16)),
    )
    return "\n\n".join([
        "Usage: rebasin VERB [OPTIONS]",
        wrapped(SUMMARY, columns),
        *("\n".join([heading, *lines]) for heading, lines in sections),
        "Options of a verb: rebasin VERB --help",
    ])  # fmt: skip


def topic_names() -> tuple[str, ...]:
    """The names that `rebasin help` accepts beside those of verbs."""
    return tuple(topic.name for topic in TOPICS)


def topic_help(name: str) -> str:
    """The text of one topic."""
    return next(topic for topic in TOPICS if topic.name == name).text(width())


def _examples(examples: Iterable[tuple[str, str]], columns: int) -> list[str]:
    lines = []
    for typed, what in examples:
        lines += textwrap.wrap(f"# {what}", columns, initial_indent="  ", subsequent_indent="  ", **UNBROKEN)
        lines += [f"  {typed}"]
    return lines


def _grouped(entries: Iterable[Option]) -> list[tuple[str, list[Option]]]:
    groups: dict[str, list[Option]] = {group: [] for group in GROUPS}
    for entry in sorted(entries, key=lambda entry: not entry.required):
        groups.setdefault(entry.group, []).append(entry)
    last = GROUPS[-1]  # groups that are not listed stand before the general options
    ordered = [*(group for group in groups if group != last), last]
    return [(group, groups[group]) for group in ordered if groups[group]]


def _spelling(entry: Option) -> str:
    if entry.positional:
        return entry.flag.strip("[]")
    spelled = f"{entry.short}, {entry.flag}" if entry.short else f"    {entry.flag}"
    return f"{spelled} {value_name(entry)}".rstrip()


def _explained(entry: Option) -> str:
    parts = [entry.help]
    if entry.choices:
        parts.append(f"One of {', '.join(entry.choices)}.")
    elif entry.at_least is not None or entry.at_most is not None:
        parts.append(f"{bounds(entry.at_least, entry.at_most).capitalize()}.")
    if entry.required and not entry.positional:
        parts.append("Required.")
    elif (default := _default(entry)) is not None:
        parts.append(f"{default.capitalize()}." if default.startswith("required") else f"Default: {default}.")
    return " ".join(parts)


def _default(entry: Option) -> str | None:
    if entry.shown_default is not None:
        return entry.shown_default
    if entry.required or entry.kind == "flag" or entry.default in (None, ()):
        return None
    return f"{entry.default:g}" if isinstance(entry.default, float) else str(entry.default)
