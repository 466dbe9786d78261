"""What this program and the existing automatic tool understand of the same models, each model in a process of its own.

    python -m tests.benchmarks.peers [MODEL …] [--timeout SECONDS] [--json FILE] [--markdown FILE]

The existing tool is `rebasin` 0.0.47 with `torchview`; it has to be installed beside what this program requires, in an
environment of its own (`pip install --no-deps rebasin==0.0.47 torchview tqdm graphviz`). Both tools get the same
network in float64, with random weights, norm parameters and running statistics. In every group that a tool reports, its
units are reordered at random by the tool's own code; then the outputs are compared. A right answer shows as rounding
(1e-15).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.peer_tools import TOOLS, understand

MODELS = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:vgg11_bn",
    "torchvision:mobilenet_v2",
    "torchvision:densenet121",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "torchvision:swin_t",
    "torchvision:vit_b_16",
    "functional_convolutions",
    "functional_language_model",
    "functional_heads",
)
EXACT = 1e-9
WHAT = {
    "functional_convolutions": "a CNN written in functions, like hlb-CIFAR10",
    "functional_language_model": "a language model like hlb-GPT",
    "functional_heads": "the same with two heads",
}


@dataclass(frozen=True)
class Row:
    """What one tool makes of one model.

    Attributes:
        groups, share: how many groups it reports; the share of all parameters that they reorder.
        error: largest relative difference of the outputs; `neutral`: the same with the running statistics of every
            batch norm set to 0 and 1 on both sides, which forgives a tool that leaves them behind.
        seconds: of processor time until it has its groups.
        failure: why there is nothing of the above.
    """

    model: str
    tool: str
    groups: int = 0
    share: float = 0.0
    error: float = 0.0
    neutral: float = 0.0
    seconds: float = 0.0
    failure: str = ""

    @property
    def verdict(self) -> str:
        if self.failure:
            return self.failure
        if not self.groups:
            return "finds nothing"
        if self.error < EXACT:
            return "function kept"
        if self.neutral < EXACT:
            return f"changed by {self.error:.0e} until running statistics are measured anew"
        return f"**function changed** by {self.error:.0e}, silently"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="torchvision:NAME, or a file of tests/zoo")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for each model and tool")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--child", nargs=2, metavar=("TOOL", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(understand(*options.child)))
        return
    rows = []
    for model in options.models:
        for tool in TOOLS:
            rows.append(measure(model, tool, options.timeout))
            print(f"{model:34} {tool:10} {_figures(rows[-1])}  {rows[-1].verdict}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(rows))


def measure(model: str, tool: str, timeout: float) -> Row:
    """One tool on one model, in a process that may fail or hang."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.peers", "--child", tool, model]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Row(model, tool, failure=f"does not return in {timeout:.0f} s")
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
        return Row(model, tool, failure=f"raises {said.split(':')[0].rpartition('.')[2]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Row(model, tool, **found)


def _figures(row: Row) -> str:
    return f"{row.groups:6d} {row.share:7.1%} {row.error:9.0e} {row.neutral:9.0e} {row.seconds:7.1f} s"


def markdown(rows: list[Row]) -> str:
    """One line for each model, the tools side by side."""
    lines = [
        "| model | `rebasin` 0.0.47 | groups | moves | this program | groups | moves |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row.model for row in rows):
        cells = [WHAT.get(model, model.removeprefix("torchvision:"))]
        for tool in TOOLS:
            row = next(row for row in rows if (row.model, row.tool) == (model, tool))
            counts = ["", ""] if row.failure else [str(row.groups), f"{row.share:.1%}".replace("%", " %")]
            cells += [row.verdict, *counts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
