"""The topics of `rebasin help`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rebasin_cli.cli.layout import rows, wrapped

EXIT_CODES = (
    (0, "done, complete and verified"),
    (1, "a bug in rebasin"),
    (2, "invalid command line"),
    (3, "a checkpoint cannot be read safely"),
    (4, "model, tensor names, shapes or trace"),
    (5, "data"),
    (6, "output: exists, is an input, not a regular file, no permission, disk full"),
    (7, "numbers: not finite, or the verification failed"),
    (8, "resources: memory, device, missing or broken optional package"),
    (
        9,
        "a limit such as --fail-above was exceeded, or --fail-unless not met; the files are written",
    ),
    (130, "interrupted (SIGINT)"),
    (141, "output pipe closed (SIGPIPE)"),
    (143, "terminated (SIGTERM)"),
)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: its name, one line for the list of topics, and its text at a width in columns."""

    name: str
    summary: str
    text: Callable[[int], str]


def _exit_codes(columns: int) -> str:
    listed = rows([(str(code), meaning) for code, meaning in EXIT_CODES], columns, indent=8)
    note = "With --json, an error is one JSON document too: its field error.exit_code has the code, error.slug a name."
    return "\n".join(["Exit codes:", *listed, "", wrapped(note, columns)])


def _model_specs(columns: int) -> str:
    forms = (
        ("torchvision:NAME", "a model of torchvision, such as torchvision:resnet50"),
        ("timm:NAME", "a model of timm. Needs the extra 'timm'."),
        ("open_clip:NAME", "a model of open_clip. Needs the extra 'open-clip'."),
        ("transformers:DIR", "a local directory with the config.json of a transformers model"),
        ("diffusers:DIR", "a local directory with the config.json of a diffusers model"),
        ("path/to/file.py:function", "your own code: a function without required arguments that returns an nn.Module"),
        ("package.module:function", "the same in an installed package"),
    )
    notes = (
        "Weights are never downloaded. 'rebasin models' lists the names.\n\n"
        "Arguments of the model: --model-arg num_classes=10. The value is JSON. If the checkpoint has another number "
        "of classes than the model's default, the checkpoint's is used, and a note says so.\n\n"
        "Example input: known for named models. For your own: --input 1,3,224,224 for one float tensor, "
        "--input ids=1,16:int64 for a keyword argument with a dtype, or --input-file sample.npz."
    )
    return "\n".join(["Values of --model:", *rows(forms, columns, indent=30), "", wrapped(notes, columns)])


def _data(columns: int) -> str:
    forms = (
        ("imagenet/val", "a folder with one folder of images per class, named by class or by WordNet ID"),
        ("images", "a folder of images without labels"),
        ("samples.npz", "arrays x and y: inputs and labels (or targets); or x alone, as in samples.npy"),
        ("text.txt", "text for a language model; also a folder, or .jsonl with a field text"),
        ("torchvision:CIFAR10@root", "a dataset of torchvision that is already in the directory root"),
        ("file.py:loader", "your own function. It returns an iterable of batches, or a dataset."),
        ("generated", "no data: inputs that the networks make; generated:inverted, :leaves, :noise or :text"),
    )
    notes = (
        "Images, also those in arrays as pixels, are transformed as the model's pretrained weights require; without "
        "such, mean and deviation are a guess. --transform changes that; --transform raw takes the numbers as they "
        "are.\n\n"
        "Class folders are matched with the model's classes by name or number. --class-order numeric|text and "
        "--class-map FILE state the order. A mismatch is an error.\n\n"
        "A batch of a loader is (inputs, targets), with as many inputs as the model takes; or a mapping of inputs by "
        "name, with the targets under labels, label, targets, target or y; or inputs alone. Batches are tensors (or "
        "arrays of numpy) whose first axis is the batch. Class numbers are integers of shape (n,), from 0; -100, and "
        "255 in masks, are left out. Other targets need --loss file.py:function, called as f(output, target).\n\n"
        "Data without labels serve for activations, statistics, and learning by distance; a line is then compared with "
        "its ends.\n\n"
        "Text is read with the tokenizer in the model's directory, or byte by byte, in blocks of the model's "
        "context.\n\n"
        "generated makes inputs from the networks alone: text that language models sample, else inputs that all "
        "networks give one class, --limit of them (512). They serve for activations, statistics and learning; what is "
        "measured on them says nothing of a barrier on data.\n\n"
        "--limit N uses N random samples, drawn with --seed. --batch-size sets the batch size."
    )
    return "\n".join(["Values of --data:", *rows(forms, columns, indent=30), "", wrapped(notes, columns)])


def _methods(columns: int) -> str:
    from rebasin_cli.matching.methods import METHODS
    from rebasin_cli.matching.plan import EFFORT_HELP
    from rebasin_cli.matching.starts import STARTS

    methods = [
        (method.name, f"{method.help}{''.join(f' Also called {alias}.' for alias in method.aliases)}")
        for method in METHODS
    ]
    note = (
        "The default is weight; with --data, auto. The identity is always a candidate, so the similarity of the result "
        "is never below that of B as it is."
    )
    return "\n".join([
        "Values of --method:", *rows(methods, columns, indent=16), "",
        "Values of --effort:", *rows(EFFORT_HELP.items(), columns, indent=16), "",
        "Values of --start:", *rows([(start.name, start.help) for start in STARTS], columns, indent=16), "",
        wrapped(note, columns),
    ])  # fmt: skip


def _merging(columns: int) -> str:
    from rebasin_cli.merging.methods import METHODS

    by_name = {method.name: method.help for method in METHODS}
    who = (
        ("reference", "each to the reference; with --reference auto, to the one most similar to all others"),
        ("merge-many", "each in turn to the mean of the others, until none moves (Git Re-Basin, Algorithm 3)"),
        ("cycle-consistent", "all annealed together, through one common order (C2M3)"),
        ("none", "nobody"),
    )
    note = (
        "Methods on task vectors need --base. Checkpoints that share a base lie in one order already: they are "
        "permuted together, or not at all."
    )
    return "\n".join([
        "Values of merge --method:", *rows(sorted(by_name.items()), columns, indent=18), "",
        "Values of merge --align:", *rows(who, columns, indent=18), "",
        wrapped(note, columns),
    ])  # fmt: skip


def _formats(columns: int) -> str:
    from rebasin_cli.report import formats

    listed = [("json", "one JSON document, for programs"), *((name, formats.help_of(name)) for name in formats.names())]
    return "\n".join(["Values of --format:", *rows(listed, columns, indent=12)])


def _terms(columns: int) -> str:
    terms = (
        ("unit", "one index along a permutable axis: a channel, a neuron, a head"),
        ("axis group", "all axes that one permutation moves together"),
        ("pinned", "an axis that is not permuted; 'rebasin trace' prints the reason"),
        ("permutation spec", "all axis groups of a model, as data. Saved with --save-spec, read with --spec."),
        ("alignment", "the permutations that were found. Saved with --save-alignment, used by 'rebasin apply'."),
        ("lam", "the position on the line: 0 is A, 1 is B, and (1 - lam) A + lam B between them"),
        (
            "barrier",
            "the largest increase of the loss on the line over the linear interpolation of the losses at its ends",
        ),
        ("similarity", "the inner product of A's parameters with those of B; cosine: normalized to at most 1"),
        ("inside", "the group whose blocks hold the units of this group, such as the heads of an attention layer"),
        ("pass", "one visit to every axis group during matching"),
        ("noise floor", "the difference of the outputs that rounding alone explains, measured in float64"),
        ("before, after alignment", "B as it is in its file; B permuted ('naive' and 'matched' in JSON)"),
        ("recalibrate", "re-estimate the running statistics of BatchNorm for an interpolated network"),
        ("REPAIR", "restore mean and deviation of every unit's activations (Jordan et al. 2023)"),
    )
    return "\n".join(["Terms:", *rows(terms, columns, indent=20)])


def _config(columns: int) -> str:
    text = (
        "--config FILE.toml reads options from a file: one table per verb, with the options' names as keys. Options on "
        "the command line take precedence. --print-config prints the options of a command in this form."
    )
    example = (
        "  [align]", '  model = "torchvision:resnet18"', "  seed = 3", '  pin = ["fc.*"]', "", "  [align.model-arg]",
        "  num_classes = 10",
    )  # fmt: skip
    return "\n".join([wrapped(text, columns), "", *example])


TOPICS = (
    Topic("exit-codes", "exit codes, for scripts", _exit_codes),
    Topic("model-specs", "values of --model, and the example input", _model_specs),
    Topic("data", "values of --data", _data),
    Topic("methods", "matching methods, search efforts, starting points", _methods),
    Topic("merging", "how checkpoints are merged, and who is aligned to whom", _merging),
    Topic("formats", "values of --format", _formats),
    Topic("terms", "the terms that output and help use", _terms),
    Topic("config", "options from a configuration file", _config),
)
