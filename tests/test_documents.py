"""The documents agree with the code and with each other: keys, defaults, programs, flags, links, punctuation."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from src.args import Config
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CHINESE = [page for page in PAGES if page.stem.endswith("_CN")]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", read(page), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_pages_of_keys_are_what_the_definition_says():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/make_configuration_page.py"), "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_chinese_listing_has_every_key_with_its_default_and_a_comment():
    block = re.search(r"```yaml\n(# ===== 网络.*?)```", read(ROOT / "README_CN.md"), re.DOTALL)[1]
    listed = yaml.safe_load(block)
    defaults = Config().model_dump(mode="json")
    assert list(listed) == list(defaults)
    assert listed == defaults
    for line in block.splitlines():
        assert re.match(r"# =|\w+: .*# .*[\u4e00-\u9fff]|\w+: .*# O2、O3", line), line


def test_the_readme_is_short():
    assert len(read(ROOT / "README.md").splitlines()) <= 150


def test_both_languages_name_the_same_programs():
    def programs(page: Path) -> set[str]:
        return {name for line in commands(page) for name in re.findall(r"[\w./]*\.(?:py|sh)\b|-m src[\w.]*", line)}

    own, chinese = (
        {name.lstrip("./").split("/")[-1] for name in programs(ROOT / page)} for page in ("README.md", "README_CN.md")
    )
    assert own - chinese <= {"run_tests.sh"}
    assert chinese - own <= {"run_eval_ascend.sh", "make_rank_table.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_chinese_pages_have_full_width_punctuation(page):
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]*>", "", read(page), flags=re.DOTALL)
    wrong = re.findall(r"[\u4e00-\u9fff][,;:()]|[,;:(][\u4e00-\u9fff]", text)
    assert not wrong, f"{page.name}: {wrong[:10]}"


@cache
def flags_of(program: str) -> str:
    """What --help of a Python program or module says."""
    command = ["-m", program[3:]] if program.startswith("-m ") else [str(ROOT / program)]
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_in_the_documents_exist_and_know_their_flags(page):
    for line in commands(page):
        for script in re.findall(
            r"(?:bash|python3?) (\.?/?(?:scripts|benchmarks|ascend310_infer|\.ci)?/?[\w/.-]+\.(?:sh|py))", line
        ):
            assert any((ROOT / folder / script).exists() for folder in ("", "scripts")), f"{page.name}: {line}"
        python = re.search(r"python3? (-m src[\w.]+|[\w./]+\.py)\s?([^|&;]*)", line)
        if python and "peers" not in python[1]:
            known = flags_of(python[1].removeprefix("./"))
            for flag in re.findall(r"(?<!\S)\[?(--\w+)", python[2]):
                assert flag in known, f"{page.name}: {python[1]} has no {flag}: {line}"
