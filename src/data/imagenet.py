"""ImageNet-style data as batches: `train/` and `val/`, each with a folder a class, or packed as MindRecord."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Optional, overload

import numpy as np

from src.args import check_pairs
from src.data.augment.mixup import Mix, Mixup, partners
from src.data.augment.transforms import UndecodableImage, create_transform
from src.data.listing import Samples, is_folder, list_classes, list_folder
from src.data.loader import BufferPool, Prefetcher, clamp_workers
from src.data.names import classes_beside
from src.data.packed import PackedSamples, is_packed
from src.errors import UserError, printable

if TYPE_CHECKING:  # the machine that serves reads data without pydantic
    from src.args import Config

_log = logging.getLogger(__name__)

MOST_BAD = 0.01  # share of an epoch's images that may be undecodable

# What a stream of random numbers is for. A stream is keyed by (purpose, seed, epoch, index, or update and group).
_ORDER, _SAMPLE, _MIX, _UNIFORM = range(4)


def _generator(purpose: int, seed: int, epoch: int, *place: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((purpose, seed, epoch, *place))))


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Everything random about one sample of the data set in one epoch, counted from 1."""
    return _generator(_SAMPLE, seed, epoch, index)


@overload
def create_dataset(
    config: "Config", split: Literal["train"], rank: int = 0, world: int = 1, uniform_columns: int = 0
) -> "TrainBatches": ...
@overload
def create_dataset(
    config: "Config", split: Literal["val"], rank: int = 0, world: int = 1, uniform_columns: int = 0
) -> "EvalBatches": ...
def create_dataset(config: "Config", split: str, rank: int = 0, world: int = 1, uniform_columns: int = 0) -> "Batches":
    """The batches of one split on one rank.

    Args:
        config: the configuration; `src.args.Config` says which keys there are.
        split: train or val.
        rank: which of the `world` processes this is.
        world: number of processes that train together.
        uniform_columns: train: a third array of uniform numbers, float32 (B, uniform_columns), comes with each batch.

    Returns:
        `TrainBatches` or `EvalBatches`.

    Raises:
        UserError: the folder is missing, empty or flat, its classes do not fit, or the batch does not.
    """
    root = Path(config.data_url)
    check_layout(root, (split,))
    if split == "train":
        samples = _open_split(root, "train", None, config.listing_cache)
        _check_classes(samples.classes, samples.folder, config.num_classes)
        return TrainBatches(samples, config, rank, world, uniform_columns)
    classes, source = _classes_of(root, "train"), "train"
    if classes is None:
        classes, source = classes_beside(config.pretrained), "weights"
    samples = _open_split(root, "val", classes, config.listing_cache)
    _check_classes(samples.classes, samples.folder, config.num_classes)
    return EvalBatches(samples, config, rank, world, "val" if classes is None else source)


def check_layout(root: Path, splits: Sequence[str] = ("train", "val")) -> None:
    """Refuse a data folder that has none of these splits, and say what it has instead.

    Raises:
        UserError: it is missing, or laid out otherwise.
    """
    if not is_folder(root):
        raise UserError(f"data_url: {root}: no such folder; it must hold train/ and val/, each with a folder a class")
    if any(is_packed(root, split) or os.path.lexists(root / split) for split in splits):
        return
    missing = " nor ".join(f"{split}/" for split in splits)
    fact = f"data_url: {root}: has no {missing}" if len(splits) == 1 else f"data_url: {root}: has neither {missing}"
    try:
        folders = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"data_url: {root}: cannot be read ({error.strerror})") from error
    for split in splits:
        for name in folders:
            if name.lower() in _OTHER_NAMES[split]:
                raise UserError(f"{fact}, but {name}/: rename that to {split}/")
    if root.name in ("train", "val") and folders:
        raise UserError(f"{fact}; data_url is the folder above it: {root.resolve().parent}")
    if splits == ("val",) and is_folder(root / "train"):
        raise UserError(f"{fact}: move some images of each class there; docs/own_photos.md has a command")
    if folders:
        shown = ", ".join(f"{printable(name, 60)}/" for name in folders[:3]) + (", ..." if len(folders) > 3 else "")
        raise UserError(
            f"{fact}, but {shown}: the folders of the classes go into {root}/train/, and some of each class's images "
            f"into {root}/val/; docs/own_photos.md has a command"
        )
    raise UserError(f"{fact}; it must hold train/ and val/, each with a folder a class")


# What other people and programs call a split, in lower case.
_OTHER_NAMES = {
    "train": ("train", "training", "train_images", "ilsvrc2012_img_train"),
    "val": ("val", "valid", "validation", "test", "testing", "val_images", "ilsvrc2012_img_val"),
}


def open_train(config: "Config") -> Samples:
    """The training images as they lie there.

    Raises:
        UserError: there are none.
    """
    return _open_split(Path(config.data_url), "train", None, config.listing_cache)


def _open_split(root: Path, split: str, classes: Optional[list[str]], cache: str) -> Samples:
    if is_packed(root, split):
        return PackedSamples(root, split, classes)
    return list_folder(str(root / split), classes, cache, every_class=split == "train")


def _classes_of(root: Path, split: str) -> Optional[list[str]]:
    """A split's class names; None where there is no such split."""
    if is_packed(root, split):
        return PackedSamples(root, split).classes
    return list_classes(str(root / split)) if is_folder(root / split) else None


def class_names(config: "Config") -> Optional[list[str]]:
    """The names of a trained network's outputs: from beside its weights, else as `classes_in_data`.

    Raises:
        UserError: as `classes_in_data`; or the names beside the weights are damaged, or another network's.
    """
    beside = classes_beside(config.pretrained, config.num_classes or None)
    return classes_in_data(config) if beside is None else beside


def classes_in_data(config: "Config") -> Optional[list[str]]:
    """The sorted class names, from data_url's train/, else its val/; None where there is neither.

    Raises:
        UserError: the folder is empty or flat, or num_classes differs from it.
    """
    for split in ("train", "val"):
        classes = _classes_of(Path(config.data_url), split)
        if classes is not None:
            _check_classes(classes, str(Path(config.data_url, split)), config.num_classes)
            return classes
    return None


def _check_classes(classes: list[str], folder: str, num_classes: int) -> None:
    if num_classes and len(classes) != num_classes:  # 0: as many as there are
        raise UserError(
            f"num_classes: is {num_classes}, but {folder} has {len(classes)} class folders; "
            f"set num_classes to {len(classes)} or mend the folder"
        )


class Batches:
    """The batches of one split on one rank.

    Attributes:
        classes: sorted names of the class folders; labels count in them.
        classes_from: whose names they are: the split train or val, or the weights'.
        size: number of images in the split, over all ranks.
        steps: batches an epoch on this rank.
    """

    def __init__(self, samples: Samples, config: "Config", rank: int, world: int, classes_from: str) -> None:
        self.samples, self.config, self.rank, self.world = samples, config, rank, world
        self.classes, self.classes_from, self.size = samples.classes, classes_from, len(samples)
        self.steps = 0

    def _run(self, job, first: int = 0) -> Prefetcher:
        batch = self.config.batch_size
        workers = clamp_workers(self.config.num_parallel_workers)
        return Prefetcher(job, range(first, self.steps), workers, ahead=2 + -(-workers // batch))


class TrainBatches(Batches):
    """Shuffled, augmented, mixed batches of a fixed size.

    Attributes:
        updates: optimizer updates an epoch, each of accumulation_step batches.
        bad: how many files of the epoch so far could not be decoded.
        bad_paths: their paths.
        update: images of one update, over all ranks and accumulated batches.
        class_weights: float32 (num_classes,), inverse to how many images a class has, 1 on average over the images
            (King and Zeng, Political Analysis 9, 2001); None: all count alike.
    """

    def __init__(self, samples: Samples, config: "Config", rank: int, world: int, uniform_columns: int = 0) -> None:
        super().__init__(samples, config, rank, world, "train")
        self.uniform_columns = uniform_columns
        self.bad = 0
        self.bad_paths: list[str] = []
        self.update = update = config.batch_size * world * config.accumulation_step
        check_pairs(config)
        if len(samples) < update:
            raise UserError(
                f"batch_size: {samples.folder} has {len(samples)} images, fewer than one update's {update} "
                f"({config.batch_size} x {world} devices x {config.accumulation_step} accumulated); lower batch_size "
                "or accumulation_step, or add images"
            )
        self.class_weights: Optional[np.ndarray] = None
        if config.class_weights == "balanced":
            images = np.bincount(samples.labels, minlength=len(samples.classes))
            self.class_weights = (len(samples) / (len(images) * images)).astype(np.float32)
        self.updates = len(samples) // update
        self.steps = self.updates * config.accumulation_step

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """One pass over the images, from micro-batch `start_step` on.

        Args:
            epoch: counted from 1.
            start_step: micro-batches that are done already.

        Yields:
            images, float32 (B, 3, H, W), normalised and contiguous; targets, float32 (B, num_classes), each row
            summing to 1, or with class_weights to the weight of its image; with uniform_columns also uniform numbers in
            [0, 1), float32 (B, uniform_columns). A batch's arrays are the consumer's to keep.

        Raises:
            UserError: more than 1 % of the epoch's images cannot be decoded.
        """
        self.bad, self.bad_paths = 0, []
        batches = self._run(_TrainJob(self, epoch), start_step)
        try:
            for arrays, bad in batches:
                for path, reason in bad:
                    self._count_bad(path, reason)
                yield arrays
        finally:
            batches.close()

    def positions(self, step: int) -> np.ndarray:
        """Which of its update's images micro-batch `step` has on this rank: int64 (B,), those to mix mirrored."""
        config, batch = self.config, self.config.batch_size
        first = (step % config.accumulation_step * self.world + self.rank) * batch
        if not config.mixes:
            return np.arange(first, first + batch)
        pairs = partners(self.update, config.mixup_group)[first // 2 : (first + batch) // 2]
        return np.concatenate([pairs[:, 0], pairs[::-1, 1]])

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Labels (B,) as one-hot rows, smoothed, and each class by its weight: float32 (B, num_classes).

        The smoothed share is spread over all classes, the right one too (Szegedy et al. 2016,
        https://arxiv.org/abs/1512.00567, section 7). Cross entropy is linear in its targets, and so is mixing: weights
        in the targets are weights in the loss.
        """
        smoothing, classes = self.config.label_smoothing, self.config.num_classes
        targets = np.full((len(labels), classes), smoothing / classes, np.float32)
        targets[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
        return targets if self.class_weights is None else targets * self.class_weights

    def _count_bad(self, path: str, reason: str) -> None:
        _log.warning("%s cannot be decoded (%s): the next image takes its place", path, reason)
        self.bad += 1
        self.bad_paths.append(path)
        images = self.steps * self.config.batch_size
        if self.bad > MOST_BAD * images:
            raise UserError(
                f"data_url: {self.bad} of {images} images of the epoch cannot be decoded, more than "
                f"{MOST_BAD:.0%}; the last is {path}: mend or remove them"
            )


class EvalBatches(Batches):
    """Every image once, in the folder's order; rank r has images r, r + world, ..."""

    def __init__(self, samples: Samples, config: "Config", rank: int, world: int, classes_from: str) -> None:
        super().__init__(samples, config, rank, world, classes_from)
        self.steps = -(-len(range(rank, len(samples), world)) // config.batch_size)

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass over this rank's share.

        Yields:
            images, float32 (B, 3, H, W), normalised and contiguous; labels, int32 (B,). In the last batch, places
            that no image is left for hold zeros and the label -1.

        Raises:
            UserError: an image cannot be decoded.
        """
        batches = self._run(_EvalJob(self))
        try:
            yield from batches
        finally:
            batches.close()


class _TrainBatch(NamedTuple):
    update: int
    positions: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    bad: list


class _TrainJob:
    """How one epoch's training batches come about; see `src.data.loader.Job`."""

    def __init__(self, batches: TrainBatches, epoch: int) -> None:
        config = batches.config
        self.batches, self.config, self.epoch = batches, config, epoch
        self.samples, self.size = batches.samples, config.image_size
        self.order = _generator(_ORDER, config.seed, epoch, 0).permutation(len(batches.samples)).astype(np.int32)
        self.transform = create_transform(config, is_training=True)
        self.pool = BufferPool((config.batch_size, 3, self.size, self.size), keep=6)
        self.mixup = None
        if config.mixes and (config.mixup_off_epoch == 0 or epoch <= config.mixup_off_epoch):
            self.mixup = Mixup(config.mix_up, config.cutmix, config.mixup_prob, config.switch_prob, config.mixup_mode)

    def start(self, step: int) -> tuple[_TrainBatch, int]:
        batch = self.config.batch_size
        update = step // self.config.accumulation_step
        positions = self.batches.positions(step)
        return _TrainBatch(update, positions, self.pool.take(), np.empty(batch, np.int64), []), batch

    def fill(self, batch: _TrainBatch, place: int) -> None:
        position = batch.update * self.batches.update + int(batch.positions[place])
        for attempt in range(len(self.order)):
            index = int(self.order[(position + attempt) % len(self.order)])
            try:
                encoded = self.samples.read(index)
                self.transform(encoded, batch.images[place], sample_generator(self.config.seed, self.epoch, index))
            except (OSError, UndecodableImage) as error:
                batch.bad.append((place, attempt, self.samples.where(index), str(error)))
                if attempt >= MOST_BAD * len(self.order):
                    break
                continue
            batch.labels[place] = self.samples.labels[index]
            return
        raise UserError(
            f"data_url: {self.samples.where(index)} and those around it cannot be decoded: mend or remove them"
        )

    def finish(self, batch: _TrainBatch) -> tuple:
        targets = self.batches.targets(batch.labels)
        if self.mixup:
            self.mixup.apply(batch.images, targets, self.mix(batch))
        arrays: tuple[np.ndarray, ...] = (batch.images, targets)
        if self.batches.uniform_columns:
            rng = _generator(_UNIFORM, self.config.seed, self.epoch, batch.update)
            uniforms = rng.random((self.batches.update, self.batches.uniform_columns), np.float32)
            arrays += (uniforms[batch.positions],)
        return arrays, [(path, reason) for _, _, path, reason in sorted(batch.bad)]

    def mix(self, batch: _TrainBatch) -> Mix:
        """How the batch's images are mixed, from the draws of the groups that they belong to."""
        assert self.mixup is not None
        group, update = self.config.mixup_group, self.batches.update
        mix = Mix.unmixed(update)
        for number in np.unique(batch.positions // group).tolist():
            first, end = number * group, min((number + 1) * group, update)
            rng = _generator(_MIX, self.config.seed, self.epoch, batch.update, number)
            for whole, drawn in zip(mix, self.mixup.draw(end - first, (self.size, self.size), rng)):
                whole[first:end] = drawn
        return mix.of(batch.positions)


class _EvalJob:
    """How the evaluation batches come about; see `src.data.loader.Job`."""

    def __init__(self, batches: EvalBatches) -> None:
        self.samples, self.batch, self.size = batches.samples, batches.config.batch_size, batches.config.image_size
        self.indices = range(batches.rank, len(batches.samples), batches.world)
        self.transform = create_transform(batches.config, is_training=False)

    def start(self, step: int) -> tuple[tuple, int]:
        indices = self.indices[step * self.batch : (step + 1) * self.batch]
        images = np.empty((self.batch, 3, self.size, self.size), np.float32)
        images[len(indices) :] = 0.0
        labels = np.full(self.batch, -1, np.int32)
        labels[: len(indices)] = self.samples.labels[indices.start : indices.stop : indices.step]
        return (indices, images, labels), len(indices)

    def fill(self, batch: tuple, place: int) -> None:
        indices, images, _ = batch
        try:
            self.transform(self.samples.read(indices[place]), images[place])
        except (OSError, UndecodableImage) as error:
            path = self.samples.where(indices[place])
            raise UserError(f"data_url: {path}: cannot be decoded ({error}); mend or remove it") from error

    def finish(self, batch: tuple) -> tuple[np.ndarray, np.ndarray]:
        return batch[1:]
