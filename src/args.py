"""YAML and flags to one typed, checked configuration.

`Config` is the single definition of every key: its type, range, default and help. Defaults are the recipe that
reproduces the published DDRNet23; a YAML file overrides them, flags override the file.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from src.augment_spec import parse_spec
from src.errors import UserError
from src.models.architectures import ARCHITECTURES, FLAVOURS

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def key(default: Any, help: str, **limits: Any) -> Any:
    """A key of the configuration: its default, its line in --help and the README, and its limits."""
    return Field(default, description=help, **limits)


class Config(BaseModel):
    """Everything that a run can be told. Immutable; the entry points parse it and hand it on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # network
    arch: Literal[tuple(ARCHITECTURES)] = key("DDRNet23", "network")
    flavour: Literal[tuple(FLAVOURS)] = key("zoo", "zoo: as the checkpoint on MindSpore Hub; paper: as the authors'")
    num_classes: Positive = key(1000, "number of classes; must equal the number of class folders")
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = key(0.1, "drop path of the deepest residual unit; 0: off")
    drop_path_on: Literal["auto", "branch", "shortcut"] = key(
        "auto", "what drop path drops, with its rates; auto: the shortcut (flavour zoo), the branch (paper)"
    )
    pretrained: str = key("", "weights to start from, evaluate or export (.ckpt, .safetensors, .pth)")
    freeze: Literal["", "backbone"] = key("", "backbone: train the classifier alone, on fixed features")
    head_lr_scale: Annotated[float, Field(gt=0)] = key(1.0, "times the learning rate, for the classifier alone")

    # data
    data_url: str = key("./data/imagenet", "folder with train/ and val/, each with a folder a class")
    set: str = key("ImageNet", "name of the data set, for the log")
    listing_cache: str = key("", "folder that keeps listings of large data sets; '': list them at every start")
    image_size: Annotated[int, Field(ge=32)] = key(224, "side of the network's input, pixels")
    crop_pct: Annotated[float, Field(gt=0, le=1)] = key(0.875, "evaluation: share of the resized side that is kept")
    crop_mode: Literal["squash", "center"] = key("squash", "evaluation: resize both sides, or only the shorter one")
    interpolation: Literal["bilinear", "bicubic", "lanczos", "random"] = key(
        "bicubic", "resizing; random: drawn per training image, bicubic in evaluation"
    )
    scale: Range = key((0.08, 1.0), "random resized crop: share of the image's area, from and to")
    ratio: Range = key((0.75, 4 / 3), "random resized crop: width to height, from and to")
    hflip: Share = key(0.5, "probability of a horizontal flip")
    auto_augment: str = key("rand-m9-mstd0.5-inc1", "RandAugment, AutoAugment or AugMix by its spec; '': none")
    color_jitter: NotNegative = key(0.4, "brightness, contrast and saturation jitter, where auto_augment is ''")
    re_prob: Share = key(0.0, "probability of random erasing")
    re_mode: Literal["const", "rand", "pixel"] = key(
        "pixel", "random erasing: the mean colour, one random colour, or noise"
    )
    re_count: Positive = key(1, "random erasing: the most boxes an image")
    mix_up: NotNegative = key(0.8, "MixUp alpha; 0: off")
    cutmix: NotNegative = key(1.0, "CutMix alpha; 0: off")
    mixup_prob: Share = key(1.0, "probability of mixing a group (or, with pair and elem, a pair or sample)")
    switch_prob: Share = key(0.5, "probability of CutMix where both are on")
    mixup_mode: Literal["batch", "pair", "elem"] = key("batch", "one lambda a group, a pair, or a sample")
    mixup_group: Annotated[int, Field(ge=2, multiple_of=2)] = key(
        512, "images that share a draw of MixUp or CutMix, over all devices; more than a global batch has: one draw"
    )
    mixup_off_epoch: Count = key(0, "mix in epochs 1 to n only; 0: in all")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = key(0.1, "share of a target spread over all classes")
    num_parallel_workers: Positive = key(16, "decoding and augmentation threads a device")

    # optimisation
    epochs: Positive = key(300, "passes over the training images")
    start_epoch: Count = key(0, "epochs counted as done: their part of the schedule is skipped")
    batch_size: Positive = key(512, "images a device and step")
    accumulation_step: Positive = key(1, "batches whose gradients are averaged into one update")
    optimizer: Literal["momentum", "sgd", "adamw", "lamb", "rmsprop"] = key("momentum", "optimizer")
    momentum: Annotated[float, Field(ge=0, lt=1)] = key(0.9, "momentum, sgd, rmsprop")
    use_nesterov: bool = key(True, "Nesterov's momentum (momentum, sgd)")
    beta: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = key(
        (0.9, 0.999), "decay of both moments (adamw, lamb)"
    )
    eps: Annotated[float, Field(gt=0)] = key(1e-8, "added to the denominator (adamw, lamb, rmsprop)")
    decay: Annotated[float, Field(ge=0, lt=1)] = key(0.9, "decay of the squared gradient (rmsprop)")
    weight_decay: NotNegative = key(1e-4, "weight decay; none on biases and batch norm")
    base_lr: Annotated[float, Field(gt=0)] = key(0.1, "learning rate after warmup, for a global batch of 256")
    warmup_lr: NotNegative = key(1e-6, "learning rate at the start of warmup, for a global batch of 256")
    min_lr: NotNegative = key(1e-5, "cosine_lr: learning rate at the end; else its floor; for a global batch of 256")
    lr_scheduler: Literal["cosine_lr", "multistep_lr", "exp_lr", "constant_lr"] = key("cosine_lr", "after warmup")
    warmup_length: Count = key(10, "epochs of linear warmup; multistep_lr has none")
    lr_adjust: Positive = key(30, "multistep_lr: epochs between two steps")
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = key(0.97, "factor a step (multistep_lr) or an epoch (exp_lr)")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = key(0.0, "averaged weights: share that stays a step; 0: off")
    clip_global_norm: bool = key(True, "clip gradients by their global norm")
    clip_global_norm_value: Annotated[float, Field(gt=0)] = key(5.0, "the norm they are clipped to")
    amp_level: Literal["O0", "O1", "O2", "O3", "auto"] = key(
        "O2",
        "float16: O0 nowhere, O1 convolutions, O2 all but the classifier, O3 all; auto: O2, on the CPU O0 with "
        "convolutions in bfloat16 where it has the instructions",
    )
    cpu_kernels: Literal["native", "mindspore"] = key(
        "native", "CPU: kernels of our own, compiled at the first start; at amp_level O0 and auto for the network too"
    )
    keep_bn_fp32: bool = key(True, "batch norm stays float32 at O2 and O3")
    is_dynamic_loss_scale: bool = key(True, "loss scale that follows overflows, from 4096")
    loss_scale: Annotated[float, Field(ge=1)] = key(1024.0, "fixed loss scale, where is_dynamic_loss_scale is False")
    seed: Count = key(0, "of weights, order, augmentation, mixing and drop path")

    # run
    device_target: Literal["Ascend", "GPU", "CPU"] = key("Ascend", "where to run")
    device_id: Count = key(0, "which card")
    device_num: Positive = key(1, "number of cards, one process each")
    compile_cache: str = key("", "folder that keeps the compiled step for the next start; '': compile at every start")
    graph_mode: Literal[0, 1] = key(0, "0: graph mode, 1: PyNative mode")
    sink_size: Count = key(0, "Ascend, GPU: steps a piece of data sinking; 0: a whole epoch")
    eval_every: Count = key(1, "epochs between validations; 0: only after the last")
    save_every: Count = key(1, "epochs between checkpoints; 0: only after the last")
    save_steps: Count = key(0, "steps between checkpoints within an epoch; 0: none")
    keep_checkpoint_max: Positive = key(5, "how many of those checkpoints are kept")
    resume: str = key("", "auto: go on from the newest good checkpoint; or the path of one (.ckpt)")
    resume_anyway: bool = key(False, "go on although keys that change the run differ from the checkpoint's")
    log_every: Positive = key(50, "steps between two lines in a log file")
    train_url: str = key("", "folder for outputs; '': the current one")
    run_modelarts: bool = key(False, "data_url and train_url are object-store addresses on ModelArts")
    file_format: Literal["MINDIR", "AIR", "ONNX"] = key("MINDIR", "export: AIR only with an Ascend backend")

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """What the model zoo's files and flags write: 0. for a whole number, 0 and 1 for a boolean."""
        default = cls.model_fields[info.field_name].default
        if isinstance(default, bool):
            return bool(value) if type(value) in (int, float) and value in (0, 1) else value
        if isinstance(default, int) and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    @field_validator("scale", "ratio")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not exceed the second")
        return value

    @field_validator("scale")
    @classmethod
    def _share_of_area(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop's area must not exceed the image's, 1.0")
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


# Keys outside the training itself: where a run reads and writes, how much it says, how often it saves and validates.
# Neither the step's graph nor the weights that it leads to know of them.
OUTSIDE = frozenset(
    {
        "compile_cache",
        "data_url",
        "device_id",
        "eval_every",
        "file_format",
        "keep_checkpoint_max",
        "listing_cache",
        "log_every",
        "num_parallel_workers",
        "pretrained",
        "resume",
        "resume_anyway",
        "run_modelarts",
        "save_every",
        "save_steps",
        "set",
        "train_url",
    }
)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as the number it is; YAML 1.1 wants 1.0e-6."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_args(
    argv: Optional[Sequence[str]] = None,
    description: str = "",
    extra: Sequence[tuple[str, dict[str, Any]]] = (),
) -> tuple[Config, argparse.Namespace]:
    """The configuration and what else the command line says.

    Args:
        argv: the command line without the program's name; None: the process's own.
        description: what the program does, for --help.
        extra: flags of this program alone, as (name, keywords of `add_argument`).

    Returns:
        The configuration, and a namespace with ddr_config, the extra flags, and `given`, the set of the
        configuration's keys that stood on the command line.

    Raises:
        UserError: the file or a flag is wrong; the message names the key and what would be right.
    """
    parser = _Parser(
        description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ddr_config", metavar="YAML", help="configuration; flags override it")
    for name, field in Config.model_fields.items():
        parser.add_argument(
            f"--{name}",
            nargs="+" if isinstance(field.default, tuple) else None,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{field.description} (default: {field.default!r})",
        )
    for name, keywords in extra:
        parser.add_argument(name, **keywords)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"{unknown[0]}: no such flag{_nearest(unknown[0].split('=')[0], flags)}")

    given = {name: value for name, value in vars(known).items() if name in Config.model_fields}
    rest = argparse.Namespace(**{name: value for name, value in vars(known).items() if name not in given})
    rest.given = frozenset(given)
    values = {} if rest.ddr_config is None else read_yaml(rest.ddr_config)
    _check(values, rest.ddr_config)
    flags = {name: _typed(name, value) for name, value in given.items()}
    _check(flags, "flag --")
    return Config(**{**values, **flags}), rest


def switch(help: str) -> dict[str, Any]:
    """The keywords of a flag that is off, on where it stands alone, or what True or False after it says."""
    return {"nargs": "?", "const": True, "default": False, "type": _boolean, "metavar": "True|False", "help": help}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() == "true"


def read_yaml(path: str) -> dict[str, Any]:
    """The keys of a YAML file, each a key of `Config`.

    Raises:
        UserError: the file is missing, malformed, no mapping, or has a key twice or one that is unknown.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ddr_config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--ddr_config {path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--ddr_config {path}: must be lines of 'key: value'")
    names = [entry.value for entry, _ in node.value]
    for name in values:
        if name not in Config.model_fields:
            raise UserError(f"{path}: unknown key {name!r}{_nearest(str(name), Config.model_fields)}")
        if names.count(name) > 1:
            raise UserError(f"{path}: {name} stands there twice")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _typed(name: str, value: Any) -> Any:
    """A flag's text as YAML would read it, or as it stands where the key is a text."""
    if isinstance(Config.model_fields[name].default, str):
        return value
    try:
        items = [yaml.load(item, Loader=_Loader) for item in value] if isinstance(value, list) else None
        if items is None:
            return yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--{name} {value}: cannot be read as a value") from error
    return tuple(items[0]) if len(items) == 1 and isinstance(items[0], list) else tuple(items)


def _check(values: dict[str, Any], source: Optional[str]) -> None:
    """Validate values from one source on their own, so that an error can say where the value stands."""
    try:
        Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        place = f"{source}{name}" if str(source).startswith("flag") else f"{source}: {name}"
        reason = first["msg"].replace("Value error, ", "").replace("Input should be", "must be")
        raise UserError(f"{place}: {reason}, not {values[name]!r}") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]}?" if match else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(message)
