"""A rank's sign of life: a file that changes at every beat."""

import os

from src.heartbeat import FILE_VARIABLE, beat


def test_every_beat_changes_the_file_and_says_how_long_the_next_may_take(tmp_path, monkeypatch):
    path = tmp_path / "heartbeat"
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    beat()
    assert float(path.read_text()) == 0
    os.utime(path, ns=(1, 1))
    beat(7200)
    assert float(path.read_text()) == 7200
    assert path.stat().st_mtime_ns > 1
    beat(1.0)
    assert float(path.read_text()) == 1


def test_without_a_launcher_or_a_folder_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    beat()
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "nowhere" / "heartbeat"))
    beat()
    assert not list(tmp_path.iterdir())
