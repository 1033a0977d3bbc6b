"""How batches reach the step: in which pieces the host hears of them, and what MindData makes of the stream."""

import logging
import shutil
import time

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.args import Config
from src.data import create_dataset
from src.errors import TrainingStopped, UserError
from src.trainers.feed import PREFETCHED, Feed, Stream, as_dataset
from src.trainers.health import Health


class Step(nn.Cell):
    """Counts its runs, `runs` a call, and gives the mean of the images for a loss."""

    def __init__(self, runs: int = 1) -> None:
        super().__init__()
        self.health, self.runs = Health(), runs

    def construct(self, images: Tensor, targets: Tensor) -> Tensor:
        for _ in range(self.runs):
            self.health.note_batch(images.mean())
        return images.mean()


@pytest.fixture
def config(digits) -> Config:
    """Ten batches of eight an epoch."""
    plain = {"auto_augment": "", "mix_up": 0, "cutmix": 0, "num_parallel_workers": 1}
    run = {"batch_size": 8, "epochs": 3, "device_target": "CPU", "graph_mode": 1}
    return Config(data_url=str(digits), num_classes=10, image_size=32, **plain, **run)


@pytest.mark.parametrize(
    ("keys", "first", "ends"),
    [
        ({}, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"sink_size": 4}, 0, [4, 8, 10]),
        ({"sink_size": 4}, 3, [7, 10]),
        ({"sink_size": 1000}, 0, [10]),
        ({"sink_size": 4, "save_steps": 3}, 0, [3, 6, 9, 10]),
        ({"sink_size": 1000, "save_steps": 7}, 0, [7, 10]),
        ({"accumulation_step": 2}, 0, [2, 4, 6, 8, 10]),
        ({"accumulation_step": 2, "sink_size": 3, "save_steps": 3}, 0, [4, 6, 10]),
    ],
)
def test_the_host_hears_of_pieces_that_end_with_an_update_and_where_a_checkpoint_is_due(config, keys, first, ends):
    config = config.model_copy(update=keys)
    step = Step()
    feed = Feed(step, create_dataset(config, "train"), config)
    assert [done for done, _ in feed.epoch(1, first)] == ends
    assert int(step.health.runs.asnumpy()) == 10 - first


@pytest.mark.parametrize("sink_size", [0, 4])
def test_a_step_that_does_not_run_once_a_batch_stops_training_after_the_first_piece(config, sink_size):
    config = config.model_copy(update={"sink_size": sink_size})
    feed = Feed(Step(runs=2), create_dataset(config, "train"), config)
    with pytest.raises(TrainingStopped, match=r"the step ran (2|8) times for (1|4) batches: .* set sink_size to 0"):
        list(feed.epoch(1))


@pytest.mark.parametrize(
    ("batches", "seconds", "ends"), [(4, 1e9, [4, 8, 10]), (1000, 0, range(1, 11)), (50, 1e9, [10])]
)
def test_within_a_long_piece_the_launcher_gets_signs_of_life(config, monkeypatch, batches, seconds, ends):
    """A piece may take longer than the launcher waits for a rank that hangs."""
    monkeypatch.setattr("src.trainers.feed.LOOK_BATCHES", batches)
    monkeypatch.setattr("src.trainers.feed.LOOK_SECONDS", seconds)
    step, signs = Step(), []
    monkeypatch.setattr("src.trainers.feed.beat", lambda _: signs.append(int(step.health.runs.asnumpy())))
    config = config.model_copy(update={"sink_size": 1000})
    assert [done for done, _ in Feed(step, create_dataset(config, "train"), config).epoch(1)] == [10]
    assert signs == list(ends)


def test_within_a_long_piece_a_step_that_does_not_run_once_a_batch_is_noticed(config, monkeypatch):
    monkeypatch.setattr("src.trainers.feed.LOOK_BATCHES", 4)
    config = config.model_copy(update={"sink_size": 1000})
    feed = Feed(Step(runs=2), create_dataset(config, "train"), config)
    with pytest.raises(TrainingStopped, match="the step ran 8 times for 4 batches"):
        list(feed.epoch(1))


def sums(batches) -> list[float]:
    return [float(np.asarray(images, np.float64).sum()) for images, _ in batches]


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The (epoch, batch) that were decoded, in order."""
    from src.data.imagenet import TrainBatches

    seen, epoch_of = [], TrainBatches.epoch

    def epoch(self, epoch, start_step=0):
        for place, batch in enumerate(epoch_of(self, epoch, start_step), start_step):
            seen.append((epoch, place))
            yield batch

    monkeypatch.setattr(TrainBatches, "epoch", epoch)
    return seen


def test_mind_data_gets_every_batch_once_in_order_and_decodes_nothing_to_learn_shapes(config, decoded):
    train = create_dataset(config, "train")
    dataset = as_dataset(Stream(train, 3, first_epoch=2, first_batch=4))
    assert dataset.output_shapes() == [[8, 3, 32, 32], [8, 10]]
    assert dataset.get_dataset_size() == 16
    assert decoded == []
    got = sums(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert decoded == [(2, place) for place in range(4, 10)] + [(3, place) for place in range(10)]
    assert got == sums(train.epoch(2, 4)) + sums(train.epoch(3))


def test_after_the_last_epoch_nothing_is_decoded(config, decoded):
    stream = Stream(create_dataset(config, "train"), 1)
    iterator = as_dataset(stream).create_tuple_iterator(num_epochs=2, output_numpy=True)
    first, second = sums(iterator), sums(iterator)
    assert len(decoded) == len(first) == len(second) == 10
    assert set(second) == {first[-1]}


def test_mind_data_runs_no_more_than_a_few_batches_ahead(config, decoded):
    stream = Stream(create_dataset(config.model_copy(update={"batch_size": 2}), "train"), 3)
    iterator = as_dataset(stream).create_tuple_iterator(num_epochs=1, output_numpy=True)
    next(iterator)
    time.sleep(0.5)  # more than enough to decode all of it
    iterator.stop()
    assert len(decoded) <= 2 * PREFETCHED + 3


def test_bad_images_are_counted_in_their_own_epoch_and_too_many_are_the_stream_s_error(config, tmp_path, caplog):
    shutil.copytree(config.data_url, tmp_path / "digits")
    for place, bad in enumerate(sorted((tmp_path / "digits/train").rglob("*.png"))[:1]):
        bad.write_bytes(b"no image" * (place + 1))
    caplog.set_level(logging.ERROR)
    stream = Stream(create_dataset(config.model_copy(update={"data_url": str(tmp_path / "digits")}), "train"), 3)
    rows = sums(as_dataset(stream).create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert len(rows) == 30  # the device is not left waiting
    assert isinstance(stream.error, UserError)
    assert str(stream.error).startswith("data_url: 1 of 80 images of the epoch cannot be decoded")


def test_an_error_of_the_stream_is_raised_where_the_host_next_looks(config, monkeypatch):
    config = config.model_copy(update={"sink_size": 2, "graph_mode": 0, "device_target": "Ascend"})
    step, train = Step(), create_dataset(config, "train")

    rows = []

    def sinking(step, stream):
        rows.append(as_dataset(stream).create_tuple_iterator(num_epochs=1))
        return lambda: step(*next(rows[0]))

    monkeypatch.setattr("src.trainers.feed.sinking", sinking)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    feed = Feed(step, train, config)
    places = []
    with pytest.raises(UserError, match="mend"):
        for done, _ in feed.epoch(1):
            places.append(done)
            feed.stream.error = UserError("data_url: mend them")
    rows[0].stop()
    assert places == [2]
