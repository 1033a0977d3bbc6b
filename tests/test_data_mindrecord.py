"""MindRecord shards: the same batches as the folder they were packed from."""

import shutil

import numpy as np
import pytest
from PIL import Image

from src.data import create_dataset, mindrecord
from src.data.imagenet import class_names
from src.data.listing import list_folder
from src.errors import UserError
from tests.photos import make_config, make_folder


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
        list(create_dataset(make_config(out), "val").epoch())
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        create_dataset(make_config(out), "val")


def test_the_command_packs_what_is_there_and_refuses_nonsense(tmp_path, monkeypatch, capsys):
    root = make_folder(tmp_path / "folder")
    flags = ["mindrecord", "--data_url", str(root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", flags)
    mindrecord.main()
    assert "train: 24 images" in capsys.readouterr().out
    assert create_dataset(make_config(tmp_path / "out"), "val").size == 9
    for wrong in (["--short_side", "-1"], ["--out", str(root)], ["--data_url", str(tmp_path / "none")]):
        monkeypatch.setattr("sys.argv", flags + wrong)
        with pytest.raises(UserError):
            mindrecord.main()
