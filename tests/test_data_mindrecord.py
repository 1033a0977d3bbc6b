"""MindRecord shards: the same batches as the folder they were packed from."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data import create_dataset, image_files, mindrecord
from src.data.imagenet import class_names
from src.data.listing import list_folder
from src.data.packed import PackedSamples
from src.errors import UserError
from tests.photos import make_config, make_folder
from tests.test_data_folder import damages


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder, and the same packed into several shards; class_1 is not in val/."""
    root = make_folder(tmp_path_factory.mktemp("folder"))
    shutil.rmtree(root / "val" / "class_1")
    (root / "train" / "class_2" / "007.jpg").write_bytes(b"no image")
    out = tmp_path_factory.mktemp("packed")
    size, mindrecord.SHARD_BYTES = mindrecord.SHARD_BYTES, 30_000
    try:
        classes = list_folder(str(root / "train")).classes
        for split in ("train", "val"):
            mindrecord.pack(list_folder(str(root / split), classes), out, split)
    finally:
        mindrecord.SHARD_BYTES = size
    return root, out


def test_batches_are_the_folders_bit_for_bit(packed):
    root, out = packed
    assert len(list(out.glob("train.mindrecord*.db"))) > 2
    for split in ("train", "val"):
        folder, shards = (create_dataset(make_config(place, batch_size=8), split) for place in (root, out))
        assert (folder.classes, folder.size, folder.steps) == (shards.classes, shards.size, shards.steps)
        assert folder.classes_from == shards.classes_from == "train"
        epochs = [batches.epoch(2) if split == "train" else batches.epoch() for batches in (folder, shards)]
        for ours, theirs in zip(*(read(epoch) for epoch in epochs)):
            for a, b in zip(ours, theirs):
                np.testing.assert_array_equal(a, b)
    assert class_names(make_config(out)) == class_names(make_config(root))


def read(epoch):
    """All batches until the bad file stops the epoch."""
    batches = []
    try:
        batches.extend(epoch)
    except UserError as error:
        assert "007.jpg" in str(error)
    assert batches
    return batches


def test_the_shards_are_mindrecord_that_mindspore_reads(packed):
    from mindspore.mindrecord import FileReader

    root, out = packed
    rows = []
    for path in sorted(out.glob("train.mindrecord???")):
        reader = FileReader(str(path))
        rows += [(bytes(row["image"]), int(row["label"])) for row in reader.get_next()]
        reader.close()
    samples = list_folder(str(root / "train"))
    assert sorted(rows) == sorted((samples.read(i), int(samples.labels[i])) for i in range(len(samples)))


def test_short_side_scales_large_images_down_and_keeps_small_ones(tmp_path):
    root = make_folder(tmp_path / "folder", train=4)
    mindrecord.pack(list_folder(str(root / "train")), tmp_path / "out", "train", short_side=100)
    folder = create_dataset(make_config(root), "train")
    shards = create_dataset(make_config(tmp_path / "out"), "train")
    scaled = 0
    for index in range(folder.size):
        before, after = (batches.samples.read(index) for batches in (folder, shards))
        path = tmp_path / "image"
        path.write_bytes(after)
        with Image.open(folder.samples.path(index)) as old, Image.open(path) as new:
            if min(old.size) <= 100:
                assert before == after
                continue
            scaled += 1
            assert min(new.size) == 100
            assert abs(new.width / new.height - old.width / old.height) < 0.02
            difference = np.asarray(new, int) - np.asarray(old.resize(new.size, Image.Resampling.LANCZOS), int)
            assert np.abs(difference).mean() < 4
    assert scaled > 2


def test_a_missing_or_cut_shard_is_an_error_that_names_it(packed, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(packed[1], out)
    shard = sorted(out.glob("val.mindrecord???"))[0]
    shard.write_bytes(shard.read_bytes()[: 1 << 24])
    with pytest.raises(UserError, match="cut short"):
        create_dataset(make_config(out), "val")
    for missing in (False, True):
        shard.unlink()
        if not missing:
            os.mkfifo(shard)
        with pytest.raises(UserError, match=f"{shard.name}: cannot be read"):
            create_dataset(make_config(out), "val")


def test_damage_within_a_shard_is_blamed_on_the_shard(packed, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(packed[1], out)
    with np.load(out / "val.index.npz") as index:
        shard, offset = f"val.mindrecord{index['shards'][4]:03d}", int(index["offsets"][4])
    samples = create_dataset(make_config(out), "val").samples
    whole = samples.read(4)
    with (out / shard).open("r+b") as file:
        file.seek(offset + len(whole) // 2)
        file.write(bytes([whole[len(whole) // 2] ^ 1]))
    with pytest.raises(OSError, match=f"{shard}: is damaged at byte {offset}; pack the data set again"):
        samples.read(4)
    assert samples.where(4) == f"{out / shard} (class_2/001.jpg)"
    with pytest.raises(UserError, match=f"{shard}"):
        list(create_dataset(make_config(out), "val").epoch())
    assert samples.read(3)


def old_index(**changes):
    """A table as versions without checksums wrote it, of three images, changed."""
    arrays = {
        "classes": np.array(["a", "b"]), "labels": np.int32([0, 0, 1]), "names": np.frombuffer(b"123", np.uint8),
        "ends": np.int64([1, 2, 3]), "shards": np.int32([0, 0, 0]), "offsets": np.int64([0, 4, 8]),
        "sizes": np.int64([4, 4, 4]),
    }  # fmt: skip
    arrays.update(changes)
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


def test_a_table_of_a_version_without_checksums_is_read(tmp_path):
    (tmp_path / "val.index.npz").write_bytes(old_index())
    (tmp_path / "val.mindrecord000").write_bytes(b"AAAABBBBCCCC")
    samples = PackedSamples(tmp_path, "val")
    assert [samples.read(index) for index in range(3)] == [b"AAAA", b"BBBB", b"CCCC"]
    assert samples.path(2) == f"{tmp_path}/val/b/3"


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.int32([0, 2, 1])}, {"labels": np.int32([0, -1, 1])}, {"labels": np.int32([0, 1])},
        {"shards": np.int32([0, -1, 0])}, {"shards": np.int32([0, 1 << 30, 0])}, {"shards": None},
        {"sizes": np.int64([4, 1 << 40, 4])}, {"sizes": np.int64([4, -4, 4])}, {"offsets": np.float64([0, 4, 8])},
        {"offsets": np.int64([0, 1 << 39, 4])}, {"ends": np.int64([1, 3, 2])}, {"ends": np.int64([1, 2, 9])},
        {"classes": np.array([])}, {"classes": np.array(["a", "a"])}, {"classes": np.array(["a", "\ud800"])},
        {"labels": np.int32([]), "ends": np.int64([]), "shards": np.int32([]), "offsets": np.int64([]),
         "sizes": np.int64([]), "names": np.frombuffer(b"", np.uint8)},
        {"names": np.frombuffer(b"12", np.uint8)}, {"labels": np.array([None, None, None])},
    ],
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_a_table_whose_numbers_make_no_sense_is_damaged(tmp_path, changes):
    (tmp_path / "val.index.npz").write_bytes(old_index(**changes))
    (tmp_path / "val.mindrecord000").write_bytes(b"AAAABBBBCCCC")
    with pytest.raises(UserError, match="pack the data set again"):
        PackedSamples(tmp_path, "val")


def test_any_damage_to_the_table_is_noticed(packed, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(packed[1], out)
    path = out / "val.index.npz"
    whole, harmless = PackedSamples(out, "val"), 0
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            samples = PackedSamples(out, "val")
        except UserError as error:
            assert re.search(r"val.index.npz: is damaged \(.*\); pack the data set again", str(error))
        else:  # a flip in what zip archives hold beside the content, such as a time
            harmless += 1
            assert [samples.read(index) for index in range(6)] == [whole.read(index) for index in range(6)]
            assert samples.labels.tolist() == whole.labels.tolist()
    assert harmless < 20


def test_shards_that_cannot_be_written_are_an_error_before_the_first_image_is_read(packed, tmp_path, monkeypatch):
    samples = list_folder(str(packed[0] / "val"))
    monkeypatch.setattr(mindrecord, "_read", lambda *_: pytest.fail("an image was read"))
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/shards")):
        with pytest.raises(UserError, match=f"--out {root}: cannot be written"):
            mindrecord.pack(samples, root, "val")


def test_a_file_that_cannot_be_packed_is_an_error_that_says_why(tmp_path, monkeypatch):
    samples = list_folder(str(make_folder(tmp_path / "folder") / "val"))
    monkeypatch.setattr(image_files, "MAX_BYTES", 10)
    with pytest.raises(UserError, match=r"class_0/.*: it has \d+ bytes; at most 10 are read; mend or remove it"):
        mindrecord.pack(samples, tmp_path / "large", "val")
    Path(samples.path(0)).unlink()
    with pytest.raises(UserError, match=r"class_0/.*: it cannot be read \(No such file or directory\); mend"):
        mindrecord.pack(samples, tmp_path / "gone", "val")


def test_the_command_packs_what_is_there_and_refuses_nonsense(tmp_path, monkeypatch, capsys):
    root = make_folder(tmp_path / "folder")
    flags = ["mindrecord", "--data_url", str(root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", flags)
    mindrecord.main()
    assert "train: 24 images" in capsys.readouterr().out
    assert create_dataset(make_config(tmp_path / "out"), "val").size == 9
    (root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"train: 1 of \d classes has no image \(empty\)"):
        mindrecord.main()
    for wrong in (["--short_side", "-1"], ["--out", str(root)], ["--data_url", str(tmp_path / "none")]):
        monkeypatch.setattr("sys.argv", flags + wrong)
        with pytest.raises(UserError):
            mindrecord.main()
