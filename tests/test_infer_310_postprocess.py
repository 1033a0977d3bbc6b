"""Labels before and accuracy after the C++ program, on results written by hand."""

import json

import numpy as np
import pytest

import postprocess
import preprocess
from src.errors import UserError
from tests.infer_310 import CLASSES, save_folder, spec


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
    assert (report["top1"], report["top5"], report["not_a_number"]) == (0.0, 0.0, ["ant/0.JPEG"])


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
    with pytest.raises(UserError, match="holds 9 logits, but the network has 10 classes"):
        run({"ant/0.JPEG": 0}, {"ant__0_0.bin": np.zeros(9)})


@pytest.mark.parametrize("labels", [{}, [], {"ant/0.JPEG": 10}, {"ant/0.JPEG": -1}, {"ant/0.JPEG": "ant"}])
def test_labels_that_cannot_be_are_an_error_that_names_the_file(run, labels):
    with pytest.raises(UserError, match=r"label\.json"):
        run(labels, {})


def label(tmp_path, description, counts):
    (tmp_path / "net.json").write_text(json.dumps(description))
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
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[]", "num_classes is missing"),
        (json.dumps(spec(num_classes="ten")), "num_classes is missing"),
        (json.dumps({**spec(), "classes": ["ant"]}), "classes must be 10 different names"),
    ],
)
def test_a_broken_description_is_an_error_that_names_it(text, message, tmp_path):
    if text is not None:
        (tmp_path / "net.json").write_text(text)
    with pytest.raises(UserError, match=rf"net\.json: .*{message}"):
        preprocess.read_spec(str(tmp_path / "net.mindir"))
