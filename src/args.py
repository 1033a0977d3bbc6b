"""YAML and flags to one typed, checked configuration.

`Config` is the single definition of every key: its type, range, default and help. Defaults are the recipe of the
published DDRNet23, which docs/recipe.md compares item by item; a YAML file overrides them, flags override the file.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from src import __version__
from src.augment_spec import parse_spec
from src.colours import IMAGENET_MEAN, IMAGENET_STD
from src.errors import Parser, UserError, printable
from src.files import is_name, is_regular, read_text
from src.plain_yaml import LARGEST, read_value, read_yaml

MOST = 10**9  # what any count may be; keys that cost memory or time have lower limits of their own
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]
Alpha = Annotated[float, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
PositiveRate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Area = Annotated[float, Field(ge=1e-4, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Colours = Union[tuple[float, float, float], Literal["auto"]]

CONFIG_FILE = "config.yaml"  # what a run writes beside its weights, and how that begins
CONFIG_HEAD = "# What this run was told, whole."
# What a network was trained with and must be used with.
OF_THE_NETWORK = (
    "arch", "flavour", "num_classes", "image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std",
)  # fmt: skip

PATHS = frozenset({"pretrained", "data_url", "listing_cache", "compile_cache", "resume", "train_url"})

# What other programs call a key.
_SYNONYMS = {
    "aa": "auto_augment", "amp": "amp_level", "batch": "batch_size", "bs": "batch_size", "checkpoint": "pretrained",
    "config": "ddr_config", "data": "data_url", "data_dir": "data_url", "dataset": "data_url",
    "device": "device_target", "drop_path": "drop_path_rate", "ema": "ema_decay", "gpus": "device_num",
    "grad_accum_steps": "accumulation_step",
    "img_size": "image_size", "input_size": "image_size", "learning_rate": "base_lr", "lr": "base_lr",
    "mixup": "mix_up", "model": "arch", "name": "arch", "nesterov": "use_nesterov", "network": "arch",
    "opt": "optimizer", "output": "train_url", "output_dir": "train_url", "recount": "re_count", "remode": "re_mode",
    "reprob": "re_prob", "sched": "lr_scheduler", "scheduler": "lr_scheduler", "smoothing": "label_smoothing",
    "warmup": "warmup_length", "warmup_epochs": "warmup_length", "wd": "weight_decay",
    "workers": "num_parallel_workers",
}  # fmt: skip


def key(
    default: Any, help: str, changes: Literal["weights", "batch", "step", "nothing"] = "weights", **limits: Any
) -> Any:
    """A key of the configuration.

    Args:
        default: its value where nobody says another.
        help: its line in --help and docs/configuration.md.
        changes: what another value changes in a run. weights: what it learns, so that it cannot go on from a
            checkpoint of the other; batch: nothing, as long as the product of all such keys stays; step: how a step is
            computed, not what; nothing: where a run reads and writes, how much it says, how often it saves.
        limits: further keywords of pydantic's Field.
    """
    return Field(default, description=help, json_schema_extra={"changes": changes}, **limits)


Purpose = Literal["", "train", "eval", "export"]


class Config(BaseModel):
    """Everything that a run can be told. Immutable; the entry points parse it and hand it on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # network
    arch: Literal["DDRNet23Slim", "DDRNet23", "DDRNet39"] = key("DDRNet23", "network")
    flavour: Literal["zoo", "paper"] = key("zoo", "zoo: as the checkpoint on MindSpore Hub; paper: as the authors'")
    num_classes: Annotated[int, Field(ge=0, le=1_000_000)] = key(
        1000, "number of classes; must equal the number of class folders; 0: as many as there are"
    )
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = key(0.1, "drop path of the deepest residual unit; 0: off")
    drop_path_on: Literal["auto", "branch", "shortcut"] = key(
        "auto", "what drop path drops, with its rates; auto: the shortcut (flavour zoo), the branch (paper)"
    )
    pretrained: str = key("", "weights to start from, evaluate or export (.ckpt, .safetensors, .pth)", "nothing")
    freeze: Literal["", "stem", "stage1", "stage2", "stage3", "stage4", "backbone"] = key(
        "", "what stays as it is: all up to this stage of both branches; backbone: all but the classifier"
    )
    head_lr_scale: PositiveRate = key(1.0, "times the learning rate, for the classifier alone")

    # data
    data_url: str = key("./data/imagenet", "folder with train/ and val/, each with a folder a class", "nothing")
    set: str = key("ImageNet", "name of the data set, for reports; '': its folder's", "nothing")
    listing_cache: str = key(
        "", "folder that keeps listings of large data sets; '': list them at every start", "nothing"
    )
    image_size: Annotated[int, Field(ge=32, le=4096)] = key(224, "side of the network's input, pixels")
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = key(
        0.875, "evaluation: share of the resized side that is kept", "nothing"
    )
    crop_mode: Literal["squash", "center"] = key(
        "squash", "evaluation: resize both sides, or only the shorter one", "nothing"
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos", "random"] = key(
        "bicubic", "resizing; random: drawn per training image, bicubic in evaluation"
    )
    mean: Colours = key(IMAGENET_MEAN, "mean of red, green and blue, from 0 to 1; auto: measured on train/")
    std: Colours = key(IMAGENET_STD, "standard deviation of red, green and blue; auto: measured on train/")
    scale: tuple[Area, Area] = key((0.08, 1.0), "random resized crop: share of the image's area, from and to")
    ratio: tuple[Ratio, Ratio] = key((0.75, 4 / 3), "random resized crop: width to height, from and to")
    hflip: Share = key(0.5, "probability of a horizontal flip")
    auto_augment: str = key("rand-m9-mstd0.5-inc1", "RandAugment, AutoAugment or AugMix by its spec; '': none")
    color_jitter: Annotated[float, Field(ge=0, le=10)] = key(
        0.4, "brightness, contrast and saturation jitter, where auto_augment is ''"
    )
    re_prob: Share = key(0.0, "probability of random erasing")
    re_mode: Literal["const", "rand", "pixel"] = key(
        "pixel", "random erasing: the mean colour, one random colour, or noise"
    )
    re_count: Annotated[int, Field(ge=1, le=100)] = key(1, "random erasing: the most boxes an image")
    mix_up: Alpha = key(0.8, "MixUp alpha; 0: off")
    cutmix: Alpha = key(1.0, "CutMix alpha; 0: off")
    mixup_prob: Share = key(1.0, "probability of mixing a group (or, with pair and elem, a pair or sample)")
    switch_prob: Share = key(0.5, "probability of CutMix where both are on")
    mixup_mode: Literal["batch", "pair", "elem"] = key("batch", "one lambda a group, a pair, or a sample")
    mixup_group: Annotated[int, Field(ge=2, le=MOST, multiple_of=2)] = key(
        512, "images that share a draw of MixUp or CutMix, over all devices; more than a global batch has: one draw"
    )
    mixup_off_epoch: Epochs = key(0, "mix in epochs 1 to n only; 0: in all")
    label_smoothing: Decay = key(0.1, "share of a target spread over all classes")
    class_weights: Literal["", "balanced"] = key(
        "", "balanced: the training loss counts all classes alike, however many images each has"
    )
    num_parallel_workers: Positive = key(16, "decoding and augmentation threads a device", "nothing")

    # optimisation
    epochs: Annotated[int, Field(ge=1, le=100_000)] = key(300, "passes over the training images")
    start_epoch: Epochs = key(0, "epochs counted as done: their part of the schedule is skipped")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = key(512, "images a device and step", "batch")
    accumulation_step: Annotated[int, Field(ge=1, le=65_536)] = key(
        1, "batches whose gradients are averaged into one update", "batch"
    )
    optimizer: Literal["momentum", "sgd", "adamw", "lamb", "rmsprop"] = key("momentum", "optimizer")
    momentum: Decay = key(0.9, "momentum, sgd, rmsprop")
    use_nesterov: bool = key(True, "Nesterov's momentum (momentum, sgd)")
    beta: tuple[Decay, Decay] = key((0.9, 0.999), "decay of both moments (adamw, lamb)")
    eps: Annotated[float, Field(ge=1e-30, le=1)] = key(1e-8, "added to the denominator (adamw, lamb, rmsprop)")
    decay: Decay = key(0.9, "decay of the squared gradient (rmsprop)")
    weight_decay: Rate = key(1e-4, "weight decay; none on biases and batch norm")
    base_lr: PositiveRate = key(0.1, "learning rate after warmup, for a global batch of 256")
    warmup_lr: Rate = key(1e-6, "learning rate at the start of warmup, for a global batch of 256")
    min_lr: Rate = key(1e-5, "cosine_lr: learning rate at the end; else its floor; for a global batch of 256")
    lr_scheduler: Literal["cosine_lr", "multistep_lr", "exp_lr", "constant_lr"] = key("cosine_lr", "after warmup")
    warmup_length: Epochs = key(10, "epochs of linear warmup; multistep_lr has none")
    lr_adjust: Annotated[int, Field(ge=1, le=100_000)] = key(30, "multistep_lr: epochs between two steps")
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = key(0.97, "factor a step (multistep_lr) or an epoch (exp_lr)")
    ema_decay: Decay = key(0.0, "averaged weights: share that stays a step; 0: off")
    clip_global_norm: bool = key(True, "clip gradients by their global norm")
    clip_global_norm_value: Annotated[float, Field(gt=0, le=MOST)] = key(5.0, "the norm they are clipped to")
    amp_level: Literal["O0", "O1", "O2", "O3", "auto"] = key(
        "O2",
        "float16: O0 nowhere, O1 convolutions, O2 all but the classifier, O3 all; auto: O2, on the CPU O0 with "
        "convolutions in bfloat16 where that is faster",
    )
    cpu_kernels: Literal["native", "mindspore"] = key(
        "native",
        "CPU: kernels of our own, compiled at the first start; at amp_level O0 and auto for the network too",
        "step",
    )
    keep_bn_fp32: bool = key(True, "batch norm stays float32 at O2 and O3")
    is_dynamic_loss_scale: bool = key(True, "loss scale that follows overflows, from 4096")
    loss_scale: Annotated[float, Field(ge=1, le=2**32)] = key(
        1024.0, "fixed loss scale, where is_dynamic_loss_scale is False"
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 2)] = key(0, "of weights, order, augmentation, mixing and drop path")

    # run
    device_target: Literal["Ascend", "GPU", "CPU", "auto"] = key(
        "Ascend", "where to run; auto: the first of them that is there", "step"
    )
    device_id: Annotated[int, Field(ge=0, le=65_535)] = key(0, "which card", "nothing")
    device_num: Annotated[int, Field(ge=1, le=65_536)] = key(1, "number of cards, one process each", "batch")
    compile_cache: str = key(
        "", "folder that keeps the compiled step for the next start; '': compile at every start", "nothing"
    )
    graph_mode: Literal[0, 1] = key(0, "0: graph mode, 1: PyNative mode", "step")
    sink_size: Count = key(
        0, "steps between two looks at training; 0: every update; on Ascend, GPU above 0 with data sinking", "step"
    )
    eval_every: Count = key(1, "epochs between validations; 0: only after the last", "nothing")
    patience: Count = key(0, "epochs without a better top-1 after which the run ends; 0: never", "nothing")
    save_every: Count = key(1, "epochs between checkpoints; 0: only after the last", "nothing")
    save_steps: Count = key(0, "steps between checkpoints within an epoch; 0: none", "nothing")
    keep_checkpoint_max: Positive = key(5, "how many of those checkpoints are kept", "nothing")
    resume: str = key("", "auto: go on from the newest good checkpoint; or the path of one (.ckpt)", "nothing")
    resume_anyway: bool = key(False, "go on although keys that change the run differ from the checkpoint's", "nothing")
    overwrite: bool = key(False, "remove the run that train_url holds; otherwise it is refused", "nothing")
    tensorboard: bool = key(False, "also write event files for TensorBoard, by tensorboardX", "nothing")
    log_every: Positive = key(50, "steps between two lines in a log file", "nothing")
    train_url: str = key("", "folder for outputs; '': the current one", "nothing")
    run_modelarts: bool = key(False, "data_url and train_url are object-store addresses on ModelArts", "nothing")
    file_format: Literal["MINDIR", "AIR", "ONNX"] = key("MINDIR", "export: AIR only with an Ascend backend", "nothing")

    @field_validator("*")
    @classmethod
    def _text_of_a_name(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_name(value):  # YAML's escapes can write such a text
            raise ValueError("must be a text that a file could be named by")
        return value

    @field_validator(*PATHS)
    @classmethod
    def _home(cls, value: str) -> str:
        """The shell replaces ~ in --train_url ~/x, but neither in --train_url=~/x nor in a file, and there no $HOME."""
        path = os.path.expanduser(value)  # noqa: PTH111 (a Path would drop the // of obs://)
        if path.startswith("~"):
            raise ValueError("must begin with another folder: there is no such user")
        if re.search(r"(^|/)(\$\w+|\$\{\w+\})(/|$)", path):  # it would become a folder of that name
            raise ValueError("must have the variable's value in its place, as no shell has replaced it")
        return path

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """What the model zoo's files and flags write: 0. for a whole number, 0 and 1 for a boolean."""
        default = cls.model_fields[info.field_name or ""].default
        if isinstance(default, bool):
            return bool(value) if type(value) in (int, float) and value in (0, 1) else value
        if isinstance(default, int) and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _colours(cls, value: Any, info: ValidationInfo) -> Any:
        if value == "auto":
            return value
        least = 0 if info.field_name == "mean" else 1e-3
        numbers = isinstance(value, (tuple, list)) and len(value) == 3
        if not numbers or not all(type(part) in (int, float) and least <= part <= 1 for part in value):
            raise ValueError(f"must be auto, or three numbers from {least:g} to 1")
        return tuple(map(float, value))

    @field_validator("scale", "ratio")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not exceed the second")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _known_spec(cls, value: str) -> str:
        parse_spec(value)
        return value

    @property
    def mixes(self) -> bool:
        """Whether any batch is mixed."""
        return (self.mix_up > 0 or self.cutmix > 0) and self.mixup_prob > 0

    @property
    def images_an_update(self) -> int:
        """The global batch: images whose gradients make one update, over all devices."""
        return self.batch_size * self.device_num * self.accumulation_step


class Key(NamedTuple):
    """A key as the documents and --help show it.

    Attributes:
        allowed: in words, such as 'O0, O1 or O2' or 'a number from 0, below 1'.
        changes: as `key` takes it.
    """

    name: str
    default: Any
    allowed: str
    help: str
    changes: str


def keys() -> list[Key]:
    """Every key of the configuration, in the order of `Config`."""
    return [
        Key(name, field.default, _allowed(field.annotation, field.metadata), field.description or "", _changes(field))
        for name, field in Config.model_fields.items()
    ]


def keys_that_change(*what: str) -> frozenset[str]:
    """The keys that change such things in a run; `key` says which there are."""
    return frozenset(name for name, field in Config.model_fields.items() if _changes(field) in what)


def _changes(field: Any) -> str:
    return field.json_schema_extra["changes"]


def _allowed(kind: Any, limits: Iterable[Any]) -> str:
    """A type and its limits in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(inner[0], inner[1:])
    if origin is Literal:
        choices = [repr(choice) if choice == "" else str(choice) for choice in inner]
        return " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else choices[0]
    if origin is Union:
        return ", or ".join(_allowed(part, ()) for part in inner)
    if origin is tuple:
        return f"{'two' if len(inner) == 2 else 'three'} of: {_allowed(inner[0], ())}"
    if kind in (bool, str):
        return "True or False" if kind is bool else "a text"
    flat = [part for limit in limits for part in getattr(limit, "metadata", [limit])]
    found = {
        name: getattr(limit, name)
        for limit in flat
        for name in ("ge", "gt", "le", "lt", "multiple_of")
        if hasattr(limit, name)
    }
    words = "an even number" if found.get("multiple_of") == 2 else "a whole number" if kind is int else "a number"
    if "ge" in found or "gt" in found:
        words += f" from {found['ge']:g}" if "ge" in found else f" above {found['gt']:g}"
    if "lt" in found:
        words += f", below {found['lt']:g}"
    elif found.get("le", MOST) != MOST:
        words += f" to {found['le']:g}" if found["le"] < 1e5 else f" to {int(found['le'])}"
    return words


def parse_args(
    argv: Optional[Sequence[str]] = None,
    description: str = "",
    extra: Sequence[tuple[str, dict[str, Any]]] = (),
    purpose: Purpose = "",
    beside_weights: bool = False,
) -> tuple[Config, argparse.Namespace]:
    """The configuration and what else the command line says.

    Args:
        argv: the command line without the program's name; None: the process's own.
        description: what the program does, for --help.
        extra: flags of this program alone, as (name, keywords of `add_argument`).
        purpose: what the program does with the configuration, for the rules between keys.
        beside_weights: take what the file config.yaml beside `pretrained` says, where neither the YAML file nor a flag
            says otherwise, where the data lies too; what concerns that run alone is not taken from it.

    Returns:
        The configuration, and a namespace with ddr_config, the extra flags, `given`, the set of the configuration's
        keys that stood on the command line, `told`, the set of those and of the YAML file's, `beside`, the
        config.yaml beside the weights or '', and `notes`, lines on what differs from what the weights were trained
        with.

    Raises:
        UserError: the file or a flag is wrong; the message names the key and what would be right.
    """
    parser = Parser(
        prog=_module_name(),
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"DDRNet on MindSpore {__version__}")
    parser.add_argument("--ddr_config", metavar="YAML", help="configuration; flags override it")
    for entry in keys():
        parser.add_argument(
            f"--{entry.name}",
            nargs="+" if isinstance(entry.default, tuple) else None,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{entry.help}: {entry.allowed} (default: {entry.default!r})".replace("%", "%%"),
        )
    for name, keywords in extra:
        parser.add_argument(name, **keywords)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings]
        flag = printable(unknown[0].split("=")[0], 80)
        raise UserError(f"{flag}: no such flag{_nearest(flag, flags)}")

    given = {name: value for name, value in vars(known).items() if name in Config.model_fields}
    rest = argparse.Namespace(**{name: value for name, value in vars(known).items() if name not in given})
    rest.given = frozenset(given)
    values: dict[str, Any] = {}
    if rest.ddr_config is not None:
        rest.ddr_config = os.path.expanduser(rest.ddr_config)  # noqa: PTH111
        values = _values_in(rest.ddr_config, "--ddr_config ")
    typed = {name: _typed(name, value) for name, value in given.items()}
    _check(typed, "flag --")
    values.update(typed)
    rest.told = frozenset(values)
    rest.notes, rest.beside = [], ""
    if beside_weights and values.get("pretrained"):
        beside = Path(Config(pretrained=values["pretrained"]).pretrained).parent / CONFIG_FILE
        if is_regular(beside):
            trained = _values_in(str(beside), "")
            _check_whole(beside, trained)
            told = [name for name in OF_THE_NETWORK if name in values and name in trained]
            rest.notes = [
                f"{name}: {values[name]!r}, but {beside} says {trained[name]!r}, which the weights were trained with"
                for name in told
                if Config(**{name: values[name]}) != Config(**{name: trained[name]})
            ]
            rest.beside = str(beside)
            trained["device_target"] = "auto"  # weights are used on other machines too
            values = {**{name: trained[name] for name in trained if name not in _OF_A_RUN}, **values}
    config = Config(**values)
    _check_together(config, purpose)
    return config, rest


# What concerns a run alone: where it began, goes on and writes, and on which cards. Who uses its weights has their own.
_OF_A_RUN = frozenset(
    {"pretrained", "resume", "resume_anyway", "overwrite", "train_url", "run_modelarts", "device_id", "device_num"}
)


def _values_in(path: str, place: str) -> dict[str, Any]:
    """The checked keys of a YAML file."""
    values = read_yaml(path, _TEXTS, place)
    for name in values:
        if name not in Config.model_fields:
            shown = printable(name, 80)
            raise UserError(f"{path}: unknown key {shown!r}{_nearest(shown, Config.model_fields)}")
    _check(values, f"{path}: ")
    return values


def _check_whole(path: Path, values: dict[str, Any]) -> None:
    """Refuse a run's config.yaml that a full disk or a broken copy has cut: defaults would stand in for what it lacks.

    Raises:
        UserError: it is empty, or begins as a run writes it and lacks keys of the network.
    """
    missing = [name for name in OF_THE_NETWORK if name not in values]
    if missing and (not values or read_text(path, LARGEST).startswith(CONFIG_HEAD)):
        raise UserError(
            f"{path}: is cut short, it lacks {', '.join(missing)}; copy it again, or move it away and say all by "
            "--ddr_config and flags"
        )


def with_values(config: Config, values: dict[str, Any], place: str) -> Config:
    """The configuration with other values, checked.

    Raises:
        UserError: one is wrong; `place` says where it stands.
    """
    _check(values, place)
    checked = Config(**values)
    return config.model_copy(update={name: getattr(checked, name) for name in values})


def switch(help: str) -> dict[str, Any]:
    """The keywords of a flag that is off, on where it stands alone, or what True or False after it says."""
    return {"nargs": "?", "const": True, "default": False, "type": _boolean, "metavar": "True|False", "help": help}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() == "true"


_TEXTS = frozenset(name for name, field in Config.model_fields.items() if isinstance(field.default, str))


def _typed(name: str, value: Any) -> Any:
    """A flag's text as YAML would read it, or as it stands where the key is a text."""
    if name in _TEXTS:
        return value
    if not isinstance(value, list):
        return read_value(value, f"flag --{name}")
    items = [read_value(item, f"flag --{name}") for item in value]
    return items[0] if len(items) == 1 and isinstance(items[0], (tuple, str)) else tuple(items)


def _check(values: dict[str, Any], place: str) -> None:
    """Validate values from one source on their own, so that an error can say where the value stands."""
    try:
        Config(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        reason = first["msg"].replace("Value error, ", "").replace("Input should be", "must be")
        if first["type"] in ("missing", "too_long", "tuple_type"):
            reason = "must be two numbers"
        raise UserError(f"{place}{name}: {printable(reason, 300)}, not {printable(repr(values[name]))}") from error


def _check_together(config: Config, purpose: Purpose) -> None:
    """Rules between keys, which no key can tell by itself.

    Raises:
        UserError: two keys contradict each other in what the program is to do.
    """
    if purpose == "train" and config.start_epoch >= config.epochs:
        raise UserError(f"start_epoch: must be below epochs, {config.epochs}, not {config.start_epoch}")
    if purpose == "export" and config.file_format == "AIR" and config.device_target not in ("Ascend", "auto"):
        raise UserError("file_format: AIR needs --device_target Ascend; MINDIR serves on every device")
    if config.image_size / config.crop_pct > 5000:
        raise UserError(
            f"crop_pct: {config.crop_pct} of a side is to be {config.image_size} pixels (image_size), but images are "
            "resized to 5000 at most"
        )
    if purpose == "train":
        check_pairs(config)
        check_addresses(config)


def check_pairs(config: Config) -> None:
    """Mixing needs pairs of images.

    Raises:
        UserError: the batch is odd.
    """
    if config.mixes and config.batch_size % 2:
        raise UserError(
            f"batch_size: is {config.batch_size}, but mixing pairs images and needs an even one; "
            "or set mix_up and cutmix to 0"
        )


def check_addresses(config: Config) -> None:
    """On ModelArts data and outputs lie in an object store, and nowhere else.

    Raises:
        UserError: data_url or train_url is no address there; or an address elsewhere, of which a folder would be made.
    """
    if "://" in config.train_url and not config.run_modelarts:
        raise UserError(
            f"train_url: is {printable(repr(config.train_url))}, an address; name a folder, or on ModelArts add "
            "--run_modelarts True"
        )
    for name in ("data_url", "train_url") if config.run_modelarts else ():
        if "://" not in getattr(config, name):
            shown = printable(repr(getattr(config, name)))
            raise UserError(f"{name}: is {shown}; with run_modelarts it must be an address such as obs://...")


def _nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean base_lr?' for lr, by what other programs call it or by its letters."""
    known = list(known)
    dashes = "--" if name.startswith("--") else ""
    synonym = dashes + _SYNONYMS.get(name.lstrip("-").replace("-", "_").lower(), "")
    match = [synonym] if synonym in known else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else ""


def _module_name() -> Optional[str]:
    """How a module that is run by its name is called; None: it is a program's file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec is not None and spec.name.startswith("src.") else None
