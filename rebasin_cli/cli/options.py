"""Options that several verbs share: one name, one meaning, one help text."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Color(str, Enum):
    """When to colour."""

    auto = "auto"
    always = "always"
    never = "never"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        help="torchvision:NAME, path/to/file.py:callable or package.module:callable; see 'rebasin models'.",
    ),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="NAME=VALUE", help="A model argument: num_classes=10."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SHAPE", help="Example input: 1,3,224,224 or ids=1,16:int64. Repeatable."),
]
InputFile = Annotated[Path | None, typer.Option("--input-file", metavar="NPZ", help="Example input from an .npz file.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every random choice; it is in the result.")]
Device = Annotated[str, typer.Option("--device", help="Where the products are computed: cpu, cuda, cuda:1, mps.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither use nor keep verifications in the user's cache directory.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite outputs that exist.")]
Mkdir = Annotated[bool, typer.Option("--mkdir", help="Make the output's directory where it is missing.")]
IgnoreExtra = Annotated[
    bool, typer.Option("--ignore-extra", help="Pass on tensors that the model does not have, as they are.")
]
Key = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Where in the file the state dict lies, such as ema.model.")
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the exponential moving average where the file holds one.")]
Pins = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="PATTERN", help="Tensors that keep their order, such as 'head.*'. Repeatable."),
]
Rules = Annotated[
    list[Path] | None,
    typer.Option("--rules", metavar="FILE.py", help="Your file with rules for your own operations. Repeatable."),
]
SpecFile = Annotated[
    Path | None, typer.Option("--spec", metavar="FILE", help="Take the groups from a file instead of deriving them.")
]
Strict = Annotated[bool, typer.Option("--strict", help="An operation that no rule understands is an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout, also for an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes; print only the path written.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail.")]
ColorOption = Annotated[Color, typer.Option("--color", help="Colour the output; NO_COLOR is minded.")]
