"""The compiled step of an earlier start serves only where it is the right one; real runs of train.py."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from src.args import Config
from src.distributed.ranks import Ranks
from src.errors import UserError
from src.trainers.compile_cache import CompileCache, digest
from tests.conftest import TINY, run_program
from tests.interrupted import outcome


def start(digits: Path, folder: Path, *flags: object) -> tuple[float, dict, str]:
    """A whole run: seconds to its first step, what it ended with, and its log."""
    folder.mkdir()
    done = run_program("train.py", "--ddr_config", TINY, "--data_url", digits, "--epochs", 1, *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    seconds = float(re.search(r"first step ([\d.]+) s after the start", done.stdout).group(1))
    return seconds, outcome(folder), done.stdout


@pytest.fixture(scope="module")
def first(digits, tmp_path_factory) -> tuple:
    """The cache that a first start has made, the seconds to its first step and what it ended with."""
    folder = tmp_path_factory.mktemp("first")
    seconds, ended, _ = start(digits, folder / "run", "--compile_cache", folder / "cache")
    return folder / "cache", seconds, ended


def entries(cache: Path) -> set:
    return {path.name for path in cache.iterdir()}


def test_a_second_start_takes_the_step_from_the_cache_and_ends_the_same(first, digits, tmp_path):
    cache, seconds, ended = first
    before = entries(cache)
    assert len(before) == 1
    again, same, _ = start(digits, tmp_path / "run", "--compile_cache", cache, "--log_every", 7)
    assert same == ended
    assert entries(cache) == before
    assert again < seconds


def test_changed_constants_compile_anew(first, digits, tmp_path):
    """In the loss and in the step; seen to go wrong with MindSpore's cache alone."""
    cache, _, ended = first
    change = ("--label_smoothing", 0.3, "--clip_global_norm_value", 0.01)
    before = entries(cache)
    _, uncached, _ = start(digits, tmp_path / "uncached", *change)
    _, cached, _ = start(digits, tmp_path / "cached", "--compile_cache", cache, *change)
    assert cached == uncached
    assert cached != ended
    assert len(entries(cache) - before) == 1


def test_each_constant_of_the_step_has_entries_of_its_own():
    changes: list[dict] = [{}, {"label_smoothing": 0.3}, {"clip_global_norm_value": 0.01}, {"momentum": 0.8}]
    found = {digest(Config(**change), Ranks()) for change in changes}
    assert len(found) == len(changes)
    assert digest(Config(log_every=7), Ranks()) in found


def test_a_damaged_entry_is_made_anew(first, digits, tmp_path):
    cache, _, ended = first
    graphs = list(cache.rglob("*.mindir"))
    for graph in graphs:
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.chmod(0o600)
        graph.write_bytes(content)
    before = entries(cache)
    _, same, said = start(digits, tmp_path / "run", "--compile_cache", cache)
    assert "is damaged, compiling anew" in said
    assert same == ended
    assert entries(cache) == before


def test_a_cache_that_cannot_be_written_is_an_error_before_training(digits, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_program(
        "train.py", "--ddr_config", TINY, "--data_url", digits, "--compile_cache", tmp_path / "file", cwd=tmp_path
    )
    assert done.returncode == 2
    assert f"compile_cache: {tmp_path}/file: cannot be written" in done.stderr


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(UserError, match="can be written by others"), CompileCache(parse_cached(cache), Ranks()):
        pass


@pytest.mark.parametrize("content", ["", "[" * 100_000, "{}", "null"])
def test_an_entry_of_rubbish_or_a_file_in_its_place_is_made_anew(content, tmp_path):
    config = parse_cached(tmp_path / "cache")
    entry = tmp_path / "cache" / digest(config, Ranks())
    entry.mkdir(parents=True)
    (entry / "whole.json").write_text(content)
    (entry / "graph").write_text("rubbish")
    (tmp_path / "cache").chmod(0o700)
    with CompileCache(config, Ranks()):
        assert not entry.exists()
    entry.write_text("a file")
    with CompileCache(config, Ranks()):
        assert not entry.exists()


ODD = {
    "a loop": lambda entry: (shutil.rmtree(entry), entry.symlink_to(entry.name)),
    "a pipe": lambda entry: (shutil.rmtree(entry), os.mkfifo(entry)),
    "a pipe for its list": lambda entry: ((entry / "whole.json").unlink(), os.mkfifo(entry / "whole.json")),
    "no end": lambda entry: os.truncate(entry / "graph", 1 << 42),
    "a file more": lambda entry: (entry / "more").write_text("x"),
    "a file less": lambda entry: (entry / "graph").unlink(),
    "a file for all": lambda entry: (entry / "graph").chmod(0o666),
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_has_become_of_an_entry_it_is_made_anew_at_once(kind, tmp_path):
    config, entry = entry_of(tmp_path)
    ODD[kind](entry)
    cache = CompileCache(config, Ranks())
    with cache:
        assert cache.making
        (cache.making / "graph").write_text("compiled")
    assert (entry / "graph").read_text() == "compiled"
    with CompileCache(config, Ranks()):
        assert (entry / "graph").exists()


def test_files_that_the_umask_opens_to_all_are_closed(tmp_path):
    before = os.umask(0)
    try:
        _, entry = entry_of(tmp_path)
    finally:
        os.umask(before)
    assert entry.stat().st_mode & 0o777 == 0o700
    assert (entry / "graph").stat().st_mode & 0o777 == 0o600


def test_a_damaged_entry_that_cannot_be_removed_is_not_used(tmp_path, caplog):
    config, entry = entry_of(tmp_path)
    (entry / "graph").write_text("damaged")
    flag = ["chattr", "+i", entry / "graph"]
    if not shutil.which("chattr") or subprocess.run(flag, capture_output=True, check=False).returncode:
        pytest.skip("files cannot be closed here")
    try:
        cache = CompileCache(config, Ranks())
        with cache:
            assert cache.entry is cache.making is None
        assert "cannot be removed; the compiled step is not kept" in caplog.text
    finally:
        subprocess.run(["chattr", "-i", entry / "graph"], check=True)


def entry_of(folder: Path) -> tuple[Config, Path]:
    """A cache with one entry."""
    (folder / "cache").mkdir(mode=0o700)
    config = parse_cached(folder / "cache")
    cache = CompileCache(config, Ranks())
    with cache:
        (cache.making / "graph").write_text("compiled")
    [entry] = (folder / "cache").iterdir()
    return config, entry


def test_an_entry_that_cannot_be_finished_costs_a_line_and_no_run(tmp_path, caplog):
    (tmp_path / "cache").mkdir(mode=0o700)
    cache = CompileCache(parse_cached(tmp_path / "cache"), Ranks())
    with cache:
        (cache.making / "graph").write_text("compiled")
        (cache.making / "whole.json").mkdir()
    assert "the compiled step is not kept" in caplog.text
    assert not list((tmp_path / "cache").iterdir())


def test_what_dead_processes_left_is_removed_though_another_rank_removes_it_too(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    for number in range(3):
        (cache / f".{number}.tmp").mkdir()
        os.utime(cache / f".{number}.tmp", (0, 0))
    old = sorted(cache.iterdir())
    old[1].rmdir()
    glob = Path.glob  # sees the folder as it was before the other rank began
    monkeypatch.setattr(Path, "glob", lambda path, what: iter(old) if path == cache else glob(path, what))
    with CompileCache(parse_cached(cache), Ranks()):
        assert not any(path.exists() for path in old)


def parse_cached(folder: Path) -> Config:
    return Config(device_target="CPU", compile_cache=str(folder))
