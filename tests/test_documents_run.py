"""The commands of the documents, run as they stand there, in a folder that has what the pages suppose.

Training is told to be small, and placeholders are filled in; nothing else is changed. What does not run here stands in
NOT_RUN with the reason, so that a new command is run, or explained.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.models import create_model
from tests.conftest import ROOT
from tests.photos import photos
from tests.test_documents import CHINESE, PAGES, commands, read

SMALL = "--epochs 1 --image_size 32 --save_every 0"  # for train.py
PLACES = {"CONFIG": "src/configs/finetune.yaml", "DIR": "photos", "D": "photos", "M": "packed"}
NOT_RUN = {
    r"\[[A-Z_]+\]": "usage lines of scripts, which tests/test_programs.py and tests/test_distributed.py run",
    r"run_tests|pytest|^bash \.ci|pre-commit": "the tests themselves",
    r"^pip install|activate$|quickstart": "installs an environment",
    r"Ascend\b|_ascend\.sh|run_infer_310|converter_lite|LD_LIBRARY_PATH|convert\.cfg|310\.mindir": "needs a card or "
    "its software; tests/ascend and tests/test_infer_310.py run what can be run without",
    r"make_rank_table": "needs a server's /etc/hccn.conf; tests/test_rank_table.py has one",
    r"tests\.ascend\.stubs": "tests/ascend builds them",
    r"prepare_imagenet": "needs ImageNet's archives; tests/test_prepare_imagenet.py makes such",
    r"ddrnet23_imagenet\.yaml": "trains on ImageNet",
    r"benchmarks/": "measures, for minutes to hours",
    r"^tensorboard": "serves until it is stopped",
    r"while !": "the loop of --resume auto, which tests/test_resume.py runs",
    r"train\.py --ddr_config CONFIG": "another start of what own_photos.md trains; tests/test_resume.py resumes",
    r"--data_url M$": "tests/test_data_mindrecord.py trains from packed data",
    r"--pretrained ckpt_0/DDRNet23\.ckpt --ddr_config CONFIG": "as without --ddr_config, which own_photos.md exports",
    r"eval\.py --ddr_config CONFIG": "as without --ddr_config, which own_photos.md evaluates",
    r"eval\.py --pretrained \S+$": "as with --report, which runs",
    r"--help$": "tests/test_documents.py asks every program for it",
}
RUN = ("own_photos.md", "README.md", "data.md", "weights.md")  # in this order: the first trains what others use


def reason_not_to_run(command: str) -> str:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), "")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The project's folder, with photographs and weights as the pages name them."""
    folder = tmp_path_factory.mktemp("project")
    for path in [*ROOT.glob("*.py"), ROOT / "src", ROOT / "scripts"]:
        (folder / path.name).symlink_to(path)
    rng = np.random.default_rng(0)

    def photograph(kind: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top = (int(value) for value in rng.integers(0, (440, 260)))
        photos()[kind].crop((left, top, left + 120, top + 100)).save(path, quality=90)

    for kind, name in enumerate(("sports car", "红熊猫")):
        for number in range(20):
            photograph(kind, folder / "photos" / "train" / name / f"IMG_{number:04d}.jpg")
    for name in ("photo.jpg", "1.png", "folder/a.jpg", "holiday/a.jpg", "new_photos/a.jpg", "archive/2024/a.jpg"):
        photograph(0, folder / name)
    ms.save_checkpoint(create_model("DDRNet23", 1000), str(folder / "DDRNet23.ckpt"))
    given = ["--from", "DDRNet23.ckpt", "--to", "DDRNet23_imagenet.pth", "--flavour", "paper"]
    subprocess.run([sys.executable, "-m", "src.weights.convert", *given], cwd=folder, check=True, capture_output=True)
    (folder / "ckpt_0").symlink_to("runs/photos/ckpt_0")
    return folder


def run_page(name: str, world: Path) -> int:
    """Run a page's commands in their order; how many there were.

    A shell's loop, which takes several lines, is one command.
    """
    page = next(page for page in PAGES if page.name == name)
    loops = [block for block in re.findall(r"```bash\n(.*?)```", read(page), re.DOTALL) if block.startswith("for ")]
    inside = {line.strip() for loop in loops for line in loop.splitlines()}
    ran = 0
    for command in [*loops, *(line for line in commands(page) if line not in inside)]:
        if command not in loops and reason_not_to_run(command):
            continue
        line = re.sub(r"(?<= )[A-Z]+(?= |$)", lambda match: PLACES.get(match[0], match[0]), command)
        if "train.py" in line:
            line += f" {SMALL}" + " --train_url runs/again" * ("--train_url" not in line)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "HOME": str(world), "XDG_CACHE_HOME": str(Path.home() / ".cache")}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=world, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{name}: {line}\n{done.stdout}{done.stderr}"
        ran += 1
    return ran


@pytest.fixture(scope="module")
def trained(world) -> int:
    return run_page(RUN[0], world)


def test_the_page_on_ones_own_photographs_leads_to_a_network_its_report_and_its_files(trained, world):
    assert trained == 8
    assert len(list(world.glob("photos/train/*/*.jpg"))) == 32 and len(list(world.glob("photos/val/*/*.jpg"))) == 8
    for name in ("grid.png", "report/report.html", "DDRNet23.onnx", "DDRNet23.mindir"):
        assert (world / name).stat().st_size > 1000
    answers = (world / "answers.csv").read_text().splitlines()
    assert len(answers) == 3 and answers[1].startswith(f"{world}/new_photos/a.jpg,")


@pytest.mark.parametrize("page", RUN[1:])
def test_the_commands_of_a_page_run_as_they_stand(page, trained, world):
    assert run_page(page, world) > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_no_test_runs_has_a_reason(page):
    if page.name in RUN or page in CHINESE:
        return
    own = {command for name in RUN for other in PAGES if other.name == name for command in commands(other)}
    left = [command for command in commands(page) if command not in own and not reason_not_to_run(command)]
    assert not left
