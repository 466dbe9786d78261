"""Two language models trained apart, and their midpoint by several matchings: bits per byte on held text.

    python -m tests.benchmarks.learned_language DIR [--kind llama|gpt2|gpt2-untied] [--steps 1400] [--way WAY …]

Trains the two, of 4 layers and 128 units, on the source of Python's standard library (`language_model.make_pair`), six
minutes each on one core, unless DIR holds them. Each row is one `rebasin align` and the `rebasin interpolate` of its
result, whose bits per byte on text that neither has seen it prints. Learning sees 2,000 blocks of 128 bytes: text, or
what the two models sample. Needs transformers.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from rebasin_cli.cli.app import main as rebasin
from tests.benchmarks.language_model import KINDS, make_pair

SAMPLED = "generated:text"
ALL = ("--symmetries", "all")
LEARNED = ("--method", "learned", "--data", "train.txt", "--limit", "2000", "--batch-size", "16")
WITHOUT_DATA = ("--method", "learned", "--data", SAMPLED, "--limit", "2000", "--batch-size", "16")
WAYS: dict[str, tuple[str, ...]] = {
    "permutations, weights": ("--method", "weight"),
    "permutations, activations": ("--method", "activation", "--data", "train.txt", "--limit", "500"),
    "permutations, learned, next token": LEARNED,
    "permutations, learned, without labels": (*LEARNED, "--unlabelled"),
    "permutations, learned on sampled text": WITHOUT_DATA,
    "all classes, weights and noise": ALL,
    "all classes, best start on sampled text": ("--method", "auto", "--data", SAMPLED, "--limit", "500", *ALL),
    "all classes, learned, next token": (*LEARNED, *ALL),
    "all classes, learned on sampled text": (*WITHOUT_DATA, *ALL),
}


def run(*words: str) -> None:
    """One command, which must succeed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = rebasin(list(words))
    if code:
        raise SystemExit(f"rebasin {' '.join(words)}: {err.getvalue()}")


def measured(place: Path, way: str, words: tuple[str, ...]) -> dict[str, object]:
    """Align, interpolate, and the figures of both."""
    out = str(place / "b-aligned")
    pair = (str(place / "a"), str(place / "b"), "--model", f"transformers:{place / 'a'}")
    words = tuple(str(place / word) if word == "train.txt" else word for word in words)
    shutil.rmtree(out, ignore_errors=True)
    run("align", *pair, *words, "-o", out, "--force")
    report, held = str(place / "b-aligned.json"), str(place / "held.txt")
    swept = place / "swept.json"
    run("interpolate", "--report", report, "--data", held, "--steps", "2", "-o", str(swept), "--force")
    aligned = json.loads(Path(report).read_text())["data"]
    text = json.loads(swept.read_text())["data"]["text"]["curves"]
    naive, matched = ([point["bits_per_byte"] for point in text[curve]] for curve in ("naive", "matched"))
    return {
        "way": way,
        "ends": [matched[0], matched[-1]],
        "naive": naive[1],
        "midpoint": matched[1],
        "cosine": aligned["cosine"]["after"],
        "steps": aligned["passes"],
        "learned_on": aligned["data"] and aligned["data"]["learned_on"],
    }


def main() -> None:
    """Train where needed, and one row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="llama")
    parser.add_argument("--steps", type=int, default=1400, help="of training")
    parser.add_argument("--way", action="append", choices=list(WAYS))
    parser.add_argument("--learning-steps", type=int, help="instead of the default")
    options = parser.parse_args()
    if not (options.place / "b" / "config.json").exists():
        size = {"width": 128, "layers": 4, "context": 128, "batch": 24, "most": 4 << 20}
        make_pair(options.place, options.kind, steps=options.steps, **size)
    ways = {way: words for way, words in WAYS.items() if way in (options.way or WAYS)}
    print("| matching | steps | similarity | ends | before alignment | midpoint, bits per byte |")
    print("|---|---|---|---|---|---|")
    for way, words in ways.items():
        learns = "learned" in words and options.learning_steps is not None
        more = ("--learning-steps", str(options.learning_steps)) if learns else ()
        row = measured(options.place, way, (*words, *more))
        ends = ", ".join(f"{end:.3f}" for end in row["ends"])  # type: ignore[attr-defined]
        print(
            f"| {way} | {row['steps']} | {row['cosine']:.4f} | {ends} | {row['naive']:.3f} | {row['midpoint']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
