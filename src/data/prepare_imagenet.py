"""Make ImageNet-1k's train/ and val/ from the three archives of ILSVRC2012 as image-net.org hands them out.

python -m src.data.prepare_imagenet --archives DIR --out data/imagenet

DIR holds ILSVRC2012_img_train.tar (a tar file a class), ILSVRC2012_img_val.tar (50,000 images in one heap) and
ILSVRC2012_devkit_t12.tar.gz, which says what each validation image shows. After an interruption of any kind the same
command goes on: a class's folder stands under train.partial/ only when it is whole; train/ and val/ appear at the end.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, NamedTuple, Optional, Union

from tqdm import tqdm

from src.console import bar_size
from src.errors import Parser, UserError, run
from src.files import claim, is_regular, read_json, write_text

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
MD5 = {  # as image-net.org publishes them
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000

_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_CHUNK = 1 << 22  # bytes read at once
_BLOCK = 4096  # bytes that a file's end may waste on disk
_DEVKIT_LIMIT = 1 << 27  # bytes; the files that are read from the devkit have 1.2 MB and 0.2 MB


class Synset(NamedTuple):
    """A class: WordNet's id, its words, and how many training images the development kit promises."""

    wnid: str
    words: str
    images: int


class Devkit(NamedTuple):
    """What the development kit says: the classes by ILSVRC2012_ID, and that ID of each validation image in order."""

    synsets: dict[int, Synset]
    truth: list[int]


def main(argv: Optional[list[str]] = None) -> None:
    """Check the archives, unpack them, check the counts."""
    parser = Parser(description="Make train/ and val/ from ILSVRC2012's archives.", allow_abbrev=False)
    parser.add_argument("--archives", required=True, metavar="DIR", help="folder with the three archives")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets train/, val/ and names.csv")
    parser.add_argument(
        "--skip_md5", action="store_true", help="leave out the MD5 sums: they read all 145 GB once more"
    )
    parser.add_argument(
        "--any_size",
        action="store_true",
        help="take archives of other data in the same form: neither MD5 sums nor the numbers 1,000, 1,281,167 and "
        "50,000 are asked for",
    )
    args = parser.parse_args(argv)
    prepare(Path(args.archives), Path(args.out), md5=not (args.skip_md5 or args.any_size), any_size=args.any_size)


def prepare(archives: Path, out: Path, md5: bool = True, any_size: bool = False) -> None:
    """Unpack what `out` still lacks of train/ and val/, and write names.csv, the classes' words.

    Args:
        archives: the folder with the three archives.
        out: where train/ and val/ go.
        md5: compare the archives with the published sums; once right, a sum is remembered in `out`.
        any_size: accept other numbers of classes and images than ImageNet-1k's.

    Raises:
        UserError: an archive is missing, damaged or another; the disk is too small; another process works in `out`.
    """
    for name in (TRAIN, VAL, DEVKIT):
        if not is_regular(archives / name):
            raise UserError(f"--archives {archives}: has no file {name}; image-net.org hands it out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            if md5:
                check_md5(archives, out / ".md5.json")
            devkit = read_devkit(archives / DEVKIT)
            if not any_size:
                _expect(archives / DEVKIT, len(devkit.synsets), CLASSES, "classes")
                _expect(archives / DEVKIT, len(devkit.truth), VAL_IMAGES, "labels of validation images")
            write_names(out / "names.csv", devkit)
            unpack_train(archives / TRAIN, out, devkit, trusted=md5, any_size=any_size)
            unpack_val(archives / VAL, out, devkit)
            for name in (".md5.json", ".lock"):
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.filename or out}: {error.strerror or error}") from error


def write_names(path: Path, devkit: Devkit) -> None:
    """Write the classes' words as a table of two columns, class and name, for reports to show."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [("class", "name"), *sorted((synset.wnid, synset.words) for synset in devkit.synsets.values())]
    )
    write_text(path, table.getvalue())


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold `out` against a second process that unpacks into it."""
    try:
        lock = claim(out / ".lock")
    except BlockingIOError:
        raise UserError(f"--out {out}: another process is unpacking into it") from None
    except OSError as error:
        raise UserError(f"{out / '.lock'}: cannot be written ({error.strerror})") from error
    with lock or nullcontext():  # a file system without locks
        yield


def _expect(path: Path, found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise UserError(
            f"{path}: holds {found:,} {what}, not {wanted:,}: not the whole of ImageNet-1k "
            "(--any_size takes other data in the same form)"
        )


def check_md5(archives: Path, memory: Path) -> None:
    """Compare the archives with the published MD5 sums.

    Those found right are remembered in the file `memory`, with size and time, and not read again.

    Raises:
        UserError: an archive differs.
    """
    known: dict[str, list] = {}
    with suppress(UserError):
        known = read_json(memory, 1 << 16)
    for name in (DEVKIT, VAL, TRAIN):
        path = archives / name
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        if isinstance(known, dict) and known.get(name) == stamp:
            continue
        digest = hashlib.md5(usedforsecurity=False)
        bar = tqdm(total=stamp[0], desc=f"MD5 of {name}", unit="B", unit_scale=True, disable=None, **bar_size())
        with path.open("rb") as file, bar:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != MD5[name]:
            raise UserError(
                f"{path}: its MD5 sum is {digest.hexdigest()}, the published one {MD5[name]}: "
                "it is damaged or another file; fetch it again"
            )
        known = {**known, name: stamp} if isinstance(known, dict) else {name: stamp}
        write_text(memory, json.dumps(known))


def read_devkit(path: Path) -> Devkit:
    """The classes and the validation labels, from data/meta.mat and data/ILSVRC2012_validation_ground_truth.txt.

    meta.mat is a MATLAB 5 file with one array `synsets`; of its entries those without children are the classes.

    Raises:
        UserError: the archive is damaged or lacks what is needed.
    """
    import scipy.io  # comes with MindSpore

    found = {}
    try:
        with tarfile.open(path, "r:gz") as kit:
            for member in kit:
                for name in (_META, _TRUTH):
                    if member.isreg() and ("/" + member.name).endswith("/" + name) and member.size < _DEVKIT_LIMIT:
                        found[name] = _opened(kit, member).read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error
    for name in (_META, _TRUTH):
        if name not in found:
            raise UserError(f"{path}: holds no {name}; it must be ILSVRC2012's development kit for tasks 1 and 2")
    try:
        entries = scipy.io.loadmat(io.BytesIO(found[_META]), squeeze_me=True)["synsets"]
        synsets = {
            int(entry["ILSVRC2012_ID"]): Synset(
                str(entry["WNID"]), " ".join(str(entry["words"]).split()), int(entry["num_train_images"])
            )
            for entry in entries.reshape(-1)
            if int(entry["num_children"]) == 0
        }
        truth = [int(line) for line in found[_TRUTH].split()]
    except Exception as error:  # SciPy's reader raises whatever the damage leads it to
        raise UserError(f"{path}: {_META} or {_TRUTH} cannot be read ({type(error).__name__}: {error})") from error
    names = [synset.wnid for synset in synsets.values()]
    odd = [name for name in names if not re.fullmatch(r"n\d{8}", name)]
    if odd or not names or len(set(names)) < len(names):
        raise UserError(f"{path}: {_META}: {odd[0]!r} is no synset" if odd else f"{path}: {_META}: its classes repeat")
    for number, label in enumerate(truth, 1):
        if label not in synsets:
            raise UserError(f"{path}: {_TRUTH}: line {number}: {label} is no class of {_META}")
    return Devkit(synsets, truth)


def unpack_train(path: Path, out: Path, devkit: Devkit, trusted: bool = False, any_size: bool = False) -> None:
    """Unpack the training images to `out`/train, unless it is there: the folder of each class at once, one by one.

    Args:
        path: the archive, which holds a tar file a class.
        out: where train/ goes.
        devkit: says which classes there are, and of how many images each.
        trusted: the archive's MD5 sum was right: it is believed where the development kit differs.
        any_size: accept another number of images than ImageNet-1k's.

    Raises:
        UserError: the archive is not as it should be, or the disk is too small.
    """
    target, partial = out / "train", out / "train.partial"
    wanted = {synset.wnid: synset.images for synset in devkit.synsets.values()}
    if target.exists():
        _say_done(target, wanted)
        return
    partial.mkdir(exist_ok=True)
    counts = {name: _count(partial / name) for name in wanted if (partial / name).is_dir()}
    for name in [name for name in counts if counts[name] != wanted[name] and not trusted]:
        shutil.rmtree(partial / name)
        del counts[name]
    with _open(path) as archive:
        members = _members(archive, path, r"(n\d{8})\.tar")
        missing = sorted(wanted.keys() - members.keys())
        surplus = sorted(members.keys() - wanted.keys())
        if missing or surplus:
            what = f"lacks {missing[0]}.tar" if missing else f"holds {surplus[0]}.tar, which the devkit does not know"
            raise UserError(f"{path}: {what} ({len(missing)} missing, {len(surplus)} unknown); fetch it again")
        left = {name: member for name, member in members.items() if name not in counts}
        _check_space(out, sum(m.size for m in left.values()), sum(wanted[name] for name in left))
        with tqdm(
            total=sum(wanted.values()),
            initial=sum(counts.values()),
            desc="train",
            unit="img",
            disable=None,
            **bar_size(),
        ) as bar:
            for name, member in left.items():
                source = f"{path}: {name}.tar"
                with _open(source, _opened(archive, member)) as images:
                    counts[name] = _unpack(images, source, partial / name, rf"({name}_\d+\.JPEG)", bar)
                if counts[name] != wanted[name] and not trusted:
                    shutil.rmtree(partial / name)
                    _fail_count(source, counts[name], wanted[name])
    total = sum(counts.values())
    if not any_size:
        _expect(path, total, TRAIN_IMAGES, "images")
    partial.rename(target)
    print(f"{target}: {total:,} images in {len(counts):,} classes")


def unpack_val(path: Path, out: Path, devkit: Devkit) -> None:
    """Unpack the validation images to `out`/val, unless it is there, each to the folder of its class.

    Raises:
        UserError: the archive is not as it should be, or the disk is too small.
    """
    target, partial = out / "val", out / "val.partial"
    folders = [devkit.synsets[label].wnid for label in devkit.truth]
    if target.exists():
        _say_done(target, Counter(folders))
        return
    shutil.rmtree(partial, ignore_errors=True)  # a matter of a minute: begun anew
    with _open(path) as archive:
        members = _members(archive, path, r"ILSVRC2012_val_(\d{8})\.JPEG")
        if sorted(map(int, members)) != list(range(1, len(folders) + 1)):
            _fail_count(str(path), len(members), len(folders))
        _check_space(out, sum(member.size for member in members.values()), len(members))
        for folder in {synset.wnid for synset in devkit.synsets.values()}:
            (partial / folder).mkdir(parents=True)
        for number, member in tqdm(members.items(), desc="val", unit="img", disable=None, **bar_size()):
            _write(archive, member, partial / folders[int(number) - 1] / f"ILSVRC2012_val_{number}.JPEG", str(path))
    os.sync()
    partial.rename(target)
    print(f"{target}: {len(members):,} images in {len(devkit.synsets):,} classes")


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _say_done(target: Path, wanted: dict[str, int]) -> None:
    found = {entry.name: _count(entry) for entry in target.iterdir() if entry.is_dir()}
    differing = [name for name in sorted(wanted) if found.get(name, 0) != wanted[name]]
    if differing:
        name = differing[0]
        raise UserError(
            f"{target}: is there, but {target / name} holds {found.get(name, 0)} images, not {wanted[name]} "
            f"({len(differing)} classes differ); move it away and it is made again"
        )
    print(f"{target}: is there already, {sum(found.values()):,} images in {len(found):,} classes")


def _fail_count(source: str, found: int, wanted: int) -> None:
    raise UserError(f"{source}: holds {found:,} images, the development kit says {wanted:,}; fetch it again")


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """A regular member's content."""
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.TarError(f"{member.name} is no file")
    return file


def _open(source: Union[str, Path], file: Optional[IO[bytes]] = None) -> tarfile.TarFile:
    """Open a plain tar file, by its path or as a part of another."""
    try:
        return tarfile.open(fileobj=file, mode="r:") if file else tarfile.open(source, "r:")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{source}: is no tar file ({error}); fetch it again") from error


def _members(archive: tarfile.TarFile, source: object, pattern: str) -> dict[str, tarfile.TarInfo]:
    """The archive's members by the part of their names that `pattern` catches; all must be plain files named like that.

    So nothing that an archive says can lead out of the folder: neither `..` nor a link nor a device.
    """
    members: dict[str, tarfile.TarInfo] = {}
    try:
        for member in archive:
            if member.isdir() and member.name in ("", "."):
                continue
            name = re.fullmatch(pattern, member.name[2:] if member.name.startswith("./") else member.name)
            if not name or not member.isreg():
                raise UserError(
                    f"{source}: holds {member.name!r}, which does not belong there; not the original archive"
                )
            if name[1] in members:
                raise UserError(f"{source}: holds {member.name!r} twice; not the original archive")
            members[name[1]] = member
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{source}: is damaged ({error}); fetch it again") from error
    return members


def _unpack(archive: tarfile.TarFile, source: str, folder: Path, pattern: str, bar: tqdm) -> int:
    """Unpack all members to `folder`, which appears when the last is on the disk; returns their number."""
    aside = folder.with_name("." + folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    members = _members(archive, source, pattern)
    for name, member in members.items():
        _write(archive, member, aside / name, source)
        bar.update()
    os.sync()  # a folder's name must not reach the disk before its files
    aside.rename(folder)
    return len(members)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, source: str) -> None:
    """Write one member's bytes to a file."""
    file = _opened(archive, member)
    left = member.size
    with path.open("xb") as out, suppress(tarfile.TarError):  # where the archive is cut short
        while chunk := file.read(min(left, _CHUNK)):
            out.write(chunk)
            left -= len(chunk)
    if left:
        raise UserError(f"{source}: ends within {member.name}; fetch it again")


def _check_space(out: Path, size: int, files: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    disk = os.statvfs(out)
    free, wanted = disk.f_bavail * disk.f_frsize, size + files * _BLOCK
    if free < wanted:
        raise UserError(f"--out {out}: {wanted / 1e9:,.1f} GB are needed, but {free / 1e9:,.1f} GB are free")
    if disk.f_files and disk.f_favail < files:
        raise UserError(f"--out {out}: {files:,} files are to come, but the disk takes only {disk.f_favail:,} more")


if __name__ == "__main__":
    run(main)
