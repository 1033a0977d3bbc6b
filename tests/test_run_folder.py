"""A run is one folder that explains itself: a real run, and what eval.py and export.py take from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from src.args import Config, parse_args
from src.data.names import classes_beside
from src.data.settle import measure_colours, settle
from src.errors import UserError
from src.run_folder import write_run
from tests.conftest import TINY, run_program


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """A run of two epochs that was told to measure colours, count classes and find its device."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--ddr_config", TINY, "--data_url", digits, "--num_classes", 0, "--device_target", "auto"]
    flags += ["--mean", "auto", "--std", "auto", "--crop_mode", "center", "--tensorboard", True, "--freeze", "stage1"]
    done = run_program("train.py", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_the_configuration_and_the_class_names_lie_beside_the_weights(run):
    values = yaml.safe_load((run / "ckpt_0/config.yaml").read_text())
    assert set(values) == set(Config.model_fields)
    assert (values["num_classes"], values["image_size"], values["crop_mode"]) == (10, 32, "center")
    assert json.loads((run / "ckpt_0/classes.json").read_text()) == list("0123456789")


def test_names_and_commands_of_any_bytes_are_written_and_read_again(tmp_path):
    """Folders are named in any encoding, and an argument may hold a newline or an escape, which YAML refuses."""
    classes, config = ["caf\udce9", "a\nb", "红熊猫"], Config(data_url="photos \udce9", set="a\nb")
    write_run(tmp_path, config, classes, "python train.py --set 'a\nb\x1b' --data_url 'photos \udce9' " + "x" * 99_999)
    weights = str(tmp_path / "DDRNet23.ckpt")
    assert classes_beside(weights) == classes
    expected = config.model_copy(update={"pretrained": weights, "device_target": "auto"})
    assert parse_args(["--pretrained", weights], beside_weights=True)[0] == expected
    command = (tmp_path / "config.yaml").read_text().splitlines()[1]
    assert command.startswith(r"# python train.py --set 'a\nb\x1b' --data_url 'photos \udce9' x")


def test_a_configuration_or_names_that_are_cut_or_another_run_s_are_refused(tmp_path):
    write_run(tmp_path, Config(num_classes=3), ["a", "b", "c"], "python train.py")
    weights, path = str(tmp_path / "DDRNet23.ckpt"), tmp_path / "config.yaml"
    whole = path.read_text()
    for content in ("", whole[: whole.index("std:")]):
        path.write_text(content)
        with pytest.raises(UserError, match=r"config\.yaml: is cut short, it lacks .*std; copy it again"):
            parse_args(["--pretrained", weights], beside_weights=True)
    path.write_text("num_classes: 3\n")  # somebody's own may say little
    assert parse_args(["--pretrained", weights], beside_weights=True)[0].num_classes == 3
    with pytest.raises(UserError, match=r"classes\.json: has 3 names, but the network beside it has 4 classes"):
        classes_beside(weights, 4)


def test_eval_and_export_need_nothing_but_the_weights(run, digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--num_classes", 10, "--crop_mode", "center"]
    values = yaml.safe_load((run / "ckpt_0/config.yaml").read_text())
    flags += ["--mean", *values["mean"], "--std", *values["std"]]
    weights = run / "ckpt_0/DDRNet23Slim.ckpt"
    whole = run_program("eval.py", *flags, "--pretrained", weights, cwd=tmp_path)
    alone = run_program("eval.py", "--pretrained", weights, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[-3:] == whole.stdout.splitlines()[-3:]
    done = run_program("export.py", "--pretrained", weights, "--data_url", "nowhere", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spec = json.loads((tmp_path / "DDRNet23Slim.json").read_text())
    assert spec["classes"] == list("0123456789")
    assert (spec["image_size"], spec["mean"], spec["std"]) == (32, values["mean"], values["std"])


def test_what_differs_from_what_the_weights_were_trained_with_is_told(run):
    weights = str(run / "ckpt_0/DDRNet23Slim.ckpt")
    config, rest = parse_args(["--pretrained", weights, "--image_size", "64", "--batch_size", "4"], beside_weights=True)
    assert (config.image_size, config.batch_size, config.crop_mode) == (64, 4, "center")
    assert rest.notes == [f"image_size: 64, but {run}/ckpt_0/config.yaml says 32, which the weights were trained with"]
    assert parse_args(["--pretrained", weights])[0].image_size == 224  # training starts from what it is told


def test_weights_are_used_on_another_machine(copy, digits, tmp_path):
    """The run came from a card, and the data lie elsewhere here."""
    path = copy / "ckpt_0/config.yaml"
    values = {**yaml.safe_load(path.read_text()), "device_target": "Ascend", "data_url": "elsewhere"}
    path.write_text(yaml.safe_dump(values))
    weights = copy / "ckpt_0/DDRNet23Slim.ckpt"
    done = run_program("eval.py", "--pretrained", weights, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: data_url: elsewhere, as {path} says, is no folder here; --data_url DIR says where it is"
    )
    done = run_program("eval.py", "--pretrained", weights, "--data_url", digits, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("Top5 acc"), done.stderr


def test_a_second_run_in_the_folder_is_refused_and_nothing_is_lost(copy, digits):
    before = {path.name: path.read_bytes() for path in (copy / "ckpt_0").iterdir() if path.is_file()}
    flags = ["--ddr_config", TINY, "--data_url", digits, "--epochs", 1]
    done = run_program("train.py", *flags, cwd=copy)
    assert done.returncode == 2
    assert "ckpt_0 holds a run of DDRNet23Slim: --resume auto goes on with it" in done.stderr
    assert {path.name: path.read_bytes() for path in (copy / "ckpt_0").iterdir() if path.is_file()} == before
    done = run_program("train.py", *flags, "--overwrite", True, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (copy / "ckpt_0").glob("*-*")} == {
        f"DDRNet23Slim-1_5{suffix}" for suffix in (".ckpt", ".state")
    }


def test_the_event_files_hold_the_metrics(run):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401  (the same package reads and writes)

    content = b"".join(path.read_bytes() for path in (run / "events").iterdir())
    seen, start = {}, 0
    while start < len(content):  # TFRecord: length, its checksum, the record, its checksum
        size = int.from_bytes(content[start : start + 8], "little")
        event = Event.FromString(content[start + 12 : start + 12 + size])
        seen.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
        start += size + 16
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in ("loss", "lr", "top1"):
            assert seen[name, record["epoch"]] == pytest.approx(record[name], rel=1e-6)


def test_frozen_stages_keep_their_weights_and_statistics(run, tmp_path, digits):
    import mindspore as ms

    last = ms.load_checkpoint(str(run / "ckpt_0/DDRNet23Slim-2_5.ckpt"))
    first = ms.load_checkpoint(str(run / "ckpt_0/DDRNet23Slim-1_5.ckpt"))
    same = {name for name in last if np.array_equal(last[name].asnumpy(), first[name].asnumpy())}
    frozen = {name for name in last if name.split(".")[0] in ("conv1", "layer1")}
    assert same == frozen


def photos(folder: Path, colours: list) -> Path:
    for number, colour in enumerate(colours):
        target = folder / "train" / ("a", "b")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(target / f"{number}.png")
    return folder


def test_colours_are_measured_as_their_definition_has_it(tmp_path):
    colours = [(255, 0, 51), (0, 0, 102), (255, 0, 0), (0, 0, 0)]
    config = Config(data_url=str(photos(tmp_path, colours)), num_classes=2, image_size=32, mean="auto", std="auto")
    want = np.array(colours) / 255
    mean, std = measure_colours(config)
    np.testing.assert_allclose(mean, want.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(std, np.maximum(want.std(axis=0), 1 / 255), atol=1e-4)
    settled = settle(config)
    assert (settled.mean, settled.std) == (mean, std)
    assert settle(config.model_copy(update={"std": (0.5,) * 3})).std == (0.5,) * 3


def test_classes_are_counted_and_without_data_that_is_an_error(tmp_path):
    config = Config(data_url=str(photos(tmp_path, [(0, 0, 0)] * 4)), num_classes=0)
    assert settle(config).num_classes == 2
    with pytest.raises(UserError, match="no such folder"):
        settle(config.model_copy(update={"data_url": str(tmp_path / "nowhere")}))


def test_a_run_without_a_better_top1_ends_after_its_patience(digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--epochs", 9, "--patience", 1, "--base_lr", 1e-30]
    flags += ["--warmup_lr", 0, "--min_lr", 0, "--ema_decay", 0]
    done = run_program("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "patience: no better top-1 for 1 epochs, the run ends" in done.stdout
    epochs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(epochs) < 9
    best = max(range(len(epochs)), key=lambda index: epochs[index]["top1"])
    assert len(epochs) == best + 2
    assert (tmp_path / "ckpt_0/DDRNet23Slim.ckpt").exists()
