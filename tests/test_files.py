"""Files reach the disk whole or not at all."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from src.errors import UserError
from src.files import (
    atomic_write,
    claim,
    is_private,
    open_to_write,
    read_bytes,
    read_json,
    read_text,
    sweep,
    try_writing,
    write_text,
)
from tests.conftest import ROOT


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_no_file_to_write(path):
    with pytest.raises(UserError, match="is a folder; name a file"), atomic_write(path):
        pass


def test_the_owner_can_read_and_write_whatever_the_writer_chose(tmp_path):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o400)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) & 0o600 == 0o600


def test_a_full_disk_is_an_error_that_names_the_file_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    code = (
        "import sys; from src.errors import UserError; from src.files import write_text\n"
        "try: write_text(sys.argv[1], 'x' * 100000)\n"
        "except UserError as error: print(error)"
    )

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files_only
    )
    assert done.stdout.strip() == f"{path}: cannot be written (File too large)"
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_killed_writers_leave_is_swept_and_nothing_else(tmp_path):
    """Each is killed in the middle, by the name that it writes to at that moment."""
    code = (
        "import os, sys; from pathlib import Path; from src import files\n"
        "files.sync = lambda path: os._exit(0)\n"
        "files.write_text(Path(sys.argv[1], sys.argv[2]), 'x') if sys.argv[2] else files.try_writing(sys.argv[1])"
    )
    for name in ("", "metrics.jsonl", "mine.txt"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT, check=True)
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path, "curves", "metrics")
    assert [path.name.startswith(".mine.") for path in tmp_path.iterdir()] == [True]
    try_writing(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.x: cannot be written"):
        write_text(tmp_path / "file" / "x", "")


@pytest.mark.parametrize("name", ["missing", "folder", "pipe", "/dev/zero", "a\0b", "\ud800", "x" * 300, "large"])
def test_what_is_no_small_regular_file_is_refused_at_once(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(1001))
    with pytest.raises(UserError, match=r"^table .*: (cannot be read|is larger)"):
        read_bytes(tmp_path / name, 1000, "table ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1', "line 1: not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "a number of 5000 digits"),
        (b"NaN", "NaN is no number"),
        (b"1e999", "1e999 is too large a number"),
        (b'{"a": 1, "b": {"c\\n": 2, "c\\n": 3}}', r"c\\n stands there twice"),
        (b"", "not valid JSON"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_json(path, 1 << 20)
    path.write_text('{"a": [1, "ü"]}', encoding="utf-8")
    assert read_json(path, 1 << 20) == {"a": [1, "ü"]}
    assert read_text(path, 1 << 20) == '{"a": [1, "ü"]}'


def test_a_small_file_takes_little_memory_however_much_it_might_have(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    program = (
        "import resource\nfrom src.files import read_bytes\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        f"assert read_bytes({str(tmp_path / 'small')!r}, 1 << 40) == b'small'"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize("read", [False, True])
def test_a_pipe_in_the_place_of_a_lock_or_log_is_refused_at_once(tmp_path, read):
    """Also one that somebody reads, which could be opened, and would take no lock that anybody sees."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK) if read else None
    for opened in (claim, open_to_write):
        with pytest.raises(OSError, match=r"No such device|is a pipe"):
            opened(tmp_path / "pipe")
    if reader is not None:
        os.close(reader)


def test_a_lock_is_one_process_s_and_its_file_keeps_its_content(tmp_path):
    (tmp_path / ".lock").write_text("kept")
    with claim(tmp_path / ".lock"), pytest.raises(BlockingIOError):
        claim(tmp_path / ".lock")
    assert (tmp_path / ".lock").read_text() == "kept"
    with open_to_write(tmp_path / ".lock") as file:
        file.write(b"new")
    assert (tmp_path / ".lock").read_text() == "new"


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "link"])
def test_no_device_is_replaced_by_a_file(tmp_path, name):
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(UserError, match="is a device; name a file"):
        write_text(tmp_path / name, "x")
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "link").is_symlink()


def test_a_log_may_be_written_to_a_device(tmp_path):
    (tmp_path / "log").symlink_to("/dev/null")
    with open_to_write(tmp_path / "log") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("mode", "private"), [(0o700, True), (0o755, True), (0o600, True), (0o770, False), (0o775, False), (0o702, False)]
)
def test_what_others_may_write_to_is_not_private(tmp_path, mode, private):
    tmp_path.chmod(mode)
    assert is_private(tmp_path) == private
    assert not is_private(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("owner", "private"), [(0, True), (65534, False)])
def test_what_another_user_owns_is_not_private(tmp_path, owner, private):
    tmp_path.chmod(0o700)
    os.chown(tmp_path, owner, -1)
    assert is_private(tmp_path) == private
