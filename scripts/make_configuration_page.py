"""Write the tables of keys in docs/configuration.md and docs/configuration_CN.md from the definition in src/args.py.

The Chinese meanings are the comments in README_CN.md's listing of keys.

python scripts/make_configuration_page.py           # write
python scripts/make_configuration_page.py --check   # exit code 1 where the page is not what would be written
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.args import Key, keys

ROOT = Path(__file__).resolve().parent.parent
PAGE, PAGE_CN = ROOT / "docs" / "configuration.md", ROOT / "docs" / "configuration_CN.md"
BEGIN, END = "<!-- keys: written by scripts/make_configuration_page.py -->", "<!-- end of keys -->"
CHANGES = {
    "weights": ("what is learned", "学习的内容"),
    "batch": ("the global batch, by its product", "全局批大小（乘积）"),
    "step": ("how it is computed", "计算方式"),
    "nothing": ("", ""),
}
# A key's allowed values, in Chinese.
IN_CHINESE = (
    (r"^two of: (.*)$", r"两个值：\1"),
    (r"^three of: a number, or auto$", "三个数值，或auto"),
    (r"an even number from (\S+)", r"偶数，不小于\1"),
    (r"a whole number from (\S+) to (\S+)", r"整数，\1至\2"),
    (r"a whole number from (\S+)", r"整数，不小于\1"),
    (r"a number from (\S+), below (\S+)", r"数值，不小于\1且小于\2"),
    (r"a number from (\S+) to (\S+)", r"数值，\1至\2"),
    (r"a number above (\S+) to (\S+)", r"数值，大于\1，不大于\2"),
    (r"a number above (\S+)", r"数值，大于\1"),
    (r"a number from (\S+)", r"数值，不小于\1"),
    (r"^a text$", "文本"),
    (r", | or ", "、"),
)


def table() -> str:
    """A row for each key: name, default, allowed values, meaning, and what another value changes in a run."""
    rows = ["| key | default | allowed | meaning | another value changes |", "|---|---|---|---|---|"]
    rows += [
        f"| `{key.name}` | {shown(key)!r} | {key.allowed} | {key.help} | {CHANGES[key.changes][0]} |" for key in keys()
    ]
    return "\n".join(rows)


def table_cn() -> str:
    """The same in Chinese."""
    text = (ROOT / "README_CN.md").read_text(encoding="utf-8")
    meanings = dict(re.findall(r"^(\w+): .*?# (.+)$", text, re.MULTILINE))
    rows = ["| 参数 | 默认值 | 可选值 | 说明 | 改变后影响 |", "| --- | --- | --- | --- | --- |"]
    for key in keys():
        allowed = key.allowed
        for pattern, replacement in IN_CHINESE:
            allowed = re.sub(pattern, replacement, allowed)
        meaning = meanings.get(key.name, "")
        rows.append(f"| `{key.name}` | {shown(key)!r} | {allowed} | {meaning} | {CHANGES[key.changes][1]} |")
    return "\n".join(rows)


def shown(key: Key) -> Any:
    """A key's default as YAML lists it."""
    return list(key.default) if isinstance(key.default, tuple) else key.default


def page(path: Path, rows: str) -> str:
    """The whole page, with the table as the definition has it now."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the pages, or compare."""
    parser = argparse.ArgumentParser(description="Write the tables of keys in docs/.")
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    check = parser.parse_args().check
    for path, rows in ((PAGE, table()), (PAGE_CN, table_cn())):
        whole = page(path, rows)
        if check and whole != path.read_text(encoding="utf-8"):
            sys.exit(f"{path}: is not what src/args.py says; run python scripts/make_configuration_page.py")
        if not check:
            path.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
