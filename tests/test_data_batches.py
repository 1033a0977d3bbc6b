"""Batches: the same whatever the workers, ranks and starting point; complete; robust against bad files."""

import gc
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.data import create_dataset, loader
from src.data.augment.transforms import load_eval_image
from src.data.imagenet import _TrainJob
from src.errors import UserError
from src.tools.criterion import SoftTargetCrossEntropy
from tests.photos import make_config, make_folder

ROOT = Path(__file__).parent.parent
ALL = {"mixup_mode": "elem", "re_prob": 0.5, "mixup_prob": 0.8, "interpolation": "random"}
UNMIXED = {"mix_up": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    """So that several workers run as several on any machine."""
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def collect(batches, *args):
    return [tuple(array.copy() for array in batch) for batch in batches.epoch(*args)]


def same(first, second):
    assert len(first) == len(second) > 0
    for ours, theirs in zip(first, second):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def differ(first, second):
    return not np.array_equal(first[0][0], second[0][0])


# Form


def test_training_batches_have_the_promised_form(folder):
    config = make_config(folder)
    train = create_dataset(config, "train", uniform_columns=5)
    assert (train.size, train.steps, train.classes_from) == (24, 6, "train")
    batches = list(train.epoch(1))
    assert len(batches) == 6
    for images, targets, uniforms in batches:
        assert images.shape == (4, 3, 48, 48)
        assert targets.shape == (4, 3)
        assert uniforms.shape == (4, 5)
        for array in (images, targets, uniforms):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
        assert 0 <= uniforms.min() < uniforms.max() < 1
    assert len(next(iter(create_dataset(config, "train").epoch(1)))) == 2


def test_unmixed_targets_are_smoothed_by_alpha_over_num_classes(folder):
    smoothed = create_dataset(make_config(folder, mix_up=0.0, cutmix=0.0, label_smoothing=0.3), "train")
    hard = create_dataset(make_config(folder, **UNMIXED), "train")
    for (images, targets), (same_images, one_hot) in zip(smoothed.epoch(1), hard.epoch(1)):
        np.testing.assert_array_equal(images, same_images)
        assert sorted(np.unique(one_hot)) == [0.0, 1.0]
        np.testing.assert_allclose(targets, 0.7 * one_hot + 0.1, atol=1e-6)


def test_balanced_class_weights_weigh_the_loss_as_in_scikit_learn_and_pytorch(folder, tmp_path):
    torch = pytest.importorskip("torch")
    from sklearn.utils.class_weight import compute_class_weight

    for label, images in enumerate((8, 5, 2)):
        (tmp_path / "train" / f"class_{label}").mkdir(parents=True)
        for path in sorted((folder / "train" / f"class_{label}").iterdir())[:images]:
            (tmp_path / "train" / f"class_{label}" / path.name).symlink_to(path)
    keys = {"batch_size": 6, "label_smoothing": 0.2, "auto_augment": ""}
    plain = create_dataset(make_config(tmp_path, **keys), "train")
    balanced = create_dataset(make_config(tmp_path, class_weights="balanced", **keys), "train")
    weights = compute_class_weight("balanced", classes=np.arange(3), y=plain.samples.labels)
    np.testing.assert_allclose(balanced.class_weights, weights, rtol=1e-6)
    logits = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    for (images, targets), (same_images, weighed) in zip(plain.epoch(1), balanced.epoch(1)):
        np.testing.assert_array_equal(images, same_images)
        criterion = torch.nn.CrossEntropyLoss(torch.from_numpy(weights.astype(np.float32)))
        want = criterion(torch.from_numpy(logits), torch.from_numpy(targets)).item()
        assert SoftTargetCrossEntropy()(ms.Tensor(logits), ms.Tensor(weighed)).asnumpy() == pytest.approx(want, 1e-5)


def test_mixing_ends_after_mixup_off_epoch(folder):
    mixed = create_dataset(make_config(folder, mixup_off_epoch=2, label_smoothing=0.0), "train")
    for epoch, mixes in ((1, True), (2, True), (3, False)):
        soft = np.concatenate([targets for _, targets in mixed.epoch(epoch)])
        assert bool(((soft > 0) & (soft < 1)).any()) == mixes
    plain = create_dataset(make_config(folder, **UNMIXED), "train")
    same(collect(mixed, 3), collect(plain, 3))
    assert differ(collect(mixed, 1), collect(plain, 1))


@pytest.mark.parametrize("keys", [{"batch_size": 10}, {"batch_size": 4, "accumulation_step": 4}, {"batch_size": 24}])
def test_an_epoch_has_no_image_twice_and_leaves_out_what_does_not_fill_an_update(folder, keys):
    config = make_config(folder, **UNMIXED, **keys)
    train = create_dataset(config, "train")
    per_update = config.images_an_update
    assert train.steps == 24 // per_update * config.accumulation_step
    used = []
    for epoch in (1, 2, 3):
        indices, images = seen_indices(train, epoch)
        assert images == 24 // per_update * per_update
        assert len(set(indices)) == len(indices) == images
        used.append(frozenset(indices))
    assert len(set(used)) == (3 if per_update < 24 else 1)


def seen_indices(train, epoch):
    """Which samples an epoch reads, and how many images it yields."""
    reads, read = [], train.samples.read

    def record(index):
        reads.append(index)
        return read(index)

    train.samples.read = record
    images = sum(len(batch[0]) for batch in train.epoch(epoch))
    train.samples.read = read
    return reads, images


# Repeatability


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_batches_are_the_same_with_1_2_and_8_workers(folder, mode):
    keys = {**ALL, "mixup_mode": mode, "batch_size": 6}
    runs = [
        collect(create_dataset(make_config(folder, num_parallel_workers=n, **keys), "train", uniform_columns=2), 2)
        for n in (1, 2, 8)
    ]
    same(runs[0], runs[1])
    same(runs[0], runs[2])


def test_seeds_and_epochs_differ_and_repeat(folder):
    first = create_dataset(make_config(folder, **ALL, seed=1), "train", uniform_columns=2)
    other = create_dataset(make_config(folder, **ALL, seed=2), "train", uniform_columns=2)
    same(collect(first, 1), collect(first, 1))
    assert differ(collect(first, 1), collect(first, 2))
    assert differ(collect(first, 1), collect(other, 1))
    uniforms = [collect(batches, epoch)[0][2] for batches in (first, other) for epoch in (1, 2)]
    assert len({array.tobytes() for array in uniforms}) == 4


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_a_run_resumed_at_any_step_sees_what_the_whole_run_saw(folder, start):
    whole = collect(create_dataset(make_config(folder, **ALL), "train", uniform_columns=3), 3)
    resumed = collect(create_dataset(make_config(folder, **ALL), "train", uniform_columns=3), 3, start)
    same(whole[start:], resumed)


def test_an_epoch_resumed_after_its_last_step_is_empty(folder):
    assert list(create_dataset(make_config(folder), "train").epoch(1, 6)) == []


def test_two_ranks_see_together_what_one_rank_sees(folder):
    """Without mixing, whose partners stay on their rank. Two ranks of 2 x 2 accumulated against one of 4 x 2."""
    keys = {**UNMIXED, "re_prob": 0.5, "accumulation_step": 2}
    one = collect(create_dataset(make_config(folder, batch_size=4, **keys), "train", uniform_columns=3), 1)
    two = [
        collect(create_dataset(make_config(folder, batch_size=2, device_num=2, **keys), "train", rank, 2, 3), 1)
        for rank in (0, 1)
    ]
    joined = [tuple(np.concatenate(pair) for pair in zip(*batches)) for batches in zip(*two)]
    same(one, joined)


def mixed_updates(folder, batch_size, world, accumulation, **keys):
    """The mixed images of each of the epoch's updates, with targets and uniforms, in an order that is theirs alone."""
    config = make_config(
        folder, batch_size=batch_size, device_num=world, accumulation_step=accumulation, label_smoothing=0.0, **keys
    )
    ranks = [collect(create_dataset(config, "train", rank, world, 2), 1) for rank in range(world)]
    updates = []
    for first in range(0, len(ranks[0]), accumulation):
        batches = [batch for rank in ranks for batch in rank[first : first + accumulation]]
        rows = [b"".join(part.tobytes() for part in row) for batch in batches for row in zip(*batch)]
        assert len(rows) == batch_size * world * accumulation
        updates.append(sorted(rows))
    return updates


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("group", [2, 4, 6, 8, 10, 12, 512])
def test_the_mixed_images_do_not_depend_on_ranks_or_accumulation(folder, mode, group):
    """One card of 12 images against 6 of 2, 3 of 4, 2 of 6, accumulated or not: bit for bit, with uniforms."""
    keys = {"mixup_mode": mode, "mixup_group": group, "mixup_prob": 0.8, "re_prob": 0.5}
    one = mixed_updates(folder, 12, 1, 1, **keys)
    for batch_size, world, accumulation in ((2, 6, 1), (4, 3, 1), (6, 2, 1), (2, 3, 2), (6, 1, 2)):
        assert mixed_updates(folder, batch_size, world, accumulation, **keys) == one


def test_a_group_is_drawn_once_and_groups_differ(folder):
    """MixUp alone, hard labels: a mixed target shows the share. Groups of 4 in a card's batch of 12."""
    for group, draws in ((4, 3), (6, 2), (10, 2), (512, 1)):
        config = make_config(
            folder, batch_size=12, cutmix=0.0, label_smoothing=0.0, mixup_group=group, hflip=0.0, auto_augment=""
        )
        train = create_dataset(config, "train")
        pairs = train.positions(0) // min(group, 12)
        _, targets = next(iter(train.epoch(1)))
        shares = {}
        for number, target in zip(pairs, targets):
            if 0 < target.max() < 1:  # partners of different classes
                shares.setdefault(number, set()).add(round(float(min(target[target > 0])), 5))
        assert len(shares) == draws
        assert all(len(seen) == 1 for seen in shares.values())
        assert len(set.union(*shares.values())) == draws


def test_mixing_follows_from_seed_epoch_and_update(folder):
    """Each of them alone changes how the same images would be mixed."""
    draws = set()
    for seed in (0, 1):
        train = create_dataset(make_config(folder, batch_size=4, cutmix=0.0, seed=seed), "train")
        for epoch in (1, 2):
            job = _TrainJob(train, epoch)
            for step in range(train.steps):
                draws.add(float(job.mix(job.start(step)[0]).share[0]))
                assert job.mix(job.start(step)[0]).share[0] in draws
    assert len(draws) == 2 * 2 * 6


def test_a_sample_follows_from_seed_epoch_and_index_alone(folder):
    """Other batch sizes put a sample elsewhere and leave its augmentation as it was."""
    keys = {**UNMIXED, "re_prob": 0.5}
    sets = [
        np.concatenate(
            [images for images, _ in create_dataset(make_config(folder, batch_size=n, **keys), "train").epoch(1)]
        )
        for n in (2, 24)
    ]
    np.testing.assert_array_equal(*sets)


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 16])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_image_once(folder, batch_size, world):
    config = make_config(folder, batch_size=batch_size, mix_up=0.0, cutmix=0.0)
    seen = []
    for rank in range(world):
        val = create_dataset(config, "val", rank, world)
        batches = list(val.epoch())
        assert len(batches) == val.steps
        for images, labels in batches:
            assert images.shape == (batch_size, 3, 48, 48)
            assert images.dtype == np.float32
            assert images.flags.c_contiguous
            assert labels.shape == (batch_size,)
            assert labels.dtype == np.int32
            assert (images[labels == -1] == 0).all()
            seen += [(label, image.tobytes()) for image, label in zip(images, labels) if label >= 0]
    expected = []
    for path in sorted((folder / "val").glob("*/*.jpg")):
        expected.append((int(path.parent.name[-1]), load_eval_image(str(path), config).tobytes()))
    assert sorted(seen) == sorted(expected)


def test_evaluation_stops_at_the_first_bad_file_and_names_it(tmp_path):
    bad = make_folder(tmp_path) / "val" / "class_1" / "000.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(UserError) as error:
        list(create_dataset(make_config(tmp_path), "val").epoch())
    assert str(bad) in str(error.value)
    assert not data_threads()


# Bad files in training


def test_training_takes_the_next_sample_for_a_bad_file_logs_and_counts_it(tmp_path, caplog):
    make_folder(tmp_path, train=40, val=1)
    bad = tmp_path / "train" / "class_1" / "007.jpg"
    bad.write_bytes(b"no image")
    runs = []
    for workers in (1, 3):
        train = create_dataset(make_config(tmp_path, num_parallel_workers=workers), "train")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            runs.append(collect(train, 1))
        assert train.bad == 1
        assert train.bad_paths == [str(bad)]
        assert [record for record in caplog.records if str(bad) in record.getMessage()]
        assert len(runs[-1]) == train.steps == 30
        assert np.isfinite(runs[-1][0][0]).all()
    same(*runs)
    bad.unlink()
    make_folder(tmp_path / "good")
    clean = create_dataset(make_config(tmp_path / "good"), "train")
    list(clean.epoch(1))
    assert clean.bad == 0


def test_training_stops_when_more_than_one_percent_is_bad(tmp_path):
    make_folder(tmp_path, train=40, val=1)
    for number in range(2):
        (tmp_path / "train" / "class_1" / f"{number:03d}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1%") as error:
        list(create_dataset(make_config(tmp_path), "train").epoch(1))
    assert "class_1" in str(error.value)
    assert not data_threads()


def test_a_folder_of_bad_files_alone_stops_too(tmp_path):
    make_folder(tmp_path)
    for path in (tmp_path / "train").glob("*/*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be decoded"):
        list(create_dataset(make_config(tmp_path), "train").epoch(1))


# Threads and memory


def data_threads():
    gc.collect()
    for _ in range(50):
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("data-")]
        if not names:
            return []
        time.sleep(0.02)
    return names


def test_threads_end_with_the_epoch_when_closed_and_when_forgotten(folder):
    train = create_dataset(make_config(folder), "train")
    list(train.epoch(1))
    assert not data_threads()
    epoch = train.epoch(1)
    next(epoch)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("data-")]
    epoch.close()
    assert not data_threads()
    for _ in train.epoch(1):
        break
    assert not data_threads()


def test_an_iterator_left_open_does_not_hang_the_exit(folder):
    program = (
        "from tests.photos import make_config; from src.data import create_dataset; import sys\n"
        f"train = create_dataset(make_config({str(folder)!r}), 'train')\n"
        "epoch = train.epoch(1); next(epoch); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


class Counting:
    """A job that only counts what is begun."""

    def __init__(self, fail_at=None, where="fill"):
        self.begun, self.fail_at, self.where = 0, fail_at, where

    def start(self, step):
        self.begun += 1
        if self.where == "start" and step == self.fail_at:
            raise MemoryError("no memory left")
        return [step, None, None], 3

    def fill(self, batch, place):
        if self.where == "fill" and batch[0] == self.fail_at and place == 1:
            raise RuntimeError("broken")
        batch[place] = (batch[0] if place == 0 else 0) or batch[place]

    def finish(self, batch):
        if self.where == "finish" and batch[0] == self.fail_at:
            raise RuntimeError("broken")
        return batch[0]


def test_prefetching_is_bounded_and_in_order():
    job = Counting()
    batches = loader.Prefetcher(job, range(100), workers=4, ahead=3)
    time.sleep(0.2)
    assert job.begun == 3
    for step in range(10):
        assert next(batches) == step
        time.sleep(0.02)
        assert job.begun <= step + 4
    assert list(batches) == list(range(10, 100))
    assert list(batches) == []
    assert not data_threads()


@pytest.mark.parametrize(("where", "error"), [("start", MemoryError), ("fill", RuntimeError), ("finish", RuntimeError)])
def test_a_workers_exception_comes_where_its_batch_would_have(where, error):
    batches = loader.Prefetcher(Counting(fail_at=4, where=where), range(100), workers=3, ahead=3)
    assert [next(batches) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(error):
        next(batches)
    assert not data_threads()


def test_workers_are_clamped_to_the_cores_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(loader, "_clamp_warned", False)
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    with caplog.at_level(logging.WARNING):
        assert [loader.clamp_workers(n) for n in (2, 3, 16, 16)] == [2, 3, 3, 3]
    assert len(caplog.records) == 1
    assert "num_parallel_workers 16" in caplog.text


def test_memory_is_used_again_only_when_nobody_holds_any_part_of_it():
    pool = loader.BufferPool((2, 3), keep=2)
    first = pool.take()
    place, row = first.ctypes.data, first[1]
    del first
    second = pool.take()
    assert second.ctypes.data != place
    del row
    assert pool.take().ctypes.data == place
    held = [pool.take() for _ in range(4)]
    assert len({array.ctypes.data for array in (*held, second)}) == 5


def test_a_batch_is_the_consumers_to_keep(folder):
    train = create_dataset(make_config(folder), "train")
    kept = list(train.epoch(1))
    same([tuple(map(np.copy, batch)) for batch in kept], collect(train, 1))
