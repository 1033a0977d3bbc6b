"""Listing folders, and what is wrong with them."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest

from src.args import Config
from src.data import create_dataset, listing
from src.data.imagenet import check_layout, class_names, classes_in_data
from src.data.listing import list_folder
from src.data.settle import settle
from src.errors import UserError
from tests.photos import make_config, make_folder, photos
from tests.processes import as_nobody


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def test_images_are_listed_by_class_and_name_without_hidden_files_and_others(tmp_path):
    touch(tmp_path / "b", "2.png", "10.JPEG", "1.jpg", ".hidden.jpg", "notes.txt", "Thumbs.db", "archive.tar")
    touch(tmp_path / "a", "ü.webp", "z.bmp")
    touch(tmp_path / ".cache", "1.jpg")
    samples = list_folder(str(tmp_path))
    assert samples.classes == ["a", "b"]
    assert [os.path.relpath(samples.path(i), tmp_path) for i in range(len(samples))] == [
        "a/z.bmp",
        "a/ü.webp",
        "b/1.jpg",
        "b/10.JPEG",
        "b/2.png",
    ]
    np.testing.assert_array_equal(samples.labels, [0, 0, 1, 1, 1])


def test_a_class_missing_from_val_does_not_shift_the_labels(tmp_path):
    make_folder(tmp_path)
    for path in (tmp_path / "val" / "class_1").iterdir():
        path.unlink()
    (tmp_path / "val" / "class_1").rmdir()
    val = create_dataset(make_config(tmp_path), "val")
    labels = np.concatenate([labels for _, labels in val.epoch()])
    assert sorted(labels[labels >= 0].tolist()) == [0, 0, 0, 2, 2, 2]
    assert val.classes == ["class_0", "class_1", "class_2"]
    assert val.classes_from == "train"


def test_without_train_the_classes_are_those_of_val(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    val = create_dataset(make_config(tmp_path), "val")
    assert val.classes_from == "val"
    assert val.classes == class_names(make_config(tmp_path)) == ["class_0", "class_1", "class_2"]


def error_of(config, split="train"):
    with pytest.raises(UserError) as error:
        create_dataset(config, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_folders_are_named(tmp_path):
    assert str(tmp_path / "none") in error_of(make_config(tmp_path / "none"))
    assert f"{tmp_path}: has no train/" in error_of(make_config(tmp_path))
    assert f"{tmp_path}: has no val/" in error_of(make_config(tmp_path), "val")


def test_empty_folders_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    assert "empty" in error_of(make_config(tmp_path))
    for name in "abc":
        touch(tmp_path / "train" / name, "notes.txt")
    message = error_of(make_config(tmp_path))
    assert "no image" in message
    assert str(tmp_path / "train") in message


def test_a_flat_val_is_an_error_that_says_how_to_sort_it(tmp_path):
    make_folder(tmp_path)
    flat = tmp_path / "flat"
    touch(flat / "val", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    message = error_of(make_config(flat), "val")
    assert str(flat / "val") in message
    assert "ILSVRC2012_validation_ground_truth.txt" in message


def test_num_classes_that_differs_from_the_folders(tmp_path):
    make_folder(tmp_path)
    for split in ("train", "val"):
        message = error_of(make_config(tmp_path, num_classes=4), split)
        assert "num_classes" in message
        assert "3 class folders" in message
    with pytest.raises(UserError, match="num_classes"):
        class_names(make_config(tmp_path, num_classes=4))


def test_a_class_of_val_that_train_lacks_is_named(tmp_path):
    make_folder(tmp_path)
    touch(tmp_path / "val" / "stranger", "1.jpg")
    assert str(tmp_path / "val" / "stranger") in error_of(make_config(tmp_path), "val")


def test_fewer_images_than_one_global_batch(tmp_path):
    make_folder(tmp_path)
    assert create_dataset(make_config(tmp_path, batch_size=24), "train").steps == 1
    assert "24 images" in error_of(make_config(tmp_path, batch_size=26))
    assert "24 images" in error_of(make_config(tmp_path, batch_size=2, accumulation_step=13))
    with pytest.raises(UserError, match="24 images"):
        create_dataset(make_config(tmp_path, batch_size=14, device_num=2), "train", rank=1, world=2)


def test_an_odd_batch_with_mixing(tmp_path):
    make_folder(tmp_path)
    assert "batch_size" in error_of(make_config(tmp_path, batch_size=5))
    for keys in ({"mix_up": 0.0, "cutmix": 0.0}, {"mixup_prob": 0.0}):
        assert create_dataset(make_config(tmp_path, batch_size=5, **keys), "train").steps == 4


def test_a_large_folder_is_listed_within_the_time_and_memory_of_imagenet(tmp_path):
    """8,000 links: at the promised pace of 1.28 million in 30 s they take 0.19 s, and 400 bytes a file."""
    import tracemalloc

    target = tmp_path / "image.jpg"
    target.write_bytes(b"x")
    for label in range(8):
        folder = tmp_path / "tree" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(1000):
            (folder / f"n{label:08d}_{number}.JPEG").symlink_to(target)
    start = time.process_time()
    samples = list_folder(str(tmp_path / "tree"))
    seconds = time.process_time() - start
    tracemalloc.start()
    kept = list_folder(str(tmp_path / "tree"))
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == len(kept) == 8_000
    assert seconds < 0.19
    assert size / 8_000 < 60
    assert peak / 8_000 < 400


def test_a_cached_listing_is_used_until_a_class_folder_changes(tmp_path, monkeypatch, caplog):
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    config = make_config(root, listing_cache=str(cache))
    first = create_dataset(config, "train").samples
    scanned, list_files = [], listing._list_files
    monkeypatch.setattr(listing, "_list_files", lambda *args: scanned.append(args) or list_files(*args))
    second = create_dataset(config, "train").samples
    assert not scanned
    assert [first.path(i) for i in range(24)] == [second.path(i) for i in range(24)]
    np.testing.assert_array_equal(first.labels, second.labels)
    touch(root / "train" / "class_1", "new.jpg")
    assert create_dataset(config, "train").size == 25
    assert len(scanned) == 1
    third, harmless = create_dataset(config, "train").samples, 0
    (path,) = cache.iterdir()
    assert [entry.name for entry in cache.iterdir()] == [path.name]
    content = path.read_bytes()
    for damaged in damages(content):
        path.write_bytes(damaged)
        caplog.clear()
        scans = len(scanned)
        samples = create_dataset(config, "train").samples
        assert [samples.path(i) for i in range(25)] == [third.path(i) for i in range(25)]
        if len(scanned) == scans:  # a flip in what zip archives hold beside the content, such as a time
            harmless += 1
            continue
        assert "it is written anew" in caplog.text
        assert path.read_bytes()[:4] == b"PK\3\4"
    assert harmless < 20


def damages(content: bytes) -> list[bytes]:
    """The file empty, cut, with flipped bits all over, and replaced by others."""
    middle = bytearray(content)
    cut = [content[: len(content) * part // 9] for part in range(9)]
    flipped = []
    for place in range(5, len(content), max(1, len(content) // 40)):
        middle[place] ^= 0x10
        flipped.append(bytes(middle))
        middle[place] ^= 0x10
    swapped = io.BytesIO()
    np.savez(swapped, classes=np.zeros(1 << 10, np.uint8))
    return [*cut, *flipped, b"damaged", b"PK\3\4", b"\x93NUMPY", bytes(1000), swapped.getvalue()]


@pytest.mark.parametrize("kind", ["file", "closed", "pipe", "folder"])
def test_a_cache_that_cannot_be_kept_is_a_warning(tmp_path, caplog, kind):
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    config = make_config(root, listing_cache=str(cache))
    create_dataset(config, "train")
    (path,) = cache.iterdir()
    path.unlink()
    if kind == "file":
        cache.rmdir()
        cache.write_text("")
    elif kind == "closed":
        config = make_config(root, listing_cache="/proc/cache")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "x").write_text("")
    assert create_dataset(config, "train").size == 24
    assert ("the listing is not kept" in caplog.text) == (kind != "pipe")  # a pipe is replaced by the file


def messages(caplog, root, **keys):
    caplog.clear()
    create_dataset(make_config(root, **keys), keys.pop("split", "train"))
    return [record.getMessage() for record in caplog.records]


def test_files_that_are_left_out_are_told_in_one_line_a_split(tmp_path, caplog):
    root = make_folder(tmp_path / "data")
    assert messages(caplog, root) == []
    train = root / "train"
    touch(train / "class_1", *(f"IMG_{number}.HEIC" for number in range(9)), "notes", "Thumbs.db", ".DS_Store")
    touch(train / "class_1" / "old.jpg", "1.jpg")
    os.mkfifo(train / "class_0" / "a.jpg")
    (train / "class_0" / "b.jpg").symlink_to("/dev/zero")
    (train / "class_0" / "c.jpg").symlink_to("nowhere")
    (train / "class_0" / "d.jpg").symlink_to("d.jpg")
    told = (
        f"data_url: {train}: 15 entries are left out: *.heic (9, such as class_1/IMG_0.HEIC), "
        "pipes, devices or broken links (4, such as class_0/a.jpg), "
        "files without an ending (1, such as class_1/notes), folders within a class (1, such as class_1/old.jpg)"
    )
    assert messages(caplog, root) == [told]
    cache = str(tmp_path / "cache")
    assert messages(caplog, root, listing_cache=cache) == [told]
    assert messages(caplog, root, listing_cache=cache) == [told]  # from the cache


def test_only_regular_files_are_listed_and_links_to_them(tmp_path):
    root = tmp_path / "data"
    touch(root / "a", "1.jpg")
    os.mkfifo(root / "a" / "2.jpg")
    (root / "a" / "3.jpg").symlink_to(root / "a" / "1.jpg")
    (root / "a" / "4.jpg").symlink_to("/dev/zero")
    samples = list_folder(str(root))
    assert [samples.path(index)[-5:] for index in range(len(samples))] == ["1.jpg", "3.jpg"]


def test_a_class_without_images_is_an_error_in_train_and_a_warning_in_val(tmp_path, caplog):
    root = make_folder(tmp_path / "data")
    for split in ("train", "val"):
        for path in (root / split / "class_1").iterdir():
            (root / split / "class_1" / "sub").mkdir(exist_ok=True)
            path.rename(root / split / "class_1" / "sub" / path.name)
    message = error_of(make_config(root))
    assert f"{root / 'train'}: 1 of 3 classes has no image (class_1)" in message
    assert "images lie deeper, such as class_1/sub/000.jpg: move them up into class_1/" in message
    assert create_dataset(make_config(root), "val").size == 6
    assert "1 of 3 classes has no image (class_1): figures are over the others; images lie deeper" in caplog.text
    for name in ("class_0", "class_2"):
        for path in (root / "train" / name).iterdir():
            path.unlink()
    message = error_of(make_config(root))
    assert "its class folders hold no image" in message
    assert "class_1/sub/000.jpg" in message


def test_closed_folders_are_named(tmp_path, monkeypatch):
    """As root may read every folder, the system's answer is put in its place."""
    root = make_folder(tmp_path / "data")
    closed, scandir, stat = "", os.scandir, os.stat

    def refuse(call):
        def wrapped(path, *args, **keywords):
            if closed and str(path).startswith(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **keywords)

        return wrapped

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(os, "stat", refuse(stat))
    for closed in (str(root), str(root / "train"), str(root / "train" / "class_1")):
        for cache in ("", str(tmp_path / "cache")):
            message = error_of(make_config(root, listing_cache=cache))
            assert f"{closed}: cannot be read (Permission denied)" in message
    closed = str(root / "val")
    assert "cannot be read (Permission denied)" in error_of(make_config(root), "val")


def test_names_that_are_no_utf_8_or_forge_lines_are_listed_and_escaped(tmp_path, caplog):
    root = os.fsencode(tmp_path / "data" / "train")
    for name in (b"caf\xe9", b"new\nline", "红熊猫".encode()):
        os.makedirs(root + b"/" + name)  # noqa: PTH103
        for number in range(4):
            with open(root + b"/" + name + b"/\xff%d.jpg" % number, "wb") as file:  # noqa: PTH123
                file.write(b"x")
    with open(root + b"/new\nline/\x1b[31m.heic", "wb"):  # noqa: PTH123
        pass
    for _ in range(2):
        config = make_config(tmp_path / "data", listing_cache=str(tmp_path / "cache"))
        samples = create_dataset(config, "train").samples
        assert samples.classes == ["caf\udce9", "new\nline", "红熊猫"]
        assert samples.read(4) == b"x"
    told = caplog.records[-1].getMessage()
    assert "new\\nline/\\x1b[31m.heic" in told
    assert told.isprintable()
    touch(tmp_path / "data" / "val" / "a\nb", "1.jpg")
    assert "a\\nb: train/ has no class folder" in error_of(config, "val")


@pytest.mark.parametrize(
    ("folders", "data", "said"),
    [
        (["dog", "ship"], ".", "has neither train/ nor val/, but dog/, ship/: the folders of the classes go into"),
        (["train/dog", "train/ship"], "train", "data_url is the folder above it"),
        (["Train/dog", "Val/dog"], ".", "but Train/: rename that to train/"),
        (["train/dog", "validation/dog"], ".", "has no val/, but validation/: rename that to val/"),
        (["train/dog"], ".", "has no val/: move some images of each class there"),
        ([], ".", "has neither train/ nor val/; it must hold train/ and val/"),
        ([], "elsewhere", "no such folder; it must hold train/ and val/"),
    ],
)
def test_another_layout_is_named_with_what_to_do(folders, data, said, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        photos()[0].crop((0, 0, 40, 40)).save(tmp_path / folder / "a.png")
    config = Config(data_url=str(tmp_path / data), num_classes=0, batch_size=2)
    with pytest.raises(UserError, match=said) as raised:
        create_dataset(settle(config), "val")
    assert str(raised.value).startswith("data_url: ")


@pytest.mark.parametrize(("closed", "mode"), [(".", 0o311), (".", 0), ("..", 0), ("train", 0), ("train", 0o311)])
@pytest.mark.parametrize("splits", [("train", "val"), ("val",)])
def test_a_data_folder_that_may_not_be_read_is_named_with_the_reason(closed, mode, splits, tmp_path, monkeypatch):
    root = tmp_path / "above/data"
    (root / "train/a").mkdir(parents=True)
    for above in (tmp_path, tmp_path / "above"):
        above.chmod(0o755)
    (root / closed).resolve().chmod(mode)
    monkeypatch.chdir(tmp_path)
    try:

        def look() -> str:
            try:
                check_layout(Path("above/data"), splits)
                classes_in_data(Config(data_url="above/data", num_classes=1))
                return "taken"
            except UserError as error:
                return str(error)

        said = as_nobody(look)
    finally:
        (root / closed).resolve().chmod(0o755)
    if closed == "train" and splits == ("val",):
        assert said.startswith("data_url: above/data: has no val/")
    elif (closed, mode, splits) == (".", 0o311, ("train", "val")):
        assert said == "taken"  # train/ itself may be read
    else:
        assert said.startswith("data_url: above/data") and "cannot be read (Permission denied)" in said
