"""The C++ program and the flow around it, for real, on MindSpore Lite's CPU runtime."""

import json
import os
import resource
import signal
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data import load_eval_image
from src.metrics import rank_of_label
from src.serving.description import write_description
from src.serving.results import result_names
from tests.conftest import run_program
from tests.infer_310 import (
    BUILD,
    CLASSES,
    PROJECT,
    build,
    eval_config,
    export,
    network,
    picture,
    read_results,
    run_main,
    save_folder,
    spec,
)

COUNTS = {"ant": 3, "bee": 2, "elk": 4}  # 9 images: the last batch of 2 is padded
FLOW = PROJECT / "scripts" / "run_infer_310.sh"


@pytest.fixture(scope="module")
def cell():
    return network()


@pytest.fixture(scope="module")
def mindir(cell, tmp_path_factory):
    """A lowered network for one image."""
    return export(cell, tmp_path_factory.mktemp("model") / "net.mindir", spec(batch=1))


@pytest.fixture(scope="module")
def mindir2(cell, tmp_path_factory):
    """A lowered network for two images."""
    return export(cell, tmp_path_factory.mktemp("model2") / "net.mindir", spec(batch=2))


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "val"
    save_folder(folder, COUNTS)
    (folder / "ant" / ".hidden.JPEG").write_bytes(b"not looked at")
    (folder / "ant" / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def expected(cell, val):
    """The logits that eval.py computes, by result file name."""
    config = eval_config(spec())
    paths = sorted(val.glob("*/[!.]*.JPEG"))
    logits = cell(Tensor(np.stack([load_eval_image(str(path), config) for path in paths]))).asnumpy()
    return {f"{path.parent.name}__{path.stem}_0.bin": row for path, row in zip(paths, logits)}


def infer(mindir, data, folder, *flags):
    arguments = ("--result_path", "results", "--time_path", "time", "--device_target", "CPU", *flags)
    return run_main("--mindir_path", mindir, "--dataset_path", data, *arguments, cwd=folder)


def assert_one_line(done, *parts):
    """A refusal: exit code 2, one line on standard error, and what it must say."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for part in parts:
        assert str(part) in lines[0]


@pytest.mark.parametrize("threads", [1, 7])
def test_every_image_gets_the_logits_of_the_python_side(mindir2, val, expected, threads, tmp_path):
    done = infer(mindir2, val, tmp_path, "--threads", threads)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = read_results(tmp_path / "results")
    assert results.keys() == expected.keys()
    for name, logits in expected.items():
        assert np.abs(results[name] - logits).max() < 1e-3
        assert results[name].argmax() == logits.argmax()
    assert len({tuple(row) for row in results.values()}) == len(results), "each image must have logits of its own"


def test_the_number_of_threads_does_not_change_a_bit(mindir2, val, tmp_path):
    runs = []
    for threads in (1, 5, 5):
        assert infer(mindir2, val, tmp_path, "--threads", threads).returncode == 0
        runs.append({name: row.tobytes() for name, row in read_results(tmp_path / "results").items()})
    assert runs[0] == runs[1] == runs[2]


def test_the_average_model_time_is_written(mindir, val, tmp_path):
    assert infer(mindir, val, tmp_path).returncode == 0
    line = (tmp_path / "time" / "test_perform_static.txt").read_text().splitlines()[0]
    assert line.startswith("average model time: ") and line.endswith("(9 images, 1 a batch)")
    assert 0 < float(line.split()[3]) < 10_000


def test_results_of_an_earlier_run_are_gone_and_other_files_stay(mindir, val, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ant__gone_0.bin").write_bytes(bytes(40))
    (tmp_path / "results" / "notes.txt").write_text("mine")
    assert infer(mindir, val, tmp_path).returncode == 0
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert len(names) == 10 and "notes.txt" in names and "ant__gone_0.bin" not in names


def test_an_image_that_cannot_be_decoded_is_named_and_the_run_goes_on(mindir2, expected, tmp_path):
    paths = save_folder(tmp_path / "val", COUNTS)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    paths[8].write_bytes(b"")
    done = infer(mindir2, "val", tmp_path)
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"cannot decode val/{paths[1].parent.name}/{paths[1].name}: ")
    assert lines[1] == f"cannot decode val/{paths[8].parent.name}/{paths[8].name}: the file is empty"
    assert lines[2] == "2 of 9 images could not be decoded"
    results = read_results(tmp_path / "results")
    bad = {f"{path.parent.name}__{path.stem}_0.bin" for path in (paths[1], paths[8])}
    assert results.keys() == expected.keys() - bad
    for name, logits in results.items():
        assert np.abs(logits - expected[name]).max() < 1e-3


def test_where_no_image_can_be_decoded_the_run_ends_with_3(mindir, tmp_path):
    for path in save_folder(tmp_path / "val", {"ant": 2}):
        path.write_bytes(b"no image")
    assert infer(mindir, "val", tmp_path).returncode == 3
    assert read_results(tmp_path / "results") == {}


def unsigned(path):
    """A description as export.py wrote it before there was a checksum."""
    described = path.with_suffix(".json")
    old = {name: value for name, value in json.loads(described.read_text()).items() if name not in ("file", "sha256")}
    described.write_text(json.dumps(old))


def without_spec(path):
    path.with_suffix(".json").unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def unsigned_cut(path):
    unsigned(path)
    cut(path)


def unsigned_text(path):
    unsigned(path)
    path.write_text("no network")


def newer(path):
    export(network(), path, spec(), lower=False)


def other_size(path):
    path.with_suffix(".json").write_text(json.dumps(spec(96)))


def broken_spec(path):
    path.with_suffix(".json").write_text('{"arch": ')


def no_mean(path):
    description = spec()
    del description["mean"]
    path.with_suffix(".json").write_text(json.dumps(description))


def odd_crop(path):
    path.with_suffix(".json").write_text(json.dumps(spec(crop_mode="round")))


def flat_std(path):
    path.with_suffix(".json").write_text(json.dumps(spec(std=[0.2, 0, 0.2])))


def more_classes(path):
    description = spec()
    description["output"]["shape"] = [1, 1000]
    path.with_suffix(".json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (os.remove, ["net.mindir: cannot be read"]),
        (without_spec, ["net.json: it cannot be read (No such file", "export.py"]),
        (cut, ["net.mindir: is damaged, or not the file that", "net.json describes"]),
        (one_bit, ["net.mindir: is damaged, or not the file that", "net.json describes"]),
        (unsigned_cut, ["net.mindir: not a MindIR file, or a damaged one"]),
        (unsigned_text, ["net.mindir: not a MindIR file, or a damaged one"]),
        (newer, ["it has MindIR format version", "--mindir_version 1", "MindSpore Lite says: "]),
        (other_size, ["net.mindir: its input is (1, 3, 64, 64)", "(1, 3, 96, 96)"]),
        (broken_spec, ["net.json: not valid JSON at byte 9"]),
        (no_mean, ["net.json: mean is missing"]),
        (odd_crop, ["net.json: crop_mode must be squash or center, not round"]),
        (flat_std, ["net.json: std must be positive"]),
        (more_classes, ["net.mindir: its output is not float32 (1, 1000)"]),
    ],
)
def test_a_wrong_network_is_refused_in_one_line(damage, parts, mindir, val, tmp_path):
    path = tmp_path / "net.mindir"
    path.write_bytes(mindir.read_bytes())
    path.with_suffix(".json").write_text(mindir.with_suffix(".json").read_text())
    damage(path)
    assert_one_line(infer(path, val, tmp_path), *parts)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--thread", "2"], ["--thread: no such flag"]),
        (["--threads", "many"], ["--threads must be a whole number", "many"]),
        (["--threads", "-1"], ["--threads must be a whole number"]),
        (["--threads"], ["--threads needs a value"]),
        (["--device_target", "GPU"], ["--device_target must be Ascend or CPU", "GPU"]),
        (["--batch_size", "4"], ["--batch_size 4", "takes 1 images a batch", "export.py --batch_size 4"]),
        (["--device_target", "Ascend"], ["there is no Ascend card"]),
        (["--result_path", "/proc/results"], ["/proc/results: the folder cannot be made"]),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line(flags, parts, mindir, val, tmp_path):
    assert_one_line(infer(mindir, val, tmp_path, *flags), *parts)


@pytest.mark.parametrize("missing", ["--mindir_path", "--dataset_path"])
def test_a_missing_flag_is_named(missing, mindir, val):
    flags = {"--mindir_path": mindir, "--dataset_path": val}
    del flags[missing]
    assert_one_line(run_main(*(part for pair in flags.items() for part in pair)), f"{missing} is needed")


def test_a_folder_without_images_is_refused(mindir, tmp_path):
    assert_one_line(infer(mindir, "none", tmp_path), "none: no such folder")
    (tmp_path / "empty").mkdir()
    assert_one_line(infer(mindir, "empty", tmp_path), "empty: has no class folders")
    save_folder(tmp_path / "flat", {"ant": 1})
    assert_one_line(infer(mindir, "flat/ant", tmp_path), "has no class folders")
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    assert_one_line(infer(mindir, "hollow", tmp_path), "hold no images")


def test_a_network_whose_description_has_no_checksum_runs(mindir, val, tmp_path):
    path = tmp_path / "net.mindir"
    path.symlink_to(mindir)
    path.with_suffix(".json").write_text(mindir.with_suffix(".json").read_text())
    unsigned(path)
    assert infer(path, val, tmp_path).returncode == 0


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 2**20, 2**20 + 7])
def test_the_checksum_is_that_of_python(size, val, tmp_path):
    """A file with the right one is refused for what it holds, with another for being damaged."""
    path = tmp_path / "net.mindir"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    write_description(path, spec())
    assert_one_line(infer(path, val, tmp_path), "net.mindir: not a MindIR file, or a damaged one")
    path.write_bytes(path.read_bytes()[:-1] + b"?" if size else b"?")
    assert_one_line(infer(path, val, tmp_path), "net.mindir: is damaged, or not the file")


def test_images_of_one_stem_get_results_of_their_whole_names(mindir, tmp_path):
    path = save_folder(tmp_path / "val", {"ant": 2})[0]
    path.with_suffix(".png").write_bytes(path.read_bytes())
    assert infer(mindir, "val", tmp_path).returncode == 0
    names = {"ant__ant_0.JPEG_0.bin", "ant__ant_0.png_0.bin", "ant__ant_1_0.bin"}
    assert read_results(tmp_path / "results").keys() == names
    assert set(result_names(["ant/ant_0.JPEG", "ant/ant_0.png", "ant/ant_1.JPEG"])) == names


@pytest.mark.parametrize("pair", [("ant__b/c.jpg", "ant/b__c.jpg"), ("ant/x.jpg", "ant/x.png", "ant/x.jpg.bmp")])
def test_images_that_would_share_even_the_longer_name_are_refused(pair, mindir, tmp_path):
    for name in pair:
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert_one_line(infer(mindir, "val", tmp_path), "would share the result file", "rename one")


def test_images_of_other_formats_are_read_from_their_pngs(mindir, tmp_path):
    """Told at the start where there are none, and then each by its name."""
    save_folder(tmp_path / "val", {"ant": 1})
    picture(90, 70).save(tmp_path / "val" / "ant" / "x.webp", lossless=True)
    picture(90, 70).save(tmp_path / "val" / "ant" / "y.jpg", "BMP")
    picture(90, 70).save(tmp_path / "val" / "ant" / "z.tif", "PNG")
    done = infer(mindir, "val", tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[0].startswith("not read here: 1 .webp images of 4; preprocess.py makes PNGs")
    assert "cannot decode val/ant/x.webp: neither a JPEG nor a PNG file" in done.stderr

    (tmp_path / "png" / "ant").mkdir(parents=True)
    for name in ("x.webp", "y.jpg"):
        picture(90, 70).save(tmp_path / "png" / "ant" / f"{name}.png")
    done = infer(mindir, "val", tmp_path, "--converted_path", "png")
    assert (done.returncode, done.stderr) == (0, "")
    results = read_results(tmp_path / "results")
    np.testing.assert_array_equal(results["ant__x_0.bin"], results["ant__y_0.bin"])


def test_what_is_no_regular_file_or_far_too_large_stops_nothing(mindir, tmp_path):
    folder = save_folder(tmp_path / "val", {"ant": 2})[0].parent
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(30 * 2**30)
    done = infer(mindir, "val", tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[0].startswith(
        f"cannot decode val/ant/sparse.jpg: it has {30 * 2**30} bytes; at most"
    )
    assert len(read_results(tmp_path / "results")) == 2


def test_names_cannot_forge_a_line(mindir, tmp_path):
    save_folder(tmp_path / "val", {"ant": 1})
    (tmp_path / "val" / "ant" / "a\nerror: b\x1b[2J.jpg").write_bytes(b"")
    done = infer(mindir, "val", tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "cannot decode val/ant/a\\nerror: b\\x1b[2J.jpg: the file is empty"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON at byte 1"),
        ("", "not valid JSON at byte 0"),
        ("[]", "must be a JSON object"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"mean": [+1]}', "not valid JSON"),
        ('{"mean": [01]}', "not valid JSON"),
        ('{"mean": [.5]}', "not valid JSON"),
        ('{"mean": [1.]}', "not valid JSON"),
        ('{"mean": [1e999]}', "not valid JSON"),
        ('{"mean": "a\tb"}', "not valid JSON"),
        ('{"mean": "\\udc00"}', "not valid JSON"),
        ('{"mean": 1, "std": {"a": 1}, "mean": 2}', "mean stands there twice"),
        ('{"std": {"a\\n": 1, "a\\n": 2}}', "a\\n stands there twice"),
        (json.dumps(spec(image_size="64")), "image_size must be a number"),
        (json.dumps(spec(image_size=True)), "image_size must be a number"),
        (json.dumps(spec(image_size=64.5)), "image_size must be a whole number"),
        (json.dumps(spec(image_size=10**9)), "image_size must be above 0 and at most 16384"),
        (json.dumps(spec(mean=[0, 0])), "mean must be three numbers"),
        (json.dumps(spec(mean=None)), "mean must be three numbers"),
        (json.dumps(spec(interpolation=["bicubic"])), "interpolation must be a text"),
        (json.dumps(spec(input=[1, 3, 64, 64])), "input must be an object"),
        (json.dumps(spec(input={"dtype": "float32", "shape": [None, 3, 64, 64]})), "a list of positive sizes"),
        (json.dumps(spec(sha256=7, file="net.mindir")), "sha256 must be a text"),
    ],
)
def test_a_broken_description_is_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "net.json").write_text(text)
    command = [build() / "preprocess_images", tmp_path / "net.json", tmp_path / "out", tmp_path / "none.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert_one_line(done, "net.json: ", message)


def test_a_result_that_cannot_be_written_ends_the_run(mindir, val, tmp_path):
    """A limit on file size stands for the full disk: writing fails after the file has been made."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    done = run_main(
        *("--mindir_path", mindir, "--dataset_path", val, "--device_target", "CPU"),
        *("--result_path", tmp_path / "results", "--time_path", tmp_path / "time"),
        preexec_fn=limit,
    )
    assert_one_line(done, "results/", "cannot be written (File too large)")


def run_flow(*arguments, cwd, target="CPU", **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("GLOG_v", "MS_LITE_HOME")}
    paths = {"PYTHON": sys.executable, "BUILD_DIR": str(BUILD)}
    environment = {**clean, **paths, "DEVICE_TARGET": target, **environment}
    command = ["bash", str(FLOW), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180)


def test_the_flow_gives_the_accuracy_of_the_python_side(mindir2, val, expected, tmp_path):
    """Three of ten classes are there: a label must be its class's place among all ten. Paths are the caller's."""
    build()
    done = run_flow(os.path.relpath(mindir2, tmp_path), "imagenet2012", os.path.relpath(val, tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    labels = json.loads((tmp_path / "preprocess_Result" / "imagenet_label.json").read_text())
    assert labels == {f"{name}/{name}_{i}.JPEG": CLASSES.index(name) for name, n in COUNTS.items() for i in range(n)}

    wanted = np.array([CLASSES.index(name.split("__")[0]) for name in expected])
    ranks = rank_of_label(np.stack(list(expected.values())), wanted)
    assert 0 < (ranks < 5).mean() < 1, "an accuracy of 0 or 1 would hide mistakes"
    last = (tmp_path / "acc.log").read_text().splitlines()[-2:]
    assert last == [f"Top1 acc: {round((ranks < 1).mean(), 5)}", f"Top5 acc: {round((ranks < 5).mean(), 5)}"]
    assert done.stdout.splitlines()[-2:] == last
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["missing"] == report["surplus"] == []
    assert read_results(tmp_path / "result_Files").keys() == expected.keys()
    assert (tmp_path / "time_Result" / "test_perform_static.txt").exists()


def test_export_and_the_flow_give_the_accuracy_of_eval(cell, digits, tmp_path):
    """The whole chain on real scans: eval.py; export.py with a lowered file for seven images; the flow."""
    checkpoint = tmp_path / "net.ckpt"
    ms.save_checkpoint(cell, str(checkpoint))
    flags = {"arch": "DDRNet23Slim", "num_classes": 10, "image_size": 32, "crop_pct": 1.0, "amp_level": "O0"}
    flags.update(data_url=digits, pretrained=checkpoint, device_target="CPU", num_parallel_workers=1, batch_size=7)
    common = [part for name, value in flags.items() for part in (f"--{name}", value)]
    evaluated = run_program("eval.py", *common, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    exported = run_program("export.py", *common, "--mindir_version", 1, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr

    done = run_flow("DDRNet23Slim.mindir", "imagenet2012", digits / "val", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(30 images, 7 a batch)" in done.stdout
    want, got = evaluated.stdout.splitlines()[-2:], done.stdout.splitlines()[-2:]
    assert [line.split(":")[0] for line in want] == [line.split(":")[0] for line in got] == ["Top1 acc", "Top5 acc"]
    assert [float(line.split()[-1]) for line in want] == [float(line.split()[-1]) for line in got]


def test_the_flow_counts_an_undecodable_image_as_wrong_and_ends_with_3(mindir2, tmp_path):
    paths = save_folder(tmp_path / "val", COUNTS)
    paths[0].write_bytes(b"no image")
    done = run_flow(mindir2, "imagenet2012", "val", "0", cwd=tmp_path)
    assert done.returncode == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 9 and report["missing"] == ["ant/ant_0.JPEG"]
    assert "val/ant/ant_0.JPEG" in (tmp_path / "infer.log").read_text()
    assert (tmp_path / "acc.log").read_text().splitlines()[-1].startswith("Top5 acc: ")


def test_a_step_that_fails_stops_the_flow_with_its_log(mindir, val, tmp_path):
    (tmp_path / "acc.log").write_text("of an earlier run")
    done = run_flow(mindir, "imagenet2012", val, cwd=tmp_path, target="Ascend")
    assert done.returncode == 2
    assert "there is no Ascend card" in done.stderr
    assert not (tmp_path / "acc.log").exists()

    save_folder(tmp_path / "other", {"zebra": 1})
    done = run_flow(mindir, "imagenet2012", "other", cwd=tmp_path)
    assert done.returncode == 2
    assert "zebra: the network knows no class of that name" in done.stderr


def test_the_flow_reads_every_format_that_eval_reads(cell, mindir, tmp_path):
    """WebP, BMP, GIF, PPM and TIFF, by whatever name, as long as may be, and two images of one stem."""
    save_folder(tmp_path / "val", {"ant": 1})
    forms = {"ant_0.webp": "WEBP", "b.bmp": "BMP", "c.gif": "GIF", "d.ppm": "PPM", "e.tif": "TIFF", "f.jpg": "WEBP"}
    forms |= {"ü" * 125 + ".gif": "GIF", "h" * 251 + ".png": "PNG"}
    for number, (name, form) in enumerate(forms.items()):
        picture(90, 70, seed=number).save(tmp_path / "val" / "ant" / name, form)
    done = run_flow(mindir, "imagenet2012", "val", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["images"], report["missing"], report["surplus"]) == (9, [], [])
    config = eval_config(spec())
    images = sorted(f"ant/{path.name}" for path in (tmp_path / "val" / "ant").iterdir())
    for image, name in zip(images, result_names(images)):
        wanted = cell(Tensor(load_eval_image(str(tmp_path / "val" / image), config)[None])).asnumpy()[0]
        assert np.abs(np.fromfile(tmp_path / "result_Files" / name, np.float32) - wanted).max() < 1e-3, image


def lite_package(folder, glog):
    """The layout of a released Lite package for servers, with the wheel's files in it; `glog` is the folder of glog."""
    wheel = PROJECT / "ascend310_infer" / "third_party" / "mindspore_lite"
    library = "libmindspore-extendrt_python.so"
    links = {"runtime/include": "include", f"{glog}/libmindspore_glog.so.0": "lib/libmindspore_glog.so.0"}
    links["runtime/lib/libmindspore-lite.so"] = links[f"runtime/lib/{library}"] = f"lib/{library}"
    links["runtime/third_party/dnnl/libdnnl.so.2"] = "lib/libdnnl.so.2"
    for path in (wheel / "lib").iterdir():
        if path.name not in (library, "libmindspore_glog.so.0", "libdnnl.so.2"):
            links[f"runtime/lib/{path.name}"] = f"lib/{path.name}"
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(wheel / target)
    return folder


def test_the_program_builds_and_runs_with_the_layouts_of_the_released_packages(mindir, val, tmp_path):
    """x86-64 has glog in a folder of its own, aarch64 beside the library."""
    build()  # which fetches the wheel
    for glog in ("runtime/third_party/glog", "runtime/lib"):
        package = lite_package(tmp_path / glog.replace("/", "_"), glog)
        environment = {
            **os.environ,
            "MS_LITE_HOME": os.path.relpath(package, tmp_path),
            "BUILD_DIR": f"{tmp_path}/build",
        }
        command = ["bash", PROJECT / "ascend310_infer" / "build.sh", "-DCMAKE_CXX_FLAGS=-O0"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        flags = f"--mindir_path {mindir} --dataset_path {val} --device_target CPU --result_path {tmp_path}/results"
        script = f"unset LD_LIBRARY_PATH; source build/env.sh; build/main {flags}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_no_build_ends_without_a_word(tmp_path):
    """Not even where a command fails that nobody thought of: here the disk is full, or so the shell is told."""
    (tmp_path / "mv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cmake").write_text("#!/bin/sh\nexit 0\n")
    for name in ("mv", "cmake"):
        (tmp_path / name).chmod(0o755)
    package = lite_package(tmp_path / "lite", "runtime/lib")
    environment = {**os.environ, "MS_LITE_HOME": str(package), "BUILD_DIR": f"{tmp_path}/build"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = ["bash", PROJECT / "ascend310_infer" / "build.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "failed with code 1 at line" in done.stderr and "mv" in done.stderr


def test_the_flow_names_a_missing_lite_package(mindir, val, tmp_path):
    done = run_flow(mindir, "imagenet2012", val, cwd=tmp_path, MS_LITE_HOME="/nowhere")
    assert done.returncode == 2
    assert "MS_LITE_HOME=/nowhere: no runtime/include/api/model.h there" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["net.mindir", "imagenet2012"],
        ["none.mindir", "imagenet2012", "val"],
        ["net.mindir", "cifar10", "val"],
        ["net.mindir", "imagenet2012", "none"],
        ["net.mindir", "imagenet2012", "val", "first"],
        ["net.mindir", "imagenet2012", "val", "0", "1"],
    ],
)
def test_wrong_arguments_of_the_flow_show_its_usage(arguments, tmp_path):
    (tmp_path / "net.mindir").write_text("")
    (tmp_path / "val").mkdir()
    done = run_flow(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "usage: bash" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mindir", "val"], "nothing may be done"
