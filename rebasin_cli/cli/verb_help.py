"""`rebasin help`."""

from __future__ import annotations

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.help import program_help, topic_help, topic_names, verb_help
from rebasin_cli.cli.output import Output
from rebasin_cli.options import argument, options_class


def _names() -> tuple[str, ...]:
    from rebasin_cli.cli.app import verb_names

    return (*topic_names(), *verb_names())


@options_class
class HelpOptions:
    """The options of `help`."""

    topic: str | None = argument("A topic or a verb.", metavar="[TOPIC]", default=None, choices=_names, kw_only=False)


def _run(options: HelpOptions, output: Output) -> None:
    from rebasin_cli.cli.app import commands

    by_name = {command.name: command for command in commands()}
    if options.topic is None:
        text = program_help(commands())
    elif options.topic in topic_names():
        text = topic_help(options.topic)
    else:
        text = verb_help(by_name[options.topic])
    output.finish_text({"topic": options.topic, "text": text}, text)


COMMAND = VerbCommand(
    name="help",
    place=110,
    summary="Show the help of a verb, or explain a topic.",
    options=HelpOptions,
    run=_run,
    examples=(("rebasin help exit-codes", "what scripts can rely on"),),
)
