"""eval.py's answers beyond the three figures: files, folders and patterns, tables and the report."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

import eval as program
from src.args import parse_args
from src.data.augment.transforms import load_eval_image
from src.errors import UserError
from src.evaluation.classify import find_images
from src.models import create_model
from tests.conftest import ROOT, TINY, command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights that nobody trained."""
    ms.set_seed(1)
    path = tmp_path_factory.mktemp("weights") / "ckpt_0" / "DDRNet23Slim.ckpt"
    path.parent.mkdir()
    ms.save_checkpoint(create_model("DDRNet23Slim", 10), str(path))
    return path


@pytest.fixture
def flags(digits, weights):
    return ["--ddr_config", str(TINY), "--data_url", str(digits), "--pretrained", str(weights), "--graph_mode", "1"]


def classify(capsys, *argv: object) -> tuple[int, list[str], list[str]]:
    """Exit code, answers and complaints of --images."""
    with pytest.raises(SystemExit) as caught:
        program.main(list(map(str, argv)))
    said = capsys.readouterr()
    return caught.value.code, said.out.splitlines(), said.err.splitlines()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_can_be_answered_is_and_the_rest_is_named_a_line_each(flags, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text.jpg", "cut.png", "empty.png"):
        Path(name).write_bytes(b"hello" if name == "text.jpg" else b"")
    image = next((digits / "val" / "3").iterdir())
    Path("cut.png").write_bytes(image.read_bytes()[:100])
    os.mkfifo("pipe.jpg")
    Path("hollow").mkdir()
    Path("photos/红 1").mkdir(parents=True)
    Path("photos/.hidden").mkdir()
    for place in ("photos/b.PNG", "photos/红 1/a.png", "photos/.hidden/c.png", "photos/notes.txt", "one.png"):
        Path(place).write_bytes(image.read_bytes())
    wanted = ["missing.jpg", "text.jpg", "one.png", "cut.png", "empty.png", "pipe.jpg", "hollow", "photos", "*.gif", ""]
    code, answers, complaints = classify(capsys, *flags, "--images", *wanted, "[op]*e.png")
    assert code == 3
    assert answers[::6] == ["one.png", "photos/b.PNG", "photos/红 1/a.png", "one.png"]
    assert answers[1:6] == answers[7:12] == answers[19:24]
    complaints.remove("--images photos: other files are left out: 1 .txt")
    named = [line.removeprefix("error: --images ").partition(":")[0] for line in complaints]
    assert sorted(named) == sorted(
        ["missing.jpg", "text.jpg", "cut.png", "empty.png", "pipe.jpg", "hollow", "*.gif", ""]
    )
    assert all("BytesIO" not in line and "Traceback" not in line for line in complaints)


def test_images_are_answered_in_batches_as_one_by_one(flags, digits, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "answers.csv"
    code, said, complaints = classify(
        capsys, *flags, "--batch_size", 4, "--images", digits / "val", "--predictions", out
    )
    assert (code, said, complaints) == (0, [f"{out}: 30 images"], [])
    rows = read(out)
    assert [row["path"] for row in rows] == sorted(str(path) for path in (digits / "val").glob("*/*.png"))
    assert {row["label"] for row in rows} == {""}
    config, _ = parse_args(flags)
    network = program.build_classifier(config)
    for row in rows[::7]:
        logits = network(ms.Tensor(load_eval_image(row["path"], config)[None])).asnumpy()[0].astype(float)
        shares = np.exp(logits) / np.exp(logits).sum()
        assert row["class_1"] == str(shares.argmax())
        assert [float(row[f"probability_{k}"]) for k in (1, 5)] == pytest.approx(np.sort(shares)[[-1, -5]], abs=2e-6)


def test_patterns_and_folders_come_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.jpg", "b/10.jpg", "a/x.webp", "a/x.txt", "[1].png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert list(find_images(["b", "[1].png", "**/*.webp", "./a"])) == [
        (name, "") for name in ("b/10.jpg", "b/2.jpg", "[1].png", "a/x.webp", "./a/x.webp")
    ]
    assert [reason for _, reason in find_images(["*.heic", "none"])] == ["no file matches", "no such file"]


def test_a_reader_that_has_enough_ends_the_program_without_a_word(flags, digits, weights):
    images = sorted(map(str, (digits / "train").glob("*/*.png"))) * 3
    line = command("eval.py", *flags, "--batch_size", 2, "--images", *images)
    reader = subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    done = subprocess.run(line, stdout=reader.stdin, stderr=subprocess.PIPE, text=True, timeout=300)
    reader.stdin.close()
    assert reader.stdout.read() == images[0] + "\n"
    assert reader.wait() == 0
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_report_has_tables_pictures_and_the_figures_that_are_logged(flags, digits, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    program.main([*flags, "--report", str(tmp_path / "report"), "--predictions", str(tmp_path / "p.csv")])
    said = caplog.messages
    assert said[-5:-3] == [f"predictions: {tmp_path / 'p.csv'}", f"report: {tmp_path / 'report' / 'report.html'}"]
    files = ["confusion.csv", "confusion.png", "mistakes.png", "per_class.csv", "predictions.csv", "report.html"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == files
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "report" / "predictions.csv").read_bytes()
    rows = read(tmp_path / "p.csv")
    assert len(rows) == 30 and all(Path(row["path"]).parent.name == row["label"] for row in rows)
    top1 = np.mean([row["label"] == row["class_1"] for row in rows])
    top5 = np.mean([row["label"] in [row[f"class_{k}"] for k in range(1, 6)] for row in rows])
    assert said[-2:] == [f"Top1 acc: {top1:.5f}", f"Top5 acc: {top5:.5f}"]
    assert f"{top1:.2%}" in (tmp_path / "report" / "report.html").read_text()
    for name in ("confusion.png", "mistakes.png"):
        Image.open(tmp_path / "report" / name).load()


def test_relative_outputs_go_under_train_url(flags, tmp_path):
    program.main([*flags, "--train_url", str(tmp_path / "run"), "--predictions", "p.csv"])
    assert len(read(tmp_path / "run" / "p.csv")) == 30


def test_data_with_other_classes_than_the_weights_were_trained_on_are_refused(flags, digits, weights, tmp_path):
    """As many classes under other names would be counted without a word, and every figure would be wrong."""
    (tmp_path / "DDRNet23Slim.ckpt").symlink_to(weights)
    (tmp_path / "classes.json").write_text(json.dumps([*"012", "three", *"456789"]))
    message = f"data_url: class 3 of {digits} is '3', but 'three' in classes.json beside {tmp_path}"
    with pytest.raises(UserError, match=re.escape(message)):
        program.main([*flags, "--pretrained", str(tmp_path / "DDRNet23Slim.ckpt")])


def test_what_cannot_be_written_is_said_before_the_work(flags, tmp_path):
    (tmp_path / "file").touch()
    for extra, message in [
        (["--report", tmp_path / "file"], "--report .*file: is no folder"),
        (["--predictions", tmp_path], "--predictions .*is a folder"),
        (["--predictions", tmp_path / "file" / "p.csv"], "--predictions .*file: is no folder"),
        (["--report", tmp_path / "r", "--images", "x.jpg"], "--report: needs the labels of val/"),
    ]:
        with pytest.raises(UserError, match=message):
            program.main([*flags, "--pretrained", "nowhere.ckpt", *map(str, extra)])


@pytest.mark.parametrize("classes", [1, 5])
def test_top5_of_five_classes_or_fewer_is_said_to_mean_nothing(classes, digits, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for label in range(classes):
        (tmp_path / "data" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "val" / str(label)).symlink_to(digits / "val" / str(label))
    weights = str(tmp_path / "few.ckpt")
    ms.save_checkpoint(create_model("DDRNet23Slim", classes), weights)
    flags = ["--ddr_config", TINY, "--data_url", tmp_path / "data", "--pretrained", weights, "--graph_mode", 1]
    program.main([*map(str, flags), "--num_classes", str(classes), "--report", str(tmp_path / "report")])
    assert "top-5 says nothing here" in caplog.messages[-4]
    assert caplog.messages[-1] == "Top5 acc: 1.00000"


def test_two_ranks_write_what_one_writes(digits, weights, tmp_path):
    flags = ["--data_url", str(digits), "--report", "report", "--batch_size", "7"]
    single = command("eval.py", "--ddr_config", TINY, "--pretrained", weights, *flags)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    subprocess.run(single, cwd=tmp_path / "one", check=True, capture_output=True, timeout=300)
    script = ["bash", str(ROOT / "scripts/run_distribute_eval_cpu.sh"), "2", str(TINY), str(weights), *flags]
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(script, cwd=tmp_path / "two", capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "two" / "eval_parallel0" / "log.txt").read_text()
    assert log.splitlines()[-1].startswith("Top5 acc: ") and done.stdout.splitlines()[-1] == log.splitlines()[-1]
    one, two = (read(tmp_path / name / "report" / "predictions.csv") for name in ("one", "two"))
    assert [(row["path"], row["label"], row["class_1"]) for row in one] == [
        (row["path"], row["label"], row["class_1"]) for row in two
    ]
    shares = [[float(row[f"probability_{k}"]) for row in rows for k in (1, 5)] for rows in (one, two)]
    np.testing.assert_allclose(*shares, atol=2e-5)
    for name in ("per_class.csv", "confusion.csv"):
        assert (tmp_path / "one/report" / name).read_bytes() == (tmp_path / "two/report" / name).read_bytes()
