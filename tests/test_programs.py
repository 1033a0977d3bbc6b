"""train.py, eval.py and export.py as a user runs them, on real digits, in processes of their own."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image

import eval as eval_program
import export as export_program
import train as train_program
from src.errors import UserError
from src.models import create_model
from tests.conftest import ROOT, TINY, command, run_program

CPU = {"DEVICE_TARGET": "CPU"}


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> tuple[Path, str]:
    """A folder in which a run of two epochs has ended, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--ddr_config", TINY, "--data_url", digits, "--keep_checkpoint_max", 1, "--save_steps", 2]
    done = run_program("train.py", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def weights(run) -> Path:
    return run[0] / "ckpt_0" / "DDRNet23Slim.ckpt"


def lines(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_a_run_leaves_the_newest_the_best_and_the_last_weights(run):
    names = sorted(path.name for path in (run[0] / "ckpt_0").iterdir() if not path.name.startswith("."))
    assert names == [
        "DDRNet23Slim-2_5.ckpt", "DDRNet23Slim-2_5.state", "DDRNet23Slim.ckpt", "DDRNet23Slim_best.ckpt",
        "DDRNet23Slim_best.json", "classes.json", "config.yaml",
    ]  # fmt: skip
    want = {p.name: p.shape for p in create_model("DDRNet23Slim", 10).get_parameters()}
    for path in (run[0] / "ckpt_0").glob("*.ckpt"):
        for crc_check in (False, True):
            held = ms.load_checkpoint(str(path), crc_check=crc_check)
            assert {name: value.shape for name, value in held.items()} == want
        assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_metrics_have_a_line_an_epoch_and_curves_are_drawn(run):
    records = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 5), (2, 10)]
    for record in records:
        assert {"lr", "loss", "val_loss", "top1", "top5", "seconds", "img_s", "loss_scale", "overflows"} <= set(record)
        assert 0 <= record["top1"] <= record["top5"] <= 1
        assert 0.5 < record["loss"] < 5
    assert Image.open(run[0] / "curves.png").size[0] > 800


def test_the_log_is_plain_lines_with_what_a_user_wants_to_know(run):
    said = run[1]
    assert "80 training and 30 validation images in 10 classes" in said
    paper, stem_biases, surplus_classes = 7_574_664, 2 * 32, 990 * (1024 + 1)
    assert f"{paper - stem_biases - surplus_classes:,} trainable parameters" in said
    assert "learning rate: at most 0.025" in said
    assert "epoch 1/2 step 5/5 loss " in said
    assert "img/s" in said
    assert "left" in said
    assert "\r" not in said
    assert "\x1b" not in said


def test_eval_ends_with_loss_and_accuracies_and_agrees_with_training(run, weights, digits):
    record = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[-1])
    flags = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", weights]
    said = lines(run_program("eval.py", *flags, cwd=run[0]))[-3:]
    assert said[1:] == [f"Top1 acc: {record['ema_top1']:.5f}", f"Top5 acc: {record['ema_top5']:.5f}"]
    assert float(said[0].removeprefix("Loss: ")) == pytest.approx(record["ema_val_loss"], abs=2e-5)
    other_batch = lines(run_program("eval.py", *flags, "--batch_size", 7, cwd=run[0]))[-3:]
    assert other_batch[1:] == said[1:]
    assert float(other_batch[0].split()[1]) == pytest.approx(float(said[0].split()[1]), abs=2e-5)


def test_eval_without_train_takes_the_classes_from_val_and_says_so(run, weights, digits, tmp_path):
    shutil.copytree(digits / "val", tmp_path / "val")
    shutil.copy(weights, tmp_path / "alone.ckpt")  # without the names that lie beside it
    flags = ["--ddr_config", TINY, "--data_url", tmp_path, "--pretrained", tmp_path / "alone.ckpt"]
    assert "classes: from val/, as there is no train/" in lines(run_program("eval.py", *flags, cwd=run[0]))


def test_a_class_that_val_lacks_shifts_no_label(run, weights, digits, tmp_path):
    """Accuracy on the other classes is what single images say."""
    shutil.copytree(digits, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "3")
    flags = ["--ddr_config", TINY, "--data_url", tmp_path / "data", "--pretrained", weights]
    said = lines(run_program("eval.py", *flags, cwd=run[0]))
    images = sorted((tmp_path / "data" / "val").glob("*/*.png"))
    shown = lines(run_program("eval.py", *flags, "--images", *images, cwd=run[0]))
    likeliest = [shown[place + 1].split()[-1] for place in range(0, len(shown), 6)]
    right = np.mean([name == path.parent.name for name, path in zip(likeliest, images)])
    assert said[-2] == f"Top1 acc: {right:.5f}"


def test_eval_names_the_five_likeliest_classes_of_an_image(run, weights, digits):
    images = sorted((digits / "val" / "7").glob("*.png"))[:2]
    flags = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", weights]
    said = lines(run_program("eval.py", *flags, "--images", *images, cwd=run[0]))
    assert [said[0], said[6]] == [str(image) for image in images]
    shares = [float(line.split()[0].rstrip("%")) for line in said[1:6]]
    assert shares == sorted(shares, reverse=True)
    assert 50 <= sum(shares) <= 100.05
    assert len({line.split()[1] for line in said[1:6]}) == 5


@pytest.mark.parametrize("fold", [[], ["--fold_batch_norm"]])
def test_export_writes_a_file_that_serves_and_says_what_a_runtime_must_know(fold, weights, digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", weights, *fold]
    lines(run_program("export.py", *flags, cwd=tmp_path))
    told = json.loads((tmp_path / "DDRNet23Slim.json").read_text())
    assert told["classes"] == [str(digit) for digit in range(10)]
    assert (told["input"]["shape"], told["output"]["shape"]) == ([1, 3, 32, 32], [1, 10])
    assert (told["crop_mode"], told["crop_pct"], told["interpolation"]) == ("squash", 1.0, "bicubic")
    exported = tmp_path / "DDRNet23Slim.mindir"
    assert stat.S_IMODE(exported.stat().st_mode) & 0o600 == 0o600
    network = create_model("DDRNet23Slim", 10).set_train(False)
    ms.load_param_into_net(network, ms.load_checkpoint(str(weights)))
    image = Tensor(np.random.default_rng(5).standard_normal((1, 3, 32, 32)).astype(np.float32))
    graph = ms.load(str(exported))
    got = nn.GraphCell(graph)(image).asnumpy()
    assert (b"BatchNorm" in exported.read_bytes()) == (not fold)
    np.testing.assert_allclose(got, network(image).asnumpy(), rtol=1e-5, atol=1e-5)


def test_export_takes_classes_from_val_or_says_that_it_knows_only_their_number(weights, digits, tmp_path):
    shutil.copytree(digits / "val", tmp_path / "data" / "val")
    shutil.copy(weights, tmp_path / "alone.ckpt")  # without the names that lie beside it
    flags = ["--ddr_config", TINY, "--data_url", tmp_path / "data", "--pretrained", tmp_path / "alone.ckpt"]
    lines(run_program("export.py", *flags, "--batch_size", 3, cwd=tmp_path))
    told = json.loads((tmp_path / "DDRNet23Slim.json").read_text())
    assert len(told["classes"]) == 10
    assert told["input"]["shape"] == [3, 3, 32, 32]
    shutil.rmtree(tmp_path / "data")
    said = lines(run_program("export.py", *flags, cwd=tmp_path))
    assert any("no class names" in line for line in said)
    assert json.loads((tmp_path / "DDRNet23Slim.json").read_text())["classes"] is None


def test_fine_tuning_drops_only_a_head_that_does_not_fit_and_keeps_a_frozen_backbone(weights, digits, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "val"):
        for label in "012":
            shutil.copytree(digits / split / label, data / split / label)
    flags = ["--ddr_config", TINY, "--data_url", data, "--num_classes", 3, "--pretrained", weights]
    more = ["--freeze", "backbone", "--head_lr_scale", 2, "--epochs", 1, "--warmup_length", 0, "--ema_decay", 0]
    done = run_program("train.py", *flags, *more, "--batch_size", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the classifier (linear.weight, linear.bias) starts anew" in done.stdout
    before, after = (ms.load_checkpoint(str(path)) for path in (weights, tmp_path / "ckpt_0" / "DDRNet23Slim.ckpt"))
    changed = {name for name in before if not np.array_equal(before[name].asnumpy(), after[name].asnumpy())}
    assert changed == {"linear.weight", "linear.bias"}
    assert after["linear.weight"].shape == (3, 1024)


def test_outputs_go_to_train_url_and_gradients_accumulate(digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--train_url", tmp_path / "out", "--epochs", 1]
    more = ["--batch_size", 10, "--accumulation_step", 4, "--ema_decay", 0, "--warmup_length", 0]
    assert "epoch 1/1 step 2/2 loss " in run_program("train.py", *flags, *more, cwd=tmp_path).stdout
    assert (tmp_path / "out" / "ckpt_0" / "DDRNet23Slim-1_2.ckpt").is_file()
    assert (tmp_path / "out" / "metrics.jsonl").is_file()


BAD_DATA = {
    "missing": ("no such folder", lambda folder: None),
    "empty": ("is empty", lambda folder: [(folder / split).mkdir(parents=True) for split in ("train", "val")]),
    "flat": ("the images lie in it directly", lambda folder: flatten(folder)),
    "other": ("1 of 11 classes has no image (extra)", lambda folder: (folder / "train" / "extra").mkdir()),
    "surplus": ("train/ has no class folder of that name", lambda folder: (folder / "val" / "extra").mkdir()),
}


def flatten(folder: Path) -> None:
    for image in list((folder / "train").glob("*/*.png")):
        image.rename(folder / "train" / f"{image.parent.name}_{image.name}")
    for label in list((folder / "train").iterdir()):
        if label.is_dir():
            label.rmdir()


@pytest.mark.parametrize("kind", BAD_DATA)
def test_a_wrong_data_folder_is_named_before_training(kind, digits, tmp_path, monkeypatch):
    said, spoil = BAD_DATA[kind]
    data = tmp_path / "data"
    if kind in ("flat", "other", "surplus"):
        shutil.copytree(digits, data)
    spoil(data)
    if kind == "other":
        (data / "val" / "extra").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data_url|num_classes") as raised:
        train_program.main(["--ddr_config", str(TINY), "--data_url", str(data)])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ckpt_0").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch_size", "512"], "batch_size: .* has 80 images, fewer than one update's 512"),
        (["--batch_size", "15"], "batch_size: is 15, but mixing .* even"),
        (["--num_classes", "11"], "num_classes: is 11, but .* has 10 class folders"),
        (["--device_target", "Ascend"], "device_target: Ascend 0 cannot be used"),
        (["--device_num", "8"], "device_num: is 8, but 1 process"),
        (["--start_epoch", "2"], "start_epoch: must be below epochs, 2"),
        (["--pretrained", "nowhere.ckpt"], "nowhere.ckpt: .*No such file"),
        (["--resume", "nowhere.ckpt"], "nowhere.ckpt: is not there"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_training(flags, said, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as raised:
        train_program.main(["--ddr_config", str(TINY), "--data_url", str(digits), *flags])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("program", [eval_program, export_program])
def test_eval_and_export_need_weights_that_fit(program, digits, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--ddr_config", str(TINY), "--data_url", str(digits)]
    with pytest.raises(UserError, match="--pretrained: name the trained weights"):
        program.main(flags)
    with pytest.raises(UserError, match="parameter"):
        program.main([*flags, "--pretrained", str(weights), "--arch", "DDRNet23"])
    (tmp_path / "cut.ckpt").write_bytes(weights.read_bytes()[:100000])
    with pytest.raises(UserError, match=r"cut\.ckpt"):
        program.main([*flags, "--pretrained", "cut.ckpt"])
    assert [path.name for path in tmp_path.iterdir()] == ["cut.ckpt"]


def test_air_off_ascend_is_a_clear_error(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="file_format: AIR needs --device_target Ascend"):
        export_program.main(["--ddr_config", str(TINY), "--pretrained", str(weights), "--file_format", "AIR"])


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = run_program("train.py", "--ddr_config", TINY, "--epoch", 3, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --epoch: no such flag; did you mean --epochs?\n"
    assert done.stdout == ""


def script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "scripts" / name), *map(str, arguments)]
    env = {**os.environ, **CPU, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run_standalone_train_ascend.sh", ()),
        ("run_standalone_train_ascend.sh", ("0",)),
        ("run_standalone_train_ascend.sh", ("zero", TINY)),
        ("run_standalone_train_ascend.sh", ("0", "nowhere.yaml")),
        ("run_eval_ascend.sh", ("0", TINY)),
        ("run_eval_ascend.sh", ("0", TINY, "nowhere.ckpt")),
        ("quickstart.sh", ("surplus",)),
        ("run_tests.sh", ("--help",)),
    ],
)
def test_scripts_say_their_usage_and_exit_2_on_wrong_arguments(name, arguments, tmp_path):
    done = script(name, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage: bash" in done.stderr
    assert list(tmp_path.iterdir()) == []


def absolute_flags(folder: Path, *arguments: str) -> dict[str, str]:
    command = [sys.executable, str(ROOT / "scripts" / "absolute_flags.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    return dict(zip(words[::2], words[1::2]))


def test_scripts_hand_on_every_path_as_the_callers(tmp_path):
    (tmp_path / "my.yaml").write_text("data_url: data\nlisting_cache: lists\n")
    odd = "it's caf\udce9\n--seed $(true)"  # a byte that is no UTF-8, and what a shell would act on
    flags = ["my.yaml", "--compile_cache", odd, "--train_url", "obs://a/b", "--resume", "auto", "--report", "r"]
    assert absolute_flags(tmp_path, "train", *flags) == {
        "--ddr_config": f"{tmp_path}/my.yaml",
        "--data_url": f"{tmp_path}/data",
        "--listing_cache": f"{tmp_path}/lists",
        "--compile_cache": f"{tmp_path}/{odd}",
        "--train_url": "obs://a/b",
        "--resume": "auto",
        "--report": f"{tmp_path}/r",
    }


def test_scripts_that_evaluate_find_the_data_that_the_weights_were_trained_on(tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 3\n")
    (tmp_path / "ckpt_0").mkdir()
    (tmp_path / "ckpt_0/config.yaml").write_text("data_url: photos\ntrain_url: elsewhere\n")
    flags = ["my.yaml", "--pretrained", "ckpt_0/DDRNet23.ckpt"]
    places = {"--ddr_config": f"{tmp_path}/my.yaml", "--pretrained": f"{tmp_path}/ckpt_0/DDRNet23.ckpt"}
    assert absolute_flags(tmp_path, "eval", *flags) == {**places, "--data_url": f"{tmp_path}/photos"}
    assert absolute_flags(tmp_path, "train", *flags) == {**places, "--data_url": f"{tmp_path}/data/imagenet"}


def test_the_standalone_script_trains_in_the_background_with_the_callers_paths(digits, tmp_path):
    (tmp_path / "data").symlink_to(digits)
    flags = ["--data_url", "data", "--epochs", 1]
    done = script("run_standalone_train_ascend.sh", 0, os.path.relpath(TINY, tmp_path), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "train_standalone" / "ckpt_0" / "DDRNet23Slim.ckpt"
    end = time.monotonic() + 240
    while not weights.exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert weights.exists(), (tmp_path / "train_standalone" / "log.txt").read_text()
    log = tmp_path / "train_standalone" / "log.txt"
    while "best weights" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    done = script("run_eval_ascend.sh", 0, TINY, weights.relative_to(tmp_path), "--data_url", "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Top5 acc: 0.")
    done = script("run_eval_ascend.sh", 0, TINY, weights, "--data_url", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stdout + done.stderr
    done = script("run_standalone_train_ascend.sh", 0, os.path.relpath(TINY, tmp_path), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    while "holds a run" not in log.read_text() and time.monotonic() < end + 60:  # refused, and the first log stays
        time.sleep(0.1)
    assert "holds a run" in log.read_text()
    assert "best weights" in log.with_suffix(".1.txt").read_text()


def test_training_on_single_images_of_32_pixels_is_refused(digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--mix_up", 0, "--cutmix", 0]
    done = run_program("train.py", *flags, "--batch_size", 1, cwd=tmp_path)
    assert done.returncode == 2
    assert "batch_size: of 1 image of 32 pixels" in done.stderr
    assert "take a batch_size of 2 or more" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("program", ["train.py", "eval.py", "export.py"])
def test_ctrl_c_while_mindspore_is_imported_ends_without_a_word(program, tmp_path):
    process = subprocess.Popen(
        command(program, "--ddr_config", TINY), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while b"/mindspore/" not in Path(f"/proc/{process.pid}/maps").read_bytes():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("program", "flags", "named"),
    [
        (train_program, ["--pretrained", "missing.ckpt"], r"missing\.ckpt: cannot be read"),
        (train_program, ["--pretrained", "rubbish.ckpt"], r"rubbish\.ckpt: truncated, damaged"),
        (train_program, ["--resume", "missing.ckpt"], r"missing\.ckpt: is not there"),
        (train_program, ["--data_url", "missing"], "data_url: missing: no such folder"),
        (train_program, ["--train_url", "rubbish.ckpt"], r"rubbish\.ckpt/ckpt_0: cannot be written"),
        (eval_program, ["--pretrained", "missing.ckpt"], r"missing\.ckpt: cannot be read"),
        (eval_program, ["--pretrained", "rubbish.ckpt", "--data_url", "missing"], "data_url: missing: no such folder"),
        (export_program, ["--pretrained", "rubbish.ckpt"], r"rubbish\.ckpt: truncated, damaged"),
    ],
)
def test_wrong_input_is_told_before_kernels_are_compiled(program, flags, named, digits, tmp_path, monkeypatch):
    """Which takes a minute at the very first start."""

    def library() -> None:
        raise AssertionError("the kernels were asked for first")

    monkeypatch.setattr("src.tools.cell.library", library)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubbish.ckpt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=named):
        program.main(["--ddr_config", str(TINY), "--data_url", str(digits), *flags])
