"""Where a run starts, in folders that hold another's, two runs', or the weights of one that has ended."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.args import Config
from src.distributed.ranks import Ranks
from src.errors import UserError
from src.trainers.checkpoint import Checkpoints, Cursor
from src.trainers.start import Start, start_run
from tests.test_checkpoint import SmallStep


def started(folder: Path, **keys: object) -> Start:
    config = Config(**{"train_url": str(folder), "arch": "DDRNet23", "resume": "auto", **keys})
    start = start_run(config, SimpleNamespace(size=80, classes=["a", "b"]), Ranks())
    if start.checkpoints._lock:
        start.checkpoints._lock.close()
    return start


def trained(folder: Path, *places: tuple[int, int]) -> Path:
    """A run's folder, with checkpoints at such epochs and steps."""
    step, start = SmallStep(), started(folder)
    for place in places:
        start.checkpoints.save(step.network, step, Config(arch="DDRNet23"), Cursor(*place), False)
    return folder


def merged(folder: Path, other: Path) -> None:
    for path in (other / "ckpt_0").glob("*-*"):
        shutil.copy(path, folder / "ckpt_0")


def test_a_run_goes_on_under_its_name_and_a_fresh_one_gets_another(tmp_path):
    folder = trained(tmp_path / "a", (1, 1))
    first = started(folder)
    trained(folder, (1, 2))
    again = started(folder)
    assert again.saved.facts["run"] == first.checkpoints.facts["run"] == again.checkpoints.facts["run"]
    assert started(tmp_path / "b").checkpoints.facts["run"] != first.checkpoints.facts["run"]


@pytest.mark.parametrize("resume", ["auto", "ckpt_0/DDRNet23-1_1.ckpt", "elsewhere"])
def test_a_folder_with_checkpoints_of_two_runs_is_refused_and_none_is_lost(resume, tmp_path):
    folder = trained(tmp_path / "a", (1, 1), (1, 2))
    merged(folder, trained(tmp_path / "b", (3, 1)))
    third = trained(tmp_path / "c", (2, 1)) / "ckpt_0/DDRNet23-2_1.ckpt"
    before = {path.name for path in (folder / "ckpt_0").iterdir()}
    named = {"auto": "auto", "elsewhere": str(third)}.get(resume, str(folder / resume))
    with pytest.raises(UserError, match=r"holds checkpoints of another run than .*ckpt, such as DDRNet23-"):
        started(folder, resume=named)
    assert {path.name for path in (folder / "ckpt_0").iterdir()} == before


def test_the_same_run_copied_twice_and_put_together_again_goes_on(tmp_path):
    folder = trained(tmp_path / "a", (1, 1))
    shutil.copytree(folder, tmp_path / "b")
    merged(trained(folder, (1, 2)), trained(tmp_path / "b", (1, 2), (1, 3)))
    assert started(folder).saved.path.stem == "DDRNet23-1_3"


def test_a_checkpoint_from_before_runs_had_names_goes_on(tmp_path):
    step, folder = SmallStep(), tmp_path / "a"
    Checkpoints(folder / "ckpt_0", "DDRNet23", 5).save(step.network, step, Config(arch="DDRNet23"), Cursor(1, 1), False)
    assert started(folder).saved.path.stem == "DDRNet23-1_1"
    trained(folder, (1, 2))
    assert started(folder).saved.path.stem == "DDRNet23-1_2"


def test_another_networks_run_is_refused_and_only_overwrite_removes_it(tmp_path):
    folder = trained(tmp_path / "a", (1, 1))
    for resume in ("auto", ""):
        with pytest.raises(UserError, match="holds a run of DDRNet23: --arch DDRNet23 --resume auto goes on with it"):
            started(folder, arch="DDRNet39", resume=resume)
    start = started(folder, arch="DDRNet39", resume="", overwrite=True)
    start.checkpoints.clear()
    assert [path.name for path in (folder / "ckpt_0").iterdir()] == [".lock"]


def test_the_weights_of_a_run_that_has_ended_are_not_overwritten_by_a_fresh_start(tmp_path):
    folder = trained(tmp_path / "a", (1, 1))
    (folder / "ckpt_0/DDRNet23-1_1.ckpt").rename(folder / "ckpt_0/DDRNet23.ckpt")
    with pytest.raises(UserError, match=r"holds DDRNet23\.ckpt, the weights of a run's end, and no checkpoint"):
        started(folder)


@pytest.mark.parametrize("what", ["Auto", "latest", "ckpt_0", "ckpt_0/DDRNet23-1_1", "ckpt_0/config.yaml"])
def test_what_is_no_checkpoint_is_told_with_an_example(what, tmp_path):
    with pytest.raises(UserError, match=r"resume: is '.*'; must be auto, or .*, such as ckpt_0/DDRNet23-12_300\.ckpt"):
        started(trained(tmp_path, (1, 1)), resume=what)


def test_a_state_stands_for_its_checkpoint(tmp_path):
    path = trained(tmp_path, (1, 1)) / "ckpt_0/DDRNet23-1_1.state"
    assert started(tmp_path, resume=str(path)).saved.path == path.with_suffix(".ckpt")
