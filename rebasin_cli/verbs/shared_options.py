"""Options that several verbs share: one name, one meaning, one help text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebasin_cli.options import AnyPaths, AnyTexts, OptionalPath, option, options_class

MODEL_HELP = (
    "Model: torchvision:NAME, timm:NAME, open_clip:NAME, transformers:DIR, diffusers:DIR, path/to/file.py:function or "
    "package.module:function. See 'rebasin help model-specs'."
)
DATA_HELP = (
    "Data: a folder of class folders or of images, an .npz file with x and y, torchvision:NAME@root, file.py:loader, "
    "or generated (no data). "
    "See 'rebasin help data'."
)


@options_class
class ModelCode:
    """How the model is built."""

    model_args: Mapping[str, Any] | None = option(
        "Argument of the model, such as num_classes=10. The value is JSON. Repeatable.",
        group="Model",
        flag="--model-arg",
        metavar="NAME=VALUE",
        default=None,
    )
    trust_remote_code: bool = option(
        "Run the Python code that lies in the directory of a transformers model.", group="Model", default=False
    )


@options_class
class ModelInput(ModelCode):
    """The same, and what it is run on."""

    inputs: AnyTexts = option(
        "Example input: a shape such as 1,3,224,224, or ids=1,16:int64. Repeatable.",
        group="Model",
        flag="--input",
        metavar="SHAPE",
        default=(),
        shown_default="known for named models, inferred for others where possible",
    )
    input_file: OptionalPath = option(
        "Example input from an .npz file.", group="Model", metavar="FILE.npz", default=None
    )


@options_class
class RequiredModel(ModelInput):
    """The model where only the user knows it."""

    model: str = option(MODEL_HELP, group="Model", short="-m", metavar="SPEC", completes="model")


@options_class
class Derivation:
    """How the axis groups of the model are found and verified."""

    spec: OptionalPath = option(
        "Read the axis groups from this file instead of deriving them.", group="Model", metavar="FILE", default=None
    )
    pins: AnyTexts = option(
        "Do not permute the axes of tensors whose name matches, such as 'head.*'. Repeatable.",
        group="Model",
        flag="--pin",
        metavar="PATTERN",
        default=(),
    )
    rules: AnyPaths = option(
        "Python file with rules for your own operations. Repeatable.", group="Model", metavar="FILE.py", default=()
    )
    trace_calls: AnyTexts = option(
        "Trace another method of the model too, called with the example input, such as encode. Repeatable.",
        group="Model",
        flag="--trace-call",
        metavar="METHOD",
        default=(),
    )
    also_inputs: AnyTexts = option(
        "Trace the model on this input too: arguments separated by ';', such as 'ids=1,16:int64; task=b'. Repeatable.",
        group="Model",
        flag="--also-input",
        metavar="ARGUMENTS",
        default=(),
    )
    strict: bool = option(
        "Refuse an operation that has no rule, and tensors that no pass reaches and that could read permuted units.",
        group="Model",
        default=False,
    )
    cache: bool = option(
        "Neither read nor write verified specs in the user's cache directory.", group="Model", default=True
    )
    save_spec: OptionalPath = option(
        "Save the axis groups, as --spec reads them.", group="Output", metavar="FILE", default=None
    )


@options_class
class DataReading:
    """How data are read; the same for every verb that takes data."""

    transform: str | None = option(
        "Image transform: resize=256,crop=224,mean=a/b/c,std=a/b/c, the name of a preset, file.py:function, or raw.",
        group="Data",
        metavar="TEXT",
        default=None,
        shown_default="that of the model",
    )
    class_map: OptionalPath = option(
        "File with the name of a class folder in each line, in the order of the model's outputs.",
        group="Data",
        metavar="FILE",
        default=None,
    )
    class_order: str | None = option(
        "Order of class folders: numeric (9, 10), or text (10, 9) as in torchvision's ImageFolder.",
        group="Data",
        metavar="ORDER",
        choices=("numeric", "text"),
        default=None,
        shown_default="by name or number where the folders have such names",
    )
    loss: str | None = option(
        "Loss: f(output, target).",
        group="Data",
        metavar="FILE.py:FUNCTION",
        default=None,
        shown_default="cross-entropy",
    )
    limit: int | None = option(
        "Use N random samples of the data, or make N generated inputs.",
        group="Data",
        metavar="N",
        at_least=1,
        default=None,
        shown_default="all; 512 generated inputs",
    )
    batch_size: int = option("Batch size.", group="Data", metavar="N", at_least=1, default=64)
    workers: int = option("Number of processes that decode images.", group="Data", metavar="N", at_least=0, default=0)
    skip_corrupt: bool = option("Skip and count images that cannot be read.", group="Data", default=False)


@options_class
class StateChoice:
    """Which state dict of a checkpoint is read."""

    key: str | None = option(
        "Where in the file the state dict is, such as ema.model.",
        group="Checkpoint",
        metavar="NAME",
        default=None,
        shown_default="detected automatically",
    )
    ema: bool = option(
        "Use the exponential moving average of the weights, where the file has one.", group="Checkpoint", default=False
    )


@options_class
class StateInFile(StateChoice):
    """The same, and how strictly it must fit the model."""

    ignore_extra: bool = option(
        "Copy tensors that the model does not have unchanged, without a warning.",
        group="Checkpoint",
        default=False,
    )


@options_class
class StateOfEach(StateInFile):
    """The same for two checkpoints, together or each on its own."""

    key_a: str | None = option("--key for A alone.", group="Checkpoint", metavar="NAME", default=None)
    key_b: str | None = option("--key for B alone.", group="Checkpoint", metavar="NAME", default=None)
    ema_a: bool = option("--ema for A alone.", group="Checkpoint", default=False)
    ema_b: bool = option("--ema for B alone.", group="Checkpoint", default=False)

    @property
    def state_of_a(self) -> tuple[str | None, bool]:
        """Key, and whether the moving average is taken."""
        return self.key_a or self.key, self.ema_a or self.ema

    @property
    def state_of_b(self) -> tuple[str | None, bool]:
        return self.key_b or self.key, self.ema_b or self.ema


@options_class
class Writing:
    """How outputs are written."""

    force: bool = option("Overwrite outputs that exist.", group="Output", short="-f", default=False)
    mkdir: bool = option("Create the output's directory if it is missing.", group="Output", default=False)


@options_class
class Siblings:
    """What becomes of other states in the file."""

    drop_siblings: bool = option(
        "Write the weights alone, without optimizer state, EMA copies and whatever else lies beside them.",
        group="Output",
        default=False,
    )


@options_class
class Seed:
    """The one source of randomness."""

    seed: int = option("Random seed.", group="General", default=0)


@options_class
class NetworkReading(ModelInput, Derivation, StateInFile, Seed):
    """What a verb that knows the model needs to open networks of it and to find its axis groups."""


@options_class
class NetworkOptions(RequiredModel, NetworkReading):
    """The same, with the model that the user must name."""
