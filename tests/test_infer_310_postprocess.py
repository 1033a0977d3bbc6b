"""Labels before and accuracy after the C++ program, on results written by hand."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import postprocess
import preprocess
from src.data.augment.transforms import load_eval_image
from src.errors import UserError
from src.serving import description
from src.serving.description import read_description, write_description
from tests.infer_310 import CLASSES, PROJECT, eval_config, picture, save_folder, spec


@pytest.fixture
def run(tmp_path):
    """Write a network's description, labels and results; count them; return the report and what was printed."""
    (tmp_path / "net.json").write_text(json.dumps(spec()))
    (tmp_path / "results").mkdir()

    def write(labels, results):
        (tmp_path / "label.json").write_text(json.dumps(labels))
        for name, logits in results.items():
            np.asarray(logits, np.float32).tofile(tmp_path / "results" / name)
        flags = {"mindir_path": "net.mindir", "result_path": "results", "label_file": "label.json"}
        flags["report"] = "report.json"
        postprocess.main([part for flag, name in flags.items() for part in (f"--{flag}", str(tmp_path / name))])
        return json.loads((tmp_path / "report.json").read_text())

    return write


def one_hot(index):
    return np.eye(len(CLASSES))[index]


def test_top1_and_top5_are_shares_of_all_labels(run, capsys):
    descending = np.arange(10, 0, -1)  # class 0 first, class 9 last
    labels = {"ant/0.JPEG": 0, "bee/1.JPEG": 1, "fox/2.JPEG": 5, "elk/3.JPEG": 4}
    results = {f"{name.replace('/', '__')[:-5]}_0.bin": descending for name in labels}
    report = run(labels, results)
    assert (report["images"], report["top1"], report["top5"]) == (4, 0.25, 0.75)
    assert capsys.readouterr().out.splitlines()[-2:] == ["Top1 acc: 0.25", "Top5 acc: 0.75"]


def test_equal_logits_rank_the_lower_class_first(run):
    report = run({"ant/0.JPEG": 0, "bee/0.JPEG": 1}, {"ant__0_0.bin": np.zeros(10), "bee__0_0.bin": np.zeros(10)})
    assert (report["top1"], report["top5"]) == (0.5, 1.0)


def test_a_result_with_a_nan_is_wrong_and_named(run):
    logits = one_hot(0)
    logits[7] = np.nan
    report = run({"ant/0.JPEG": 0}, {"ant__0_0.bin": logits})
    assert (report["top1"], report["top5"], report["not_finite"]) == (0.0, 0.0, ["ant/0.JPEG"])


def test_missing_results_are_wrong_and_surplus_ones_named(run, capsys):
    report = run(
        {"ant/0.JPEG": 0, "ant/1.JPEG": 0}, {"ant__0_0.bin": one_hot(0), "ant__old_0.bin": one_hot(0), "notes.txt": []}
    )
    assert (report["top1"], report["top5"]) == (0.5, 0.5)
    assert (report["missing"], report["surplus"]) == (["ant/1.JPEG"], ["ant__old_0.bin"])
    out = capsys.readouterr().out
    assert "missing: 1 (ant/1.JPEG)" in out and "surplus: 1 (ant__old_0.bin)" in out


def test_the_worst_classes_come_first(run, capsys):
    labels = {f"{name}/{i}.JPEG": CLASSES.index(name) for name in ("ant", "bee", "cat") for i in range(2)}
    hits = {"ant": 2, "bee": 0, "cat": 1}
    results = {
        f"{name}__{i}_0.bin": one_hot(CLASSES.index(name) if i < hits[name] else 9) for name in hits for i in range(2)
    }
    report = run(labels, results)
    assert report["worst"] == ["bee", "cat", "ant"]
    assert report["per_class"]["cat"] == {"images": 2, "top1": 0.5, "top5": 1.0}
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[2:5]] == ["bee", "cat", "ant"]


def test_more_images_than_fit_a_block_count_once_each(run, monkeypatch):
    monkeypatch.setattr(postprocess, "BLOCK", 3)
    labels = {f"ant/{i}.JPEG": 0 for i in range(8)}
    results = {f"ant__{i}_0.bin": one_hot(0 if i % 2 else 1) for i in range(8)}
    assert run(labels, results)["top1"] == 0.5


def test_names_with_dots_and_spaces_find_their_results(run):
    report = run({"ant/a.b c.tar.JPEG": 0}, {"ant__a.b c.tar_0.bin": one_hot(0)})
    assert report["top1"] == 1.0 and report["surplus"] == []


def test_a_result_of_another_size_is_an_error(run):
    for size in (9, 11):
        with pytest.raises(UserError, match="but the network's 10 logits take 40"):
            run({"ant/0.JPEG": 0}, {"ant__0_0.bin": np.zeros(size)})


@pytest.mark.parametrize("surplus", [-39, -1, 1, 3])
def test_a_result_with_bytes_too_few_or_too_many_is_an_error(run, tmp_path, surplus):
    (tmp_path / "results" / "ant__0_0.bin").write_bytes(bytes(40 + surplus))
    with pytest.raises(UserError, match=r"ant__0_0\.bin: holds "):
        run({"ant/0.JPEG": 0}, {})


@pytest.mark.parametrize("values", [np.inf, -np.inf])
def test_a_result_with_an_infinite_logit_is_wrong_and_named(run, values):
    one, every = np.append(one_hot(0)[:9], values), np.full(10, values)
    report = run({"ant/0.JPEG": 0, "ant/1.JPEG": 0}, {"ant__0_0.bin": one, "ant__1_0.bin": every})
    assert (report["top1"], report["top5"]) == (0.0, 0.0)
    assert report["not_finite"] == ["ant/0.JPEG", "ant/1.JPEG"]


def test_what_lies_in_a_results_place_is_an_error_or_no_result(run, tmp_path):
    place = tmp_path / "results" / "ant__0_0.bin"
    place.mkdir()
    with pytest.raises(UserError, match=r"ant__0_0\.bin: cannot be read \(Is a directory"):
        run({"ant/0.JPEG": 0}, {})
    place.rmdir()
    place.symlink_to(place)
    with pytest.raises(UserError, match=r"cannot be read \(Too many levels"):
        run({"ant/0.JPEG": 0}, {})
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(UserError, match=r"cannot be read \(no regular file"):
        run({"ant/0.JPEG": 0}, {})
    place.unlink()
    assert run({f"ant/{'0' * 300}.JPEG": 0}, {})["missing"] == [f"ant/{'0' * 300}.JPEG"]


def test_the_labels_do_not_go_among_the_images(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="holds the images; name another folder"):
        preprocess.main(
            ["--mindir_path", "net.mindir", "--data_path", str(tmp_path / "val"), "--result_path", f"{tmp_path}/./val"]
        )


def test_images_of_one_stem_have_results_of_their_whole_names(run):
    labels = {"ant/0.jpg": 0, "ant/0.png": 0, "ant/1.jpg": 0}
    report = run(labels, {"ant__0.jpg_0.bin": one_hot(0), "ant__0.png_0.bin": one_hot(1), "ant__1_0.bin": one_hot(0)})
    assert report["top1"] == pytest.approx(2 / 3) and report["missing"] == report["surplus"] == []


@pytest.mark.parametrize("pair", [("ant__b/c.jpg", "ant/b__c.jpg"), ("ant/x.jpg", "ant/x.png", "ant/x.jpg.bmp")])
def test_images_that_would_share_even_the_longer_name_are_an_error(run, pair):
    with pytest.raises(UserError, match="would share the result file"):
        run(dict.fromkeys(pair, 0), {})


def test_names_cannot_forge_a_line(run, tmp_path, capsys):
    names = ["ant\nTop1 acc: 1.0", *CLASSES[1:]]
    (tmp_path / "net.json").write_text(json.dumps(spec(classes=names)))
    image = "ant\nTop1 acc: 1.0/0\x1b[2J.jpg"
    run({image: 0}, {"old\nTop5 acc: 1.0_0.bin": one_hot(0)})
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("Top")] == ["Top1 acc: 0.0", "Top5 acc: 0.0"]
    assert not any("\x1b" in line for line in lines)


def test_names_that_are_no_utf_8_pass_a_strict_stream(tmp_path):
    (tmp_path / "net.json").write_text(json.dumps(spec(classes=["\udcd6\udcd0", *CLASSES[1:]])))
    (tmp_path / "results").mkdir()
    (tmp_path / "label.json").write_text(json.dumps({"\udcd6\udcd0/0.jpg": 0}))
    with open(os.fsencode(tmp_path / "results") + b"/\xd6\xd0__1_0.bin", "wb"):  # noqa: PTH123 (bytes)
        pass
    command = [sys.executable, PROJECT / "postprocess.py", "--mindir_path", "net.mindir", "--result_path", "results"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(PROJECT)}
    command += ["--label_file", "label.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "surplus: 1 (\\udcd6\\udcd0__1_0.bin)" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["missing"] == ["\udcd6\udcd0/0.jpg"]


@pytest.mark.parametrize(
    "labels",
    [
        {},
        [],
        {"0": 0},
        *({f"ant/{name}": 0} for name in ("\ud800", "\0", "", "a/b")),
        *({"ant/0.JPEG": label} for label in (10, -1, "ant", True, 10**30, None, 0.5)),
    ],
)
def test_labels_that_cannot_be_are_an_error_that_names_the_file(run, labels):
    with pytest.raises(UserError, match=r"label\.json"):
        run(labels, {})


def label(tmp_path, described, counts):
    (tmp_path / "net.json").write_text(json.dumps(described))
    save_folder(tmp_path / "val", counts)
    preprocess.main(
        [
            "--mindir_path",
            f"{tmp_path}/net.mindir",
            "--data_path",
            f"{tmp_path}/val",
            "--result_path",
            f"{tmp_path}/out",
        ]
    )
    return json.loads((tmp_path / "out" / "imagenet_label.json").read_text())


def test_a_missing_class_shifts_no_label(tmp_path):
    assert label(tmp_path, spec(), {"bee": 1, "jay": 1}) == {"bee/bee_0.JPEG": 1, "jay/jay_0.JPEG": 9}


def test_a_network_without_names_takes_the_folders_in_order(tmp_path):
    labels = label(tmp_path, spec(classes=None), dict.fromkeys(reversed(CLASSES), 1))
    assert labels == {f"{name}/{name}_0.JPEG": index for index, name in enumerate(CLASSES)}


def test_a_network_without_names_needs_all_folders(tmp_path):
    with pytest.raises(UserError, match="has 2 class folders, but the network has 10 classes"):
        label(tmp_path, spec(classes=None), {"bee": 1, "jay": 1})


def test_a_class_that_the_network_does_not_know_is_named(tmp_path):
    with pytest.raises(UserError, match="zebra: the network knows no class of that name"):
        label(tmp_path, spec(), {"bee": 1, "zebra": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing; export.py writes it beside net.mindir"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "num_classes is missing"),
        ('{"num_classes": 2}', "classes is missing"),
        *(
            (json.dumps(spec(num_classes=count)), "num_classes must be from 1 to 1000000")
            for count in ("ten", True, 0, -1, 1.5, 10**12, None, [10])
        ),
        ('{"num_classes": 1' + "0" * 5000 + "}", "not valid JSON"),
        *(
            (json.dumps(spec(classes=None, num_classes=4) | {"classes": classes}), "classes must be a list of names")
            for classes in (7, "abcd", {}, [1, 2, 3, 4], ["a", "b", "c", None], [["a"], "b", "c", "d"])
        ),
        *(
            (json.dumps(spec(classes=None, num_classes=3) | {"classes": classes}), "classes must be 3 different names")
            for classes in (["a"], ["a", "b", "b"], ["a", "b", "c", "c"], [])
        ),
        (json.dumps(spec(file="net.mindir", sha256=7)), "file and sha256 must be texts"),
    ],
)
def test_a_broken_description_is_an_error_that_names_it(text, message, tmp_path):
    if text is not None:
        (tmp_path / "net.json").write_text(text)
    with pytest.raises(UserError, match=rf"net\.json.*: .*{message}"):
        read_description(tmp_path / "net.mindir")


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_no_exported_file(path):
    with pytest.raises(UserError, match="must be an exported file"):
        read_description(path)


@pytest.mark.parametrize("own", ["label.json", "net.json"])
def test_a_report_does_not_take_the_place_of_what_is_read(own, run, tmp_path):
    run({"ant/1.JPEG": 0}, {})
    flags = ["--mindir_path", "net.mindir", "--result_path", "results", "--label_file", "label.json", "--report", own]
    with pytest.raises(UserError, match="is what is read"):
        postprocess.main([flag if flag.startswith("-") else str(tmp_path / flag) for flag in flags])


def test_a_description_knows_the_file_that_it_belongs_to(tmp_path):
    path = tmp_path / "net.mindir"
    path.write_bytes(bytes(100_000))
    write_description(path, spec())
    read = read_description(path)
    assert read["sha256"] == hashlib.sha256(bytes(100_000)).hexdigest()
    assert (read["file"], read["written_by"].split()[0]) == ("net.mindir", "ddrnet")

    (tmp_path / "other.mindir").write_bytes(path.read_bytes())
    (tmp_path / "other.json").write_text((tmp_path / "net.json").read_text())
    assert read_description(tmp_path / "other.mindir") == read, "renamed together"
    (tmp_path / "net.air").write_bytes(b"of another format")
    assert read_description(tmp_path / "net.air") == read

    damaged = bytearray(path.read_bytes())
    damaged[50_000] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"net\.mindir: is damaged, or not the file that net\.json describes"):
        read_description(path)
    path.unlink()
    with pytest.raises(UserError, match=r"net\.mindir: cannot be read"):
        read_description(path)


def test_a_converted_file_is_described_as_its_original(tmp_path):
    original, converted = tmp_path / "net.mindir", tmp_path / "net_310.mindir"
    original.write_bytes(b"exported")
    converted.write_bytes(b"converted")
    write_description(original, spec())
    description.main([str(original), str(converted)])
    assert read_description(converted)["classes"] == list(CLASSES)
    assert read_description(converted)["sha256"] == hashlib.sha256(b"converted").hexdigest()
    with pytest.raises(UserError, match="must have another name"):
        description.main([str(original), str(original)])


def test_a_description_without_a_checksum_is_read(tmp_path):
    (tmp_path / "net.json").write_text(json.dumps(spec()))
    assert read_description(tmp_path / "net.mindir")["classes"] == list(CLASSES)


def test_images_of_other_formats_get_a_png_of_the_same_pixels(tmp_path):
    save_folder(tmp_path / "val", {"ant": 2})
    files = {"a.bmp": "BMP", "b.gif": "GIF", "c.ppm": "PPM", "d.tif": "TIFF", "e.webp": "WEBP", "f.jpg": "WEBP"}
    for name, form in files.items():
        picture(90, 70).save(tmp_path / "val" / "ant" / name, form)
    picture(90, 70).save(tmp_path / "val" / "ant" / "g.bmp", "PNG")
    (tmp_path / "val" / "ant" / "h.jpg").write_bytes(b"no image")
    old = tmp_path / "out" / "converted" / "ant" / "gone.bmp.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier run")
    (tmp_path / "net.json").write_text(json.dumps(spec()))
    flags = {"mindir_path": "net.mindir", "data_path": "val", "result_path": "out"}
    preprocess.main([part for flag, name in flags.items() for part in (f"--{flag}", str(tmp_path / name))])
    converted = {path.name: path for path in (tmp_path / "out" / "converted" / "ant").iterdir()}
    assert sorted(converted) == sorted(f"{name}.png" for name in files)
    config = eval_config(spec())
    for name in files:
        original = load_eval_image(str(tmp_path / "val" / "ant" / name), config)
        np.testing.assert_array_equal(load_eval_image(str(converted[f"{name}.png"]), config), original)


def test_the_flow_needs_numpy_and_pillow_alone(tmp_path):
    """What the machine with the card need not have is kept from being imported."""
    save_folder(tmp_path / "val", {"ant": 1})
    (tmp_path / "net.json").write_text(json.dumps(spec()))
    missing = ("mindspore", "pydantic", "yaml", "numba", "matplotlib", "tqdm", "google", "torch")
    script = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
import preprocess, postprocess
preprocess.main(["--mindir_path", "net.mindir", "--data_path", "val"])
import pathlib, numpy
pathlib.Path("result_Files").mkdir()
numpy.zeros(10, numpy.float32).tofile("result_Files/ant__ant_0_0.bin")
postprocess.main(["--mindir_path", "net.mindir"])
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["Top1 acc: 1.0", "Top5 acc: 1.0"]
