"""The configuration: defaults, then YAML, then flags; every mistake is one line that says what would be right."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml

from src import __version__
from src.args import Config, keys, keys_that_change, parse_args
from src.errors import UserError
from src.models.architectures import ARCHITECTURES, FLAVOURS
from src.plain_yaml import read_value
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
        ("scale: [0.5, 2.0]", "scale: must be less than or equal to 1, not (0.5, 2.0)"),
        ("beta: [0.9]", "beta: must be two numbers, not (0.9,)"),
        ("beta: [0.9, 0.9, 0.9]", "beta: must be two numbers, not (0.9, 0.9, 0.9)"),
        ("beta: 0.9", "beta: must be two numbers, not 0.9"),
        ("epochs: 3\nepochs: 4", "epochs stands there twice"),
        ("epochs: [", "line 1: not valid YAML"),
        ("- epochs", "must be lines of 'key: value'"),
        ("!!python/object/apply:os.system ['true']", "must be lines of 'key: value'"),
        (
            "set: !!python/object/apply:os.system ['true']",
            "line 1: set: cannot be read as a value (could not determine",
        ),
        ("set: !!python/name:os.system ['']", "line 1: set: cannot be read as a value"),
        ("seed: 2020-13-45", "seed: must be a valid integer, not '2020-13-45'"),
        ("seed: 2020-01-01", "seed: must be a valid integer, not '2020-01-01'"),
        ("epochs: 1:30", "epochs: must be a valid integer, not '1:30'"),
        ("epochs: 010", "epochs: must be a valid integer, not '010'"),
        ("epochs: 0b_", "epochs: must be a valid integer, not '0b_'"),
        ("epochs: 0x_", "epochs: must be a valid integer, not '0x_'"),
        ("epochs: !!int foo", "line 1: epochs: cannot be read as a value"),
        ("epochs: !!float foo", "line 1: epochs: cannot be read as a value"),
        ("epochs: !!int 0x" + "f" * 6000, "line 1: epochs: cannot be read as a value (it is no such number)"),
        ("base_lr: !!float 1:30.0", "line 1: base_lr: cannot be read as a value (it is no such number)"),
        ("use_nesterov: !!bool foo", "line 1: use_nesterov: cannot be read as a value"),
        ("seed: !!timestamp foo", "line 1: seed: cannot be read as a value"),
        ("seed: !!binary foo", "line 1: seed: cannot be read as a value"),
        ("seed: " + "9" * 5000, "seed: must be a valid integer, not '9999"),
        ("seed: " + "[" * 3000, "nested too deeply"),
        ("seed: " + "{a: " * 3000, "nested too deeply"),
        ("a: " * 3000, "line 1: not valid YAML"),
        ("<<: {epochs: 3}\nepochs: 4", "line 1: must be 'key: value'"),
        ("? [epochs]\n: 4", "line 1: must be 'key: value'"),
        ("&a {epochs: *a}", "more than 1000 values"),
        ("epochs: *none", "undefined alias"),
        ("epochs: 3\0", "special characters are not allowed"),
        ("set: \x1b[2J", "special characters are not allowed"),
        ("%YAML 9.9\n---\nepochs: 3", "incompatible YAML"),
        ("epochs: 3\n---\nepochs: 4", "another document"),
        ("epochs:", "epochs: must be a valid integer, not None"),
        ("pretrained: ~", "pretrained: must be a valid string, not None"),
        ('pretrained: "a\\0b"', "pretrained: must be a text that a file could be named by"),
        ('resume: "\\ud800"', "resume: must be a text that a file could be named by"),
        ("train_url: ~nobody-of-that-name/x", "train_url: must begin with another folder"),
        ("auto_augment: rand-" + "x" * 5000, "auto_augment"),
        ("x" * 900 + ": 1", "unknown key"),
        ("auto_augment: rand-n999999", "section 'n999999' must be a whole number from 1 to 100"),
        ("auto_augment: rand-n" + "9" * 5000, "must be a whole number from 1 to 100"),
        ("auto_augment: augmix-w999999999", "must be a whole number from 1 to 100"),
        ("auto_augment: augmix-d101", "must be a whole number from 0 to 100"),
        ("seed: 4294967295", "seed: must be less than or equal to 4294967294"),
        ("epochs: 1000000000", "epochs: must be less than or equal to 100000"),
        ("image_size: 1000000", "image_size: must be less than or equal to 4096"),
        ("re_count: 1000000000", "re_count: must be less than or equal to 100"),
        ("crop_pct: 1e-300", "crop_pct: must be greater than or equal to 0.1"),
        ("ratio: [1, 1e308]", "ratio: must be less than or equal to 100"),
        ("base_lr: 1e300", "base_lr: must be less than or equal to 1000000"),
        ("save_steps: 1" + "0" * 30, "save_steps: must be less than or equal to 1000000000"),
    ],
    ids=lambda value: value[:30],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        parse_args(["--ddr_config", path])
    assert said in str(raised.value)
    assert path in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < len(path) + 700


def test_aliases_may_repeat_a_value_but_not_without_bound(tmp_path):
    config, _ = parse_args(["--ddr_config", write(tmp_path, "warmup_lr: &rate 1e-4\nmin_lr: *rate\n")])
    assert config.warmup_lr == config.min_lr == 1e-4
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{this}: &{this} [{','.join([f'*{last}'] * 9)}]\n" for last, this in zip("abcdefgh", "bcdefghi")
    )
    start = time.process_time()
    with pytest.raises(UserError, match="more than 1000 values"):
        parse_args(["--ddr_config", write(tmp_path, bomb)])
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "folder", "large", "a\0b"])
def test_what_is_no_small_file_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"#" * 100_000)
    with pytest.raises(UserError, match=r"--ddr_config .*(cannot be read|is larger)"):
        parse_args(["--ddr_config", str(tmp_path / name)])


@pytest.mark.parametrize("text", ["true", "Yes", "on", "0x1F", "1_000", "-5", "5.", "1.5e+3", ".inf", "null", "~"])
def test_plain_values_mean_what_they_mean_to_yaml(text):
    assert read_value(text, "flag") == yaml.safe_load(text)


def test_a_text_may_look_like_a_number(tmp_path):
    config, _ = parse_args(["--ddr_config", write(tmp_path, "set: 2012\ntrain_url: 1e5\nlisting_cache: on\n")])
    assert (config.set, config.train_url, config.listing_cache) == ("2012", "1e5", "on")


def test_a_tilde_is_the_home_folder_in_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, "train_url: ~/out\ndata_url: ~\nset: ~\n".replace("data_url: ~", "data_url: '~'"))
    with pytest.raises(UserError, match="set: must be a valid string"):
        parse_args(["--ddr_config", path])
    write(tmp_path, "train_url: ~/out\ndata_url: '~'\nset: '~'\n")
    config, _ = parse_args(["--ddr_config=~/config.yaml", "--resume=~/a.ckpt", "--pretrained=obs://b/~/c"])
    assert (config.train_url, config.data_url, config.set) == (f"{tmp_path}/out", str(tmp_path), "~")
    assert (config.resume, config.pretrained) == (f"{tmp_path}/a.ckpt", "obs://b/~/c")


@pytest.mark.parametrize("path", ["$HOME/out", "${SCRATCH}/out", "/data/$USER", "a/${x}/b"])
def test_a_variable_that_no_shell_has_replaced_names_no_folder(path, tmp_path):
    with pytest.raises(UserError, match=r"train_url: must have the variable's value in its place"):
        parse_args(["--ddr_config", write(tmp_path, f"train_url: {path}\n")])


@pytest.mark.parametrize("path", ["/data/$RECYCLE.BIN", "cost$/a", "a$b"])
def test_a_dollar_that_is_no_variable_is_one(path, tmp_path):
    assert parse_args(["--ddr_config", write(tmp_path, f"train_url: {path}\n")])[0].train_url == path


@pytest.mark.parametrize("address", ["s3://bucket/out", "file:///tmp/out", "obs://bucket/out"])
def test_an_address_is_no_folder_but_on_modelarts(address):
    with pytest.raises(UserError, match=r"train_url: is '.*', an address; name a folder, or on ModelArts add"):
        parse_args(["--train_url", address], purpose="train")


@pytest.mark.parametrize(
    ("purpose", "flags", "said"),
    [
        ("train", ["--start_epoch", "5", "--epochs", "5"], "start_epoch: must be below epochs, 5, not 5"),
        ("train", ["--batch_size", "5"], "batch_size: is 5, but mixing pairs images"),
        ("export", ["--file_format", "AIR", "--device_target", "CPU"], "file_format: AIR needs --device_target Ascend"),
        ("", ["--crop_pct", "0.1", "--image_size", "4096"], "crop_pct: 0.1 of a side is to be 4096 pixels"),
        (
            "train",
            ["--run_modelarts", "True"],
            "data_url: is './data/imagenet'; with run_modelarts it must be an address such as obs://",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_an_error_at_once_where_it_matters(tmp_path, purpose, flags, said):
    with pytest.raises(UserError) as raised:
        parse_args(flags, purpose=purpose)
    assert str(raised.value).startswith(said)
    if purpose:
        parse_args(flags)
    halves = write(tmp_path, f"{flags[0][2:]}: {flags[1]}\n")
    with pytest.raises(UserError, match=said.split(":")[0]):
        parse_args(["--ddr_config", halves, *flags[2:]], purpose=purpose)


def test_a_file_and_flags_that_fit_only_together_are_taken(tmp_path):
    path = write(tmp_path, "start_epoch: 400\n")
    assert parse_args(["--ddr_config", path, "--epochs", "500"], purpose="train")[0].start_epoch == 400


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch_sise", "4"], "--batch_sise: no such flag; did you mean --batch_size?"),
        (["--batch_size", "x"], "flag --batch_size: must be a valid integer, not 'x'"),
        (["--device_id", "-1"], "flag --device_id: must be greater than or equal to 0"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--ddr_config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["--beta", "0.1", "0.2", "0.3"], "flag --beta: must be two numbers, not (0.1, 0.2, 0.3)"),
        (["--seed", "2020-13-45"], "flag --seed: must be a valid integer, not '2020-13-45'"),
        (["--epochs", "[" * 3000], "nested too deeply"),
        (["--epochs", "!!int foo"], "flag --epochs: !!int foo: cannot be read as a value"),
        (["--epochs", "1:30"], "flag --epochs: must be a valid integer, not '1:30'"),
        (["--" + "x" * 5000], "no such flag"),
        (["--pretrained", "a\0b"], "flag --pretrained: must be a text that a file could be named by"),
        (["--lr", "0.1"], "--lr: no such flag; did you mean --base_lr?"),
        (["--learning-rate", "0.1"], "did you mean --base_lr?"),
        (["--workers", "1"], "did you mean --num_parallel_workers?"),
        (["--wd", "1"], "did you mean --weight_decay?"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags, said):
    with pytest.raises(UserError) as raised:
        parse_args(flags)
    assert said in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 700


def test_help_lists_every_key():
    shown = subprocess.run(
        [sys.executable, "-c", "from src.args import parse_args; parse_args(['--help'])"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    shown = " ".join(shown.split())
    for key in keys():
        assert f"--{key.name} " in shown
        assert f": {key.allowed} (default: {key.default!r})" in shown


def test_every_key_says_what_it_may_be():
    allowed = {key.name: key.allowed for key in keys()}
    assert list(allowed) == list(Config.model_fields)
    assert allowed["arch"] == "DDRNet23Slim, DDRNet23 or DDRNet39"
    assert set(get_args(Config.model_fields["arch"].annotation)) == set(ARCHITECTURES)
    assert set(get_args(Config.model_fields["flavour"].annotation)) == set(FLAVOURS)
    assert allowed["optimizer"] == "momentum, sgd, adamw, lamb or rmsprop"
    assert allowed["freeze"] == "'', stem, stage1, stage2, stage3, stage4 or backbone"
    assert allowed["use_nesterov"] == "True or False"
    assert allowed["beta"] == "two of: a number from 0, below 1"
    assert allowed["base_lr"] == "a number above 0 to 1000000"
    assert allowed["image_size"] == "a whole number from 32 to 4096"
    assert allowed["seed"] == "a whole number from 0 to 4294967294"
    assert allowed["save_steps"] == "a whole number from 0"


def test_what_a_key_changes_stands_with_it():
    assert keys_that_change("batch") == {"batch_size", "accumulation_step", "device_num"}
    assert keys_that_change("step") == {"cpu_kernels", "device_target", "graph_mode", "sink_size"}
    assert keys_that_change("nothing") == {
        "compile_cache", "crop_mode", "crop_pct", "data_url", "device_id", "eval_every", "file_format",
        "keep_checkpoint_max", "listing_cache", "log_every", "num_parallel_workers", "overwrite", "patience",
        "pretrained", "resume", "resume_anyway", "run_modelarts", "save_every", "save_steps", "set", "tensorboard",
        "train_url",
    }  # fmt: skip
    assert len(keys_that_change("weights")) == len(Config.model_fields) - 29


def test_importing_the_entry_points_parses_nothing():
    subprocess.run(
        [sys.executable, "-c", "import train, eval, export", "--no_such_flag"], cwd=ROOT, check=True, timeout=60
    )


def test_version_says_which_project_and_ends(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"DDRNet on MindSpore {__version__}\n"
