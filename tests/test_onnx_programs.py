"""export.py --file_format ONNX and eval_onnx.py as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import Tensor
from onnx import TensorProto, helper

import eval_onnx
import export as export_program
from src import __version__
from src.args import parse_args
from src.data import load_eval_image
from src.errors import UserError
from src.serving import onnx_rules
from src.serving.onnx_run import OnnxNetwork
from tests.conftest import ROOT, TINY, run_program
from tests.infer_310 import network
from tests.photos import photos

DIGITS = [str(digit) for digit in range(10)]


def tiny():
    return parse_args(["--ddr_config", str(TINY)])[0]


def digit_images(digits):
    return np.stack([load_eval_image(str(path), tiny()) for path in sorted((digits / "val").glob("*/*.png"))])


@pytest.fixture(scope="module")
def cell(digits):
    """A network whose last layer gives every logit mean 0 and deviation 1 on the digits: their classes differ."""
    cell = network()
    raw = cell(Tensor(digit_images(digits))).asnumpy()
    weight, bias = cell.linear.weight, cell.linear.bias
    bias.set_data(Tensor((bias.asnumpy() - raw.mean(0)) / raw.std(0)))
    weight.set_data(Tensor(weight.asnumpy() / raw.std(0)[:, None]))
    return cell


@pytest.fixture(scope="module")
def weights(cell, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.ckpt"
    ms.save_checkpoint(cell, str(path))
    return path


def export(folder, weights, digits, *flags):
    """Export in this process, into a folder; returns the file."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        common = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", weights, "--file_format", "ONNX"]
        export_program.main([str(part) for part in (*common, *flags)])
    finally:
        os.chdir(before)
    return folder / "DDRNet23Slim.onnx"


@pytest.fixture(scope="module")
def exported(weights, digits, tmp_path_factory) -> Path:
    """A file that takes any number of images, with batch norm folded."""
    folder = tmp_path_factory.mktemp("exported")
    return export(folder, weights, digits, "--dynamic_batch", "True", "--fold_batch_norm", "True")


def evaluate(path, digits, *flags):
    eval_onnx.main([str(part) for part in ("--ddr_config", TINY, "--data_url", digits, "--pretrained", path, *flags)])


def test_export_writes_a_file_that_describes_itself_and_a_json(exported):
    held = {item.key: item.value for item in onnx.load(exported).metadata_props}
    told = json.loads(exported.with_suffix(".json").read_text())
    assert json.loads(held["classes"]) == told["classes"] == DIGITS
    assert json.loads(held["mean"]) == [0.485, 0.456, 0.406] and json.loads(held["std"]) == [0.229, 0.224, 0.225]
    assert (held["crop_mode"], held["crop_pct"], held["interpolation"]) == ("squash", "1.0", "bicubic")
    assert (held["arch"], held["flavour"], held["version"]) == ("DDRNet23Slim", "zoo", __version__)
    assert told["input"]["shape"] == [None, 3, 32, 32] and told["output"]["shape"] == [None, 10]
    assert "mindir_version" not in told
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(exported).graph.node)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["DDRNet23Slim.json", "DDRNet23Slim.onnx"]


def test_export_writes_a_batch_of_the_size_that_is_asked_for(weights, digits, tmp_path):
    path = export(tmp_path, weights, digits, "--batch_size", 4)
    assert OnnxNetwork(path).batch_size == 4
    assert json.loads(path.with_suffix(".json").read_text())["input"]["shape"] == [4, 3, 32, 32]
    assert OnnxNetwork(path)(np.zeros((4, 3, 32, 32), np.float32)).shape == (4, 10)


def test_a_file_with_other_logits_is_not_kept(weights, digits, tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_rules.RULES, "ReLU", onnx_rules.RULES["Sigmoid"])
    with pytest.raises(UserError, match=r"DDRNet23Slim\.onnx: the exported file gives other logits"):
        export(tmp_path, weights, digits)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_a_rule_is_named(weights, digits, tmp_path, monkeypatch):
    monkeypatch.delitem(onnx_rules.RULES, "ResizeBilinearV2")
    with pytest.raises(UserError, match=r"ResizeBilinearV2 \(.*upsample.*\) has no rule"):
        export(tmp_path, weights, digits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dynamic_batch", "--batch_size", 4], "--dynamic_batch: .* leave out --batch_size"),
        (["--dynamic_batch", "--file_format", "MINDIR"], "--dynamic_batch: only with --file_format ONNX"),
        (["--dynamic_batch", "perhaps"], "must be True or False, not 'perhaps'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, weights, digits, tmp_path):
    with pytest.raises(UserError, match=message):
        export(tmp_path, weights, digits, *flags)


def without(package, folder):
    """An environment in which a package cannot be imported."""
    (folder / f"{package}.py").write_text("raise ImportError('not installed')\n")
    return {"PYTHONPATH": str(folder)}


def test_without_the_onnx_package_export_says_what_to_install_before_it_starts(digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", "nowhere.ckpt", "--file_format", "ONNX"]
    done = run_program("export.py", *flags, cwd=tmp_path, env=without("onnx", tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: file_format: ONNX needs the onnx package; pip install onnx onnxruntime\n"


def test_without_onnx_runtime_export_writes_and_says_that_it_was_not_run(exported, weights, digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", weights, "--file_format", "ONNX"]
    flags += ["--dynamic_batch", "--fold_batch_norm"]
    done = run_program("export.py", *flags, cwd=tmp_path, env=without("onnxruntime", tmp_path))
    assert done.returncode == 0, done.stderr
    assert "not run, as ONNX Runtime is not installed (pip install onnxruntime)" in done.stdout
    assert (tmp_path / exported.name).read_bytes() == exported.read_bytes()


def test_eval_onnx_ends_as_eval_does_and_needs_no_mindspore(exported, weights, digits, tmp_path):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--pretrained", weights, "--report", "a"]
    want = run_program("eval.py", *flags, cwd=tmp_path)
    assert want.returncode == 0, want.stderr
    env = without("mindspore", tmp_path)
    flags = ["--data_url", digits, "--pretrained", exported, "--report", "b"]  # the file knows the rest
    got = run_program("eval_onnx.py", *flags, cwd=tmp_path, env=env)
    assert got.returncode == 0, got.stderr
    (loss, *accuracies), (own_loss, *own_accuracies) = (run.stdout.splitlines()[-3:] for run in (want, got))
    assert own_accuracies == accuracies and [line.split(":")[0] for line in accuracies] == ["Top1 acc", "Top5 acc"]
    assert float(own_loss.removeprefix("Loss: ")) == pytest.approx(float(loss.removeprefix("Loss: ")), abs=2e-5)
    for table in ("confusion.csv", "per_class.csv"):
        assert (tmp_path / "b" / table).read_bytes() == (tmp_path / "a" / table).read_bytes()
    assert "ONNX Runtime" in (tmp_path / "b" / "report.html").read_text()


@pytest.mark.parametrize("batch", [None, 4])
def test_single_images_are_answered_without_data_and_what_is_none_is_named(
    batch, exported, weights, digits, tmp_path, monkeypatch, capsys
):
    path = exported if batch is None else export(tmp_path, weights, digits, "--batch_size", batch)
    images = sorted((digits / "val" / "3").iterdir())[:1] + sorted((digits / "val" / "4").iterdir())[:2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(SystemExit) as caught:
        eval_onnx.main(["--pretrained", str(path), "--images", "text.jpg", *map(str, images)])
    said = capsys.readouterr()
    assert caught.value.code == 3 and "--images text.jpg: " in said.err
    lines = said.out.splitlines()
    assert lines[::6] == list(map(str, images))
    logits = OnnxNetwork(exported)(np.stack([load_eval_image(str(image), tiny()) for image in images]))
    assert [lines[6 * row + 1].split()[-1] for row in range(3)] == [DIGITS[index] for index in logits.argmax(1)]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("std", None, "not from export.py"),
        ("classes", [["a"]] * 10, "classes must be a list of names"),
        ("classes", ["a"] * 10, "classes must be 10 different names"),
        ("num_classes", True, "not from export.py"),
    ],
)
def test_metadata_that_lack_or_muddle_what_figures_rest_on_are_refused(key, value, said, exported, tmp_path):
    model = onnx.load(exported)
    item = next(item for item in model.metadata_props if item.key == key)
    item.value = json.dumps(value)
    if value is None:
        model.metadata_props.remove(item)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(UserError, match=said):
        OnnxNetwork(tmp_path / "net.onnx")


@pytest.mark.parametrize(("key", "value"), [("crop_mode", "sideways"), ("mean", [0.5, 0.5])])
def test_metadata_that_no_export_writes_are_refused_by_name(key, value, exported, digits, tmp_path):
    model = onnx.load(exported)
    next(item for item in model.metadata_props if item.key == key).value = json.dumps(value)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(UserError, match=rf"net\.onnx: its metadata say that {key}: must be"):
        eval_onnx.main(["--data_url", str(digits), "--pretrained", str(tmp_path / "net.onnx")])


def test_every_image_gets_the_classes_that_the_network_gives_it(cell, exported, digits, tmp_path):
    """On digits and parts of photographs, the first five in order."""
    config, _ = parse_args(["--ddr_config", str(TINY)])
    images = list(digit_images(digits))
    for number, photo in enumerate(photos() * 6):
        path = tmp_path / f"{number}.jpg"
        photo.crop((number * 40, number * 20, number * 40 + 190, number * 20 + 150)).save(path)
        images.append(load_eval_image(str(path), config))
    images = np.stack(images)
    want, got = cell(Tensor(images)).asnumpy(), OnnxNetwork(exported)(images)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    assert len(set(want.argmax(1))) >= 5
    assert np.argsort(-got, 1)[:, :5].tolist() == np.argsort(-want, 1)[:, :5].tolist()


def test_the_script_evaluates_with_the_callers_paths(exported, digits, tmp_path):
    (tmp_path / "data").symlink_to(digits)
    (tmp_path / "net.onnx").symlink_to(exported)
    done = script("CPU", os.path.relpath(TINY, tmp_path), "net.onnx", "--data_url", "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Top5 acc: 0.")
    assert (tmp_path / "eval_onnx" / "log.txt").read_text() == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "DEVICE_TARGET, CONFIG_PATH and ONNX_PATH are needed"),
        (("TPU", TINY, TINY), "DEVICE_TARGET must be CPU, GPU or Ascend, not 'TPU'"),
        (("CPU", "nowhere.yaml", TINY), "CONFIG_PATH 'nowhere.yaml' is no file"),
        (("CPU", TINY, "nowhere.onnx"), "ONNX_PATH 'nowhere.onnx' is no file"),
    ],
)
def test_the_script_says_its_usage_on_wrong_arguments(arguments, message, tmp_path):
    done = script(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "usage: bash" in done.stderr
    assert list(tmp_path.iterdir()) == []


def script(*arguments, cwd):
    command = ["bash", str(ROOT / "scripts" / "run_eval_onnx.sh"), *map(str, arguments)]
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_classes", 9], "num_classes: is 9, but .*onnx has 10"),
        (["--image_size", 64], "image_size: is 64, but .*onnx has 32"),
        (["--device_target", "GPU"], "device_target: GPU needs an ONNX Runtime with CUDAExecutionProvider"),
        (["--pretrained", ""], "--pretrained: name the file"),
        (["--pretrained", "nowhere.onnx"], r"nowhere\.onnx: cannot be read \(No such file or directory\)"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(flags, message, exported, digits):
    with pytest.raises(UserError, match=message):
        evaluate(exported, digits, *flags)


def test_other_classes_of_the_same_number_are_refused(exported, digits, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for digit in DIGITS:
            (tmp_path / split / f"{digit}{'x' * (digit == '3')}").symlink_to(digits / split / digit)
    with pytest.raises(UserError, match=r"class 3 of .* is '3x', but '3' in"):
        evaluate(exported, tmp_path)


def a_cut_file(exported, weights):
    data = exported.read_bytes()
    return data[: len(data) // 2]


def no_onnx(exported, weights):
    return b"no protocol buffer"


def a_checkpoint(exported, weights):
    return weights.read_bytes()


def an_empty_file(exported, weights):
    return b""


def another_programs(exported, weights):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def without_its_metadata(exported, weights):
    model = onnx.load(exported)
    del model.metadata_props[:]
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_cut_file, "not an ONNX file, or a damaged one"),
        (no_onnx, "not an ONNX file, or a damaged one"),
        (a_checkpoint, "not an ONNX file, or a damaged one"),
        (an_empty_file, "not an ONNX file, or a damaged one"),
        (another_programs, r"not from export\.py"),
        (without_its_metadata, r"not from export\.py"),
    ],
)
def test_a_file_that_is_none_of_ours_is_named_in_one_line(make, message, exported, weights, digits, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(make(exported, weights))
    with pytest.raises(UserError, match=rf"other\.onnx: {message}") as error:
        evaluate(path, digits)
    assert "\n" not in str(error.value)


def test_a_weight_that_changed_after_the_export_is_noticed(exported, digits, tmp_path):
    data = bytearray(exported.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / exported.name).write_bytes(data)
    (tmp_path / exported.with_suffix(".json").name).write_bytes(exported.with_suffix(".json").read_bytes())
    with pytest.raises(UserError, match=r"DDRNet23Slim\.onnx: is damaged"):
        evaluate(tmp_path / exported.name, digits)


@pytest.mark.parametrize("content", ["", "[]", '{"sha256": 5, "file": "a.onnx"}', '{"name": "mine"}', "pipe", "folder"])
def test_a_json_of_the_same_stem_that_is_no_description_says_nothing(content, exported, tmp_path):
    path = tmp_path / "a.onnx"
    path.symlink_to(exported)
    beside = tmp_path / "a.json"
    if content == "pipe":
        os.mkfifo(beside)
    elif content == "folder":
        beside.mkdir()
    else:
        beside.write_text(content)
    assert OnnxNetwork(path).description["arch"] == "DDRNet23Slim"


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"a\.onnx: cannot be read \(no regular file\)"):
        OnnxNetwork(tmp_path / "a.onnx")


def test_without_a_card_the_configurations_device_gives_way_to_the_cpu(exported, digits, tmp_path, caplog):
    config = tmp_path / "ascend.yaml"
    config.write_text(TINY.read_text().replace("device_target: CPU", "device_target: Ascend"))
    with caplog.at_level("INFO"):
        eval_onnx.main(["--ddr_config", str(config), "--data_url", str(digits), "--pretrained", str(exported)])
    assert "device: CPU, as ONNX Runtime here has no CANNExecutionProvider" in caplog.text
    assert caplog.messages[-1].startswith("Top5 acc: ")
    caplog.clear()
    with caplog.at_level("INFO"):  # nobody asks for a card
        eval_onnx.main(["--data_url", str(digits), "--pretrained", str(exported)])
    assert "device" not in caplog.text


def test_preprocessing_other_than_the_files_is_said(exported, digits, caplog):
    with caplog.at_level("INFO"):
        evaluate(exported, digits, "--crop_pct", 0.5)
    assert "crop_pct: 0.5 as the configuration says" in caplog.text


def test_the_documents_programs_see_the_pixels_that_eval_sees(exported, digits, tmp_path):
    """The two programs in docs/onnx.md, run as they stand there."""
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), re.DOTALL)
    (tmp_path / "DDRNet23.onnx").write_bytes(exported.read_bytes())
    check = "assert abs(logits - session.run(None, {'images': preprocess(path)[None]})[0][0]).max() < 0.05\n"
    (tmp_path / "serve.py").write_text(first + second + check)
    images = sorted((digits / "val").glob("*/*.png"))[::7]
    command = [sys.executable, "serve.py", *map(str, images)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    config, _ = parse_args(["--ddr_config", str(TINY)])
    for number, path in enumerate(images):
        logits = OnnxNetwork(exported)(load_eval_image(str(path), config)[None])[0].astype(np.float64)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        likeliest = np.argsort(-shares)[:5]
        want = [[str(path), f"{shares[index]:.2%}", DIGITS[index]] for index in likeliest]
        got = rows[5 * number : 5 * number + 5]
        assert [row[2] for row in got] == [row[2] for row in want]
        assert [float(row[1][:-1]) for row in got] == pytest.approx([float(row[1][:-1]) for row in want], abs=0.011)
