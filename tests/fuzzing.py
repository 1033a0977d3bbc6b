"""Damaged and invented files for every reader, and what a reader may make of them: values, or one line.

`tests/test_fuzz_readers.py` tries a few of each in every run of the tests, `benchmarks/fuzz.py` as many as one has time
for. Formats with checksums are also damaged beneath them: what a zip archive holds is changed and packed again.
"""

import hashlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import numpy as np

from src.errors import MESSAGE_LIMIT, UserError

KINDS = ("flip", "set", "number", "text", "cut", "drop", "repeat", "insert", "splice")
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
TEXTS = (
    b"", b"\0", b"\n", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", "\u2028".encode(), b"nan", b"inf", b"-1", b"1e999",
    b"9" * 5000, b"[" * 2000, b"{" * 2000, b"*a", b"&a ", b"!!int ", b"!!python/name:os.system ", b"<<: ", b": ",
    b"- ", b"? ", b"null", b"~", b"true", b"1:30", b"2020-13-45", b"0x", b"%s", b"..", b"/", b"A" * 100_000,
    b"\\ud800", b'"', b"'", b"#", b"module.", b"conv1.0.weight", b"cposix\nsystem\n", b"c__builtin__\neval\n",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"R.", b"b.", b"\x93NUMPY", b"PK\3\4", b"PK\1\2", b"PK\5\6", b"|O",
    b"<U99999999",
)  # fmt: skip

Mutation = tuple[str, float, int]


def mutated(content: bytes, mutations: Sequence[Mutation], other: bytes = b"") -> bytes:
    """A file's bytes after some damage; each mutation is a kind, a place (0 to 1) and a number that it uses."""
    data = bytearray(content)
    for kind, share, value in mutations:
        place = min(int(share * len(data)), max(0, len(data) - 1))
        length = 1 + value % 64
        if kind == "flip" and data:
            data[place] ^= 1 << value % 8
        elif kind == "set" and data:
            data[place] = value % 256
        elif kind == "number":
            width = (1, 2, 4, 8)[value % 4]
            number = NUMBERS[value // 4 % len(NUMBERS)] % (1 << 8 * width)
            data[place : place + width] = number.to_bytes(width, "little" if value // 64 % 2 else "big")
        elif kind == "text":
            text = TEXTS[value % len(TEXTS)]
            data[place : place + (len(text) if value // 64 % 2 else 0)] = text
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * (1 + value // 64 % 50)
        elif kind == "insert":
            data[place:place] = np.random.default_rng(value).bytes(length)
        elif kind == "splice":
            start = value % (len(other) + 1)
            data[place:] = other[start:]
    return bytes(data[: 4 << 20])


@dataclass(frozen=True)
class Target:
    """A reader: the name of its file, right files, the call that reads one, and the seal that a file has outside."""

    file: str
    seeds: list[bytes] = field(repr=False)
    read: Callable[[str], object] = field(repr=False)
    seal: Callable[[bytes], bytes] = field(default=bytes, repr=False)

    def damaged(self, mutations: Sequence[Mutation], seed: int) -> bytes:
        """A file made of a right one; beneath the checksums where the seed says so."""
        content = self.seeds[seed % len(self.seeds)]
        other = self.seeds[(seed // 7) % len(self.seeds)]
        if content[:2] == b"PK" and seed // 100 % 4:
            return repacked(content, mutations, other, seed // 1000)
        return mutated(content, mutations, other)

    def attempt(self, content: bytes, folder: Path, limit: float = 20.0) -> str:
        """Read `content` as a file; "" or the message.

        Raises:
            AssertionError: the message is not one printable line of bounded length, or reading took too long.
            Exception: whatever else the reader raises: a fault.
        """
        path = folder / self.file
        path.write_bytes(self.seal(content))
        start, message = time.thread_time(), ""
        try:
            self.read(str(path))
        except UserError as error:
            message = str(error)
            assert message.isprintable(), message
            assert len(message) <= MESSAGE_LIMIT
        spent = time.thread_time() - start
        assert spent < limit, f"{spent:.1f} s of processor time for {len(content)} bytes"
        return message


def repacked(content: bytes, mutations: Sequence[Mutation], other: bytes, choice: int) -> bytes:
    """A zip archive with one member damaged and every checksum right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    except zipfile.BadZipFile:
        return content
    file = io.BytesIO()
    weights = [3 if name.endswith(("data.pkl", ".npy")) else 1 for name, _ in members]
    places = [index for index, weight in enumerate(weights) for _ in range(weight)]
    chosen = places[choice % len(places)]
    with zipfile.ZipFile(file, "w") as archive:
        for index, (name, body) in enumerate(members):
            if index == chosen and choice // 100 % 10 == 9:
                continue
            archive.writestr(name, mutated(body, mutations, other) if index == chosen else body)
    return file.getvalue()


WEIGHTS = ("ckpt", "safetensors", "PyTorch")
OTHERS = ("description", "labels", "result", "run state", "image", "metrics", "class names", "words")
PLAIN = (
    "YAML", "flags", "auto_augment", "JSON", "text", "rank table", "hccn.conf", "listing cache", "packed table",
)  # fmt: skip
NAMES = (*PLAIN, *WEIGHTS, *OTHERS)


def targets(folder: Path, names: Sequence[str] = NAMES) -> dict[str, Target]:
    """Readers of files that a user may hand in, with right files written in `folder`."""
    found: dict[str, Target] = {}
    for group, make in ((PLAIN, plain_targets), (WEIGHTS, weight_targets), (OTHERS, other_targets)):
        if set(group) & set(names):  # those of weights import two frameworks
            found.update(make(folder))
    return {name: target for name, target in found.items() if name in names}


def plain_targets(folder: Path) -> dict[str, Target]:
    """The readers of configurations, tables and listings."""
    from src.args import parse_args
    from src.augment_spec import parse_spec
    from src.data.listing import Samples, list_folder
    from src.data.packed import PackedSamples, write_index
    from src.files import read_json, read_text
    from src.launcher.rank_table import make_rank_table, read_rank_table

    data = folder / "data"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        for number in range(3):
            (data / name / f"{number}.jpg").write_bytes(b"x" * number)
    cache = folder / "cache"
    list_folder(str(data), cache=str(cache))
    (listing,) = cache.iterdir()

    packed = folder / "packed"
    packed.mkdir()
    (packed / "val.mindrecord000").write_bytes(b"AAAABBBBCCCC")
    samples = Samples("val", ["a", "b"], np.int32([0, 0, 1]), b"123", np.int64([1, 2, 3]))
    checksums = np.uint32([zlib.crc32(image * 4) for image in (b"A", b"B", b"C")])
    write_index(packed, "val", samples, np.zeros(3, np.int32), np.int64([0, 4, 8]), np.int64([4, 4, 4]), checksums)
    index = (packed / "val.index.npz").read_bytes()
    with np.load(io.BytesIO(index)) as arrays:
        plain = io.BytesIO()
        np.savez(plain, **{name: arrays[name] for name in arrays if name not in ("sha256", "checksums")})

    def read_packed(_: str) -> None:
        own = PackedSamples(packed, "val")
        for place in range(len(own)):
            try:
                own.read(place)
            except OSError as error:
                raise UserError(f"{own.where(place)}: {error}") from error

    def read_listing(_: str) -> None:
        assert len(list_folder(str(data), cache=str(cache))) == 6, "a damaged listing was used"

    recipe = (Path(__file__).parent.parent / "src/configs/ddrnet23_imagenet.yaml").read_bytes()
    table = {
        "version": "1.0", "server_count": "2", "status": "completed",
        "server_list": [
            {"server_id": f"10.0.0.{server}", "host_ip": f"10.0.0.{server}", "device": [
                {"device_id": str(card), "device_ip": f"192.168.{server}.{card + 1}", "rank_id": str(2 * server + card)}
                for card in range(2)
            ]}
            for server in range(2)
        ],
    }  # fmt: skip
    yamls = [recipe, b"scale: [0.1, 1]\nbeta: [0.9, 0.99]\nwarmup_lr: &a 1e-6\nmin_lr: *a\n", b"{epochs: 3, set: 'x'}"]
    flags = [b"epochs\n3", b"scale\n[0.1, 1]", b"auto_augment\nrand-m9-mstd0.5-inc1", b"pretrained\na.ckpt", b"seed\n7"]
    specs = [b"rand-m9-n2-w0-p0.5-mstd0.5-mmax10-inc1", b"augmix-m3-w3-d2-b0-mstd1", b"originalr-mstd0.5"]

    def read_flag(path: str) -> None:
        name, _, value = Path(path).read_bytes().decode("utf-8", "surrogateescape").partition("\n")
        parse_args([f"--{name}", value])

    return {
        "YAML": Target("a.yaml", yamls, lambda path: parse_args(["--ddr_config", path], purpose="train")),
        "flags": Target("flag", flags, read_flag),
        "auto_augment": Target(
            "spec", specs, lambda path: parse_spec(Path(path).read_bytes().decode("utf-8", "surrogateescape"))
        ),
        "JSON": Target("a.json", [json.dumps(table).encode(), b"[1, 2]"], lambda path: read_json(path, 1 << 24)),
        "text": Target("a.txt", ["text ü".encode()], lambda path: read_text(path, 1 << 24)),
        "rank table": Target("table.json", [json.dumps(table).encode()], read_rank_table),
        "hccn.conf": Target(
            "hccn.conf", [b"address_0=192.168.1.1\nnetmask_0=255.255.255.0\naddress_1=192.168.1.2\n"],
            lambda path: make_rank_table(0, 2, path, "10.0.0.1"),
        ),
        "listing cache": Target(str(listing), [listing.read_bytes()], read_listing),
        "packed table": Target(str(packed / "val.index.npz"), [index, plain.getvalue()], read_packed),
    }  # fmt: skip


def other_targets(folder: Path) -> dict[str, Target]:
    """The readers of what the programs leave each other, and of images."""
    from PIL import Image

    from postprocess import make_report, read_labels
    from src.args import Config
    from src.curves import plot_curves, read_records
    from src.data.decode import decode
    from src.data.image_files import UndecodableImage
    from src.data.names import CLASSES, classes_beside
    from src.evaluation.names import with_words
    from src.serving.description import read_description, sha256
    from src.serving.results import result_names
    from src.trainers.checkpoint import MAGIC, read_saved

    (folder / "net.onnx").write_bytes(b"a network")
    description = {
        "num_classes": 2, "classes": ["a", "b"], "file": "net.onnx", "sha256": sha256(folder / "net.onnx"),
    }  # fmt: skip
    labels = {"a/1.jpg": 0, "b/2.png": 1}
    results = folder / "results"
    results.mkdir()
    logits = [np.float32(values).tobytes() for values in ([0.5, 0.25], [0, np.nan], [np.inf, 0])]

    def read_results(labels: dict[str, int]) -> None:
        report = make_report(labels, results, {"num_classes": 2, "classes": ["a", "b"]})
        assert report["top1"] <= 1 - len(report["missing"] + report["not_finite"]) / len(labels)

    def read_run(_: str) -> None:
        saved = read_saved(folder / "run.ckpt")
        assert saved.cursor.epoch > 0
        saved.differences(Config())

    weights = b"weights"
    (folder / "run.ckpt").write_bytes(weights)
    facts = {
        "next_epoch": 2, "next_done": 0, "seconds": 0.0, "best": 0.5, "config": {"epochs": 3}, "images_an_update": 4,
        "kernels": "", "weights_sha256": hashlib.sha256(weights).hexdigest(), "serial": 3,
    }  # fmt: skip
    state = io.BytesIO()
    np.savez(state, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), moment=np.zeros(4, np.float32))

    records = [{"epoch": epoch, "step": 5 * epoch, "lr": 0.1, "loss": 1.0, "top1": 0.5} for epoch in (1, 2)]
    metrics = "".join(json.dumps(record) + "\n" for record in records).encode()

    pixels = np.add.outer(np.arange(24), np.arange(32))[..., None] * np.array([1, 2, 3]) % 256
    image, images = Image.fromarray(pixels.astype(np.uint8)), []
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            image.convert(mode).save(file, form)
            images.append(file.getvalue())

    def read_image(path: str) -> None:
        try:
            assert decode(Path(path).read_bytes()).mode == "RGB"
        except UndecodableImage as error:
            raise UserError(str(error)) from error

    return {
        "description": Target(
            str(folder / "net.json"), [json.dumps(description).encode()],
            lambda _: read_description(folder / "net.onnx"),
        ),
        "labels": Target(
            "labels.json", [json.dumps(labels).encode()], lambda path: read_results(read_labels(path, 2))
        ),
        "result": Target(str(results / result_names(list(labels))[0]), logits, lambda _: read_results(labels)),
        "run state": Target(
            str(folder / "run.state"), [state.getvalue()], read_run,
            lambda body: MAGIC + hashlib.sha256(body).digest() + body,
        ),
        "image": Target("image", images, read_image),
        "metrics": Target("metrics.jsonl", [metrics], lambda path: plot_curves(read_records(Path(path))[0])),
        "class names": Target(CLASSES, [b'["a", "b"]'], lambda path: classes_beside(str(Path(path).parent / "a.ckpt"))),
        "words": Target(
            "names.csv", [b'a,"ant, emmet"\nb,bee\n'], lambda path: with_words(["a", "b"], str(Path(path).parent))
        ),
    }  # fmt: skip


def weight_targets(folder: Path) -> dict[str, Target]:
    """The readers of weights; those of PyTorch's files only where it is installed."""
    from mindspore.train.checkpoint_pb2 import Checkpoint

    from src.weights.convert import identify
    from src.weights.formats import read_weights, write_weights
    from src.weights.names import match_weights

    arrays = {
        "conv1.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "conv1.1.gamma": np.ones(2, np.float32),
        "linear.weight": np.ones((4, 2), np.float16), "linear.bias": np.zeros(4, np.float32),
    }  # fmt: skip
    shapes = {name: array.shape for name, array in arrays.items()}

    def read(path: str) -> None:
        found = read_weights(path)
        assert sum(array.nbytes for array in found.values()) < 64 << 20, "more than the file can hold"
        identify(found)
        match_weights(found, shapes, path)

    write_weights(str(folder / "a.ckpt"), arrays)
    checked = (folder / "a.ckpt").read_bytes()
    bare = Checkpoint.FromString(checked[:-17]).SerializeToString()
    write_weights(str(folder / "a.safetensors"), arrays)
    safe = (folder / "a.safetensors").read_bytes()
    readers = {"ckpt": Target("b.ckpt", [checked, bare], read), "safetensors": Target("b.safetensors", [safe], read)}
    try:
        import torch
    except ImportError:
        return readers
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    contents = [
        tensors,
        {
            "state_dict": {f"module.{name}": torch.nn.Parameter(value.float()) for name, value in tensors.items()},
            "epoch": 3,
        },
        {"model": tensors, "best": np.float64(0.5), "rng": np.random.get_state(), "seen": {1, 2}, "name": "x"},  # noqa: NPY002
        {"odd": torch.eye(3).to_sparse(), "meta": torch.empty(2, device="meta"), "int": torch.arange(3)},
    ]
    seeds = []
    for zipped in (True, False):
        for content in contents:
            file = io.BytesIO()
            try:
                torch.save(content, file, _use_new_zipfile_serialization=zipped)
            except Exception:  # the old format knows no meta tensors
                continue
            seeds.append(file.getvalue())
    return {**readers, "PyTorch": Target("b.pth", seeds, read)}


def drawn(count: int, generator: np.random.Generator) -> list[Mutation]:
    """Mutations at random, for those who have no hypothesis draw them."""
    return [
        (KINDS[generator.integers(len(KINDS))], float(generator.random()), int(generator.integers(1 << 62)))
        for _ in range(count)
    ]
