"""The configuration: defaults, then YAML, then flags; every mistake is one line that says what would be right."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from src.args import Config, parse_args
from src.errors import UserError
from tests.conftest import ROOT

IMAGENET = str(ROOT / "src/configs/ddrnet23_imagenet.yaml")


def write(tmp_path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    path = write(tmp_path, "epochs: 7\nbatch_size: 8\n")
    config, rest = parse_args(["--ddr_config", path, "--batch_size", "4"])
    assert (config.epochs, config.batch_size, config.base_lr) == (7, 4, 0.1)
    assert rest.given == {"batch_size"}


def test_the_published_recipe_has_exactly_its_keys_and_values():
    published = {
        "arch": "DDRNet23", "data_url": "./data/imagenet", "set": "ImageNet", "num_classes": 1000, "mix_up": 0.8,
        "cutmix": 1.0, "color_jitter": 0.4, "auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic",
        "re_mode": "pixel", "re_count": 1, "mixup_prob": 1.0, "switch_prob": 0.5, "mixup_mode": "batch",
        "mixup_off_epoch": 0, "image_size": 224, "crop_pct": 0.875, "optimizer": "momentum", "use_nesterov": True,
        "base_lr": 0.1, "warmup_lr": 0.000001, "min_lr": 0.00001, "lr_scheduler": "cosine_lr", "warmup_length": 10,
        "lr_adjust": 30, "amp_level": "O2", "keep_bn_fp32": True, "beta": [0.9, 0.999], "clip_global_norm_value": 5.0,
        "clip_global_norm": True, "is_dynamic_loss_scale": True, "epochs": 300, "label_smoothing": 0.1,
        "loss_scale": 1024, "weight_decay": 0.0001, "decay": 0.9, "momentum": 0.9, "batch_size": 512,
        "num_parallel_workers": 16, "device_target": "Ascend", "drop_path_rate": 0.1,
    }  # fmt: skip
    assert yaml.safe_load(Path(IMAGENET).read_text()) == published
    assert parse_args(["--ddr_config", IMAGENET])[0].warmup_lr == 1e-6


# The parameters of the model zoo's document, its keys and values as they are written there.
ZOO = """
arch: DDRNet23
# ===== Dataset ===== #
data_url: ./data/imagenet
set: ImageNet
num_classes: 1000
mix_up: 0.8
cutmix: 1.0
color_jitter: 0.4
auto_augment: rand-m9-mstd0.5-inc1
interpolation: bicubic
re_mode: pixel
re_count: 1
mixup_prob: 1.
switch_prob: 0.5
mixup_mode: batch
mixup_off_epoch: 0.
image_size: 224
crop_pct: 0.875
# ===== Learning Rate Policy ======== #
optimizer: momentum
use_nesterov: True
base_lr: 0.1
warmup_lr: 0.000001
min_lr: 0.00001
lr_scheduler: cosine_lr
warmup_length: 10
lr_adjust: 30 # for multistep lr
# ===== Network training config ===== #
amp_level: O2
keep_bn_fp32: True
beta: [ 0.9, 0.999 ]
clip_global_norm_value: 5.
clip_global_norm: True
is_dynamic_loss_scale: True
epochs: 300
label_smoothing: 0.1
loss_scale: 1024
weight_decay: 0.0001
decay: 0.9 # for rmsprop
momentum: 0.9
batch_size: 512
# ===== Hardware setup ===== #
num_parallel_workers: 16
device_target: Ascend
# ===== Model config ===== #
drop_path_rate: 0.1
"""


def test_the_model_zoos_block_is_taken_as_it_stands_and_is_our_recipe(tmp_path):
    theirs = parse_args(["--ddr_config", write(tmp_path, ZOO)])[0]
    assert theirs == parse_args(["--ddr_config", IMAGENET])[0]
    assert type(theirs.mixup_off_epoch) is int


def test_the_model_zoos_values_are_taken_as_flags_too():
    lines = [line.split(" #")[0].split(": ") for line in ZOO.splitlines() if line and not line.startswith("#")]
    flags = [word for name, value in lines for word in (f"--{name}", value)]
    assert parse_args(flags)[0] == parse_args(["--ddr_config", IMAGENET])[0]


WHOLE = [name for name, field in Config.model_fields.items() if type(field.default) is int]
BOOLEAN = [name for name, field in Config.model_fields.items() if type(field.default) is bool]


@pytest.mark.parametrize("name", WHOLE)
def test_every_whole_number_may_be_written_with_a_point(tmp_path, name):
    number = {"image_size": 64, "mixup_group": 64}.get(name, 1)
    for text in (f"{number}.", f"{number}.0", f"{number}e0"):
        for argv in (["--ddr_config", write(tmp_path, f"{name}: {text}")], [f"--{name}", text]):
            value = getattr(parse_args(argv)[0], name)
            assert (type(value), value) == (int, number)


@pytest.mark.parametrize("name", BOOLEAN)
def test_every_boolean_may_be_written_as_0_or_1(tmp_path, name):
    for text, expected in (("0", False), ("1", True), ("0.", False), ("1.", True), ("False", False), ("true", True)):
        for argv in (["--ddr_config", write(tmp_path, f"{name}: {text}")], [f"--{name}", text]):
            assert getattr(parse_args(argv)[0], name) is expected


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "0.000001", "1E-06", ".1e-5"])
def test_every_way_to_write_a_small_number_is_one(tmp_path, text):
    assert parse_args(["--ddr_config", write(tmp_path, f"warmup_lr: {text}")])[0].warmup_lr == pytest.approx(1e-6)
    assert parse_args(["--warmup_lr", text])[0].warmup_lr == pytest.approx(1e-6)


def test_lists_are_read_from_flags_in_both_ways():
    assert parse_args(["--beta", "0.8", "0.99"])[0].beta == (0.8, 0.99)
    assert parse_args(["--beta", "[0.8, 0.99]"])[0].beta == (0.8, 0.99)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bach_size: 4", "unknown key 'bach_size'; did you mean batch_size?"),
        ("batch_size: many", "batch_size: must be a valid integer, not 'many'"),
        ("batch_size: 0", "batch_size: must be greater than or equal to 1, not 0"),
        ("epochs: True", "epochs: must be a valid integer, not True"),
        ("epochs: 1.5", "epochs: must be a valid integer, not 1.5"),
        ("epochs: .inf", "epochs: must be a valid integer, not inf"),
        ("epochs: '3'", "epochs: must be a valid integer, not '3'"),
        ("epochs: -1.0", "epochs: must be greater than or equal to 1, not -1.0"),
        ("use_nesterov: 2", "use_nesterov: must be a valid boolean, not 2"),
        ("use_nesterov: 'yes'", "use_nesterov: must be a valid boolean, not 'yes'"),
        ("base_lr: True", "base_lr: must be a valid number, not True"),
        ("mixup_group: 511", "mixup_group: must be a multiple of 2, not 511"),
        ("base_lr: .nan", "base_lr: must be a finite number"),
        ("drop_path_rate: 1.0", "drop_path_rate: must be less than 1"),
        ("arch: ResNet50", "arch: must be 'DDRNet23Slim', 'DDRNet23' or 'DDRNet39', not 'ResNet50'"),
        ("optimizer: adam", "optimizer: must be 'momentum', 'sgd', 'adamw', 'lamb' or 'rmsprop', not 'adam'"),
        ("lr_scheduler: cosine", "lr_scheduler: must be 'cosine_lr'"),
        ("auto_augment: rand-m9-zap3", "zap3"),
        ("scale: [0.5, 0.1]", "scale: the first number must not exceed the second"),
        ("scale: [0.5, 2.0]", "scale: a crop's area must not exceed the image's"),
        ("beta: [0.9]", "beta: "),
        ("epochs: 3\nepochs: 4", "epochs stands there twice"),
        ("epochs: [", "line 1: not valid YAML"),
        ("- epochs", "must be lines of 'key: value'"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        parse_args(["--ddr_config", path])
    assert said in str(raised.value)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch_sise", "4"], "--batch_sise: no such flag; did you mean --batch_size?"),
        (["--batch_size", "x"], "flag --batch_size: must be a valid integer, not 'x'"),
        (["--device_id", "-1"], "flag --device_id: must be greater than or equal to 0"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--ddr_config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["--beta", "0.1", "0.2", "0.3"], "flag --beta: "),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags, said):
    with pytest.raises(UserError) as raised:
        parse_args(flags)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_help_lists_every_key():
    shown = subprocess.run(
        [sys.executable, "-c", "from src.args import parse_args; parse_args(['--help'])"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(f"--{name} " in shown for name in Config.model_fields)


def test_importing_the_entry_points_parses_nothing():
    subprocess.run(
        [sys.executable, "-c", "import train, eval, export", "--no_such_flag"], cwd=ROOT, check=True, timeout=60
    )


def test_the_readmes_list_every_key_with_its_default():
    for name in ("README.md", "README_CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for key, field in Config.model_fields.items():
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            shown = f"| `{key}` | {default!r} |" if default != "" else f"| `{key}` | '' |"
            assert shown in text, f"{name} lacks {shown}"
