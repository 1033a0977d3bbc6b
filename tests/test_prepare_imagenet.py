"""ImageNet from its archives: archives of the same structure, made here by tar and by SciPy's MATLAB writer."""

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from src.data import prepare_imagenet
from src.data.prepare_imagenet import DEVKIT, MD5, TRAIN, VAL, prepare, read_devkit
from src.errors import UserError
from tests.conftest import ROOT

WNIDS = ["n02119789", "n02100735", "n01440764", "n07753592", "n03000134", "n04604644"]  # not in order, as in meta.mat
WORDS = [
    "kit fox, Vulpes macrotis",
    "English setter",
    "tench, Tinca tinca",
    "banana",
    'chainlink "fence"',
    "worm fence",
]
PARENT = "n00001740"


def content(name: str, size: int = 3000) -> bytes:
    """Bytes that stand for one image: which ones follows from its name."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).bytes(size + seed % 1000)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def save_meta(path: Path, images: int) -> None:
    """meta.mat with the fields and their order of ILSVRC2012_devkit_t12: classes first, then a synset with children."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.zeros((len(WNIDS) + 1, 1), dtype=[(name, object) for name in [*fields, "num_train_images"]])
    for place, (wnid, words) in enumerate(zip([*WNIDS, PARENT], [*WORDS, "entity"])):
        leaf = wnid != PARENT
        children = np.zeros((1, 0)) if leaf else np.arange(1.0, len(WNIDS) + 1)[None]
        numbers = (0.0 if leaf else float(len(WNIDS)), children, float(not leaf), float(images if leaf else 0))
        synsets[place, 0] = (float(place + 1), wnid, words, "what it is", *numbers)
    scipy.io.savemat(path, {"synsets": synsets}, oned_as="column")


def make_archives(folder: Path, images: int = 7, val: int = 24, size: int = 3000) -> Path:
    """The three archives, with `images` of each class and `val` validation images."""
    folder.mkdir()
    with tarfile.open(folder / TRAIN, "w") as outer:
        for wnid in WNIDS:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for number in range(images):
                    name = f"{wnid}_{number * 31}.JPEG"
                    add(archive, name, content(name, size))
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / VAL, "w") as archive:
        for number in range(1, val + 1):
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            add(archive, name, content(name, size))
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    save_meta(data / "meta.mat", images)
    truth = np.random.default_rng(0).integers(1, len(WNIDS) + 1, val)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{label}\n" for label in truth))
    subprocess.run(["tar", "czf", DEVKIT, "ILSVRC2012_devkit_t12"], cwd=folder, check=True)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_tree(archives: Path, folder: Path) -> dict[str, bytes]:
    """The same by the programs that everybody uses: tar, and mv after the labels."""
    folder.mkdir()
    script = """
    mkdir train val && tar xf "$1/ILSVRC2012_img_train.tar" -C train && tar xf "$1/ILSVRC2012_img_val.tar" -C val
    cd train && for f in *.tar; do d=${f%.tar}; mkdir $d; tar xf $f -C $d; rm $f; done
    cd ../val && n=0 && while read -r label; do
      n=$((n + 1)); d=$(sed -n ${label}p ../wnids); mkdir -p $d; mv $(printf ILSVRC2012_val_%08d.JPEG $n) $d
    done < "$1/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    """
    (folder / "wnids").write_text("\n".join(WNIDS) + "\n")
    subprocess.run(["bash", "-ec", script, "_", str(archives)], cwd=folder, check=True)
    return tree(folder / "train"), tree(folder / "val")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_archives(tmp_path_factory.mktemp("ilsvrc") / "archives")


def copy(archives: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-r", archives, folder], check=True)
    return folder


def test_train_and_val_are_what_tar_and_the_labels_make_of_the_archives(archives, tmp_path, capsys):
    out = tmp_path / "imagenet"
    prepare(archives, out, md5=False, any_size=True)
    assert (tree(out / "train"), tree(out / "val")) == expected_tree(archives, tmp_path / "expected")
    assert sorted(path.name for path in out.iterdir()) == ["names.csv", "train", "val"]
    assert len(list((out / "val").iterdir())) == len(WNIDS)
    with (out / "names.csv").open(newline="") as file:
        assert dict(csv.reader(file)) == {"class": "name", **dict(zip(WNIDS, WORDS))}
    assert "42 images in 6 classes" in capsys.readouterr().out
    prepare(archives, out, md5=False, any_size=True)
    assert "is there already, 24 images in 6 classes" in capsys.readouterr().out


def test_after_kill_9_the_same_command_goes_on_and_no_half_class_counts(tmp_path):
    archives = make_archives(tmp_path / "archives", images=60, size=100_000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "src.data.prepare_imagenet", "--archives", archives, "--out", out, "--any_size"]
    kept = {}
    for wanted in (1, 3):
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial = out / "train.partial"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if partial.is_dir() and len(list(partial.glob("n*"))) >= wanted:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "train").exists()
        for folder in partial.glob("n*"):
            assert len(list(folder.iterdir())) == 60
            kept.setdefault(folder.name, folder.stat().st_ino)
    assert len(kept) >= 3
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: (out / "train" / name).stat().st_ino for name in kept} == kept
    assert (tree(out / "train"), tree(out / "val")) == expected_tree(archives, tmp_path / "expected")


def test_the_published_sums_are_compared_and_a_right_one_is_remembered(archives, tmp_path, monkeypatch):
    for name, digest in MD5.items():
        assert len(digest) == 32 and int(digest, 16), name
    with pytest.raises(UserError, match=r"devkit_t12\.tar\.gz: its MD5 sum is [0-9a-f]{32}, the published one fa75"):
        prepare(archives, tmp_path / "a", md5=True, any_size=True)
    sums = {}
    for name in MD5:
        said = subprocess.run(["md5sum", archives / name], capture_output=True, text=True, check=True).stdout
        sums[name] = said.split()[0]
    monkeypatch.setattr(prepare_imagenet, "MD5", sums)
    memory = tmp_path / "memory.json"
    prepare_imagenet.check_md5(archives, memory)
    monkeypatch.setattr(prepare_imagenet, "MD5", dict.fromkeys(sums, "0" * 32))
    prepare_imagenet.check_md5(archives, memory)  # not read again
    os.utime(archives / VAL)
    with pytest.raises(UserError, match=r"img_val\.tar: its MD5 sum"):
        prepare_imagenet.check_md5(archives, memory)


def test_imagenet_1k_has_a_thousand_classes(archives, tmp_path):
    with pytest.raises(UserError, match="holds 6 classes, not 1,000"):
        prepare(archives, tmp_path / "out", md5=False)


def replace_train(folder: Path, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    """The training archive anew, with one more member in the first class."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    with tarfile.open(folder / TRAIN, "w") as outer:
        for wnid in WNIDS:
            add(outer, f"{wnid}.tar", inner.getvalue())


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("../../escaped.JPEG", tarfile.REGTYPE, ""),
        ("/tmp/escaped.JPEG", tarfile.REGTYPE, ""),
        ("n02119789_1.JPEG", tarfile.SYMTYPE, "/etc/passwd"),
        ("n02119789_1.JPEG", tarfile.LNKTYPE, "../../names.csv"),
        ("n02119789_1.JPEG", tarfile.CHRTYPE, ""),
        ("n02119789_1.JPEG", tarfile.FIFOTYPE, ""),
        ("n01440764_1.JPEG", tarfile.REGTYPE, ""),
        ("sub/n02119789_1.JPEG", tarfile.REGTYPE, ""),
    ],
)
def test_a_member_that_is_no_image_of_its_class_is_refused(archives, tmp_path, name, kind, target):
    folder = copy(archives, tmp_path / "archives")
    replace_train(folder, name, kind, target)
    with pytest.raises(UserError, match="does not belong there"):
        prepare(folder, tmp_path / "out", md5=False, any_size=True)
    assert not list(tmp_path.rglob("escaped*"))
    assert not list((tmp_path / "out").rglob("*.JPEG"))


def test_damaged_and_incomplete_archives_are_one_line_each(archives, tmp_path):
    def said(name: str, change) -> str:
        folder = copy(archives, tmp_path / f"archives{len(list(tmp_path.iterdir()))}")
        change(folder / name)
        with pytest.raises(UserError) as caught:
            prepare(folder, tmp_path / "out", md5=False, any_size=True)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "train").exists() or not (tmp_path / "out" / "val").exists()
        return str(caught.value)

    def cut(share: float):
        return lambda path: os.truncate(path, int(path.stat().st_size * share))

    assert f"has no file {VAL}" in said(VAL, Path.unlink)
    assert "fetch it again" in said(TRAIN, cut(0.5))
    assert "fetch it again" in said(TRAIN, cut(0.9))
    assert "fetch it again" in said(TRAIN, lambda path: path.write_bytes(b"x" * 5000))
    assert "cannot be read" in said(DEVKIT, cut(0.5))
    assert "fetch it again" in said(VAL, cut(0.6))
    for share in (0.2, 0.4, 0.6, 0.8):  # the development kit alone
        damaged = tmp_path / "damaged.tar.gz"
        damaged.write_bytes((archives / DEVKIT).read_bytes()[: int((archives / DEVKIT).stat().st_size * share)])
        with pytest.raises(UserError):
            read_devkit(damaged)


def test_a_class_of_another_size_than_the_devkit_says_is_refused_unless_the_sum_was_right(archives, tmp_path):
    folder = copy(archives, tmp_path / "archives")
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    save_meta(data / "meta.mat", images=8)
    subprocess.run(["tar", "czf", DEVKIT, "ILSVRC2012_devkit_t12"], cwd=folder, check=True)
    with pytest.raises(UserError, match="holds 7 images, the development kit says 8"):
        prepare(folder, tmp_path / "out", md5=False, any_size=True)
    assert not list((tmp_path / "out" / "train.partial").iterdir())
    devkit = read_devkit(folder / DEVKIT)
    prepare_imagenet.unpack_train(folder / TRAIN, tmp_path / "out", devkit, trusted=True, any_size=True)
    assert len(list((tmp_path / "out" / "train").rglob("*.JPEG"))) == 42


def test_a_disk_too_small_and_a_second_process_are_refused_before_anything_is_unpacked(archives, tmp_path, monkeypatch):
    def nearly_full(path):
        return os.statvfs_result((4096, 4096, 10, 10, 10, 100, 100, 100, 0, 255))

    with monkeypatch.context() as patched:
        patched.setattr(prepare_imagenet.os, "statvfs", nearly_full)
        with pytest.raises(UserError, match=r"0\.[2-5] GB are needed, but 0\.0 GB are free|GB are free"):
            prepare(archives, tmp_path / "out", md5=False, any_size=True)
    assert not list(tmp_path.rglob("*.JPEG"))
    with prepare_imagenet._alone(tmp_path / "out"), pytest.raises(UserError, match="another process"):
        prepare(archives, tmp_path / "out", md5=False, any_size=True)
