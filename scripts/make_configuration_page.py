"""Write the table of keys in docs/configuration.md from the one definition in src/args.py.

python scripts/make_configuration_page.py           # write
python scripts/make_configuration_page.py --check   # exit code 1 where the page is not what would be written
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.args import keys

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: written by scripts/make_configuration_page.py -->", "<!-- end of keys -->"
CHANGES = {
    "weights": "what is learned",
    "batch": "the global batch, by its product",
    "step": "how it is computed",
    "nothing": "",
}


def table() -> str:
    """A row for each key: name, default, allowed values, meaning, and what another value changes in a run."""
    rows = ["| key | default | allowed | meaning | another value changes |", "|---|---|---|---|---|"]
    for key in keys():
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        rows.append(f"| `{key.name}` | {default!r} | {key.allowed} | {key.help} | {CHANGES[key.changes]} |")
    return "\n".join(rows)


def page() -> str:
    """The whole page, with the table as the definition has it now."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Write the page, or compare."""
    parser = argparse.ArgumentParser(description="Write the table of keys in docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if parser.parse_args().check:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
