"""Write, join or check a rank table: which card of which server is which rank.

python scripts/make_rank_table.py --device_num "[0,8)"                      this server's cards 0 to 7
python scripts/make_rank_table.py --merge a.json b.json --out both.json     several servers' tables as one
python scripts/make_rank_table.py --check both.json                         say whether a table is right
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.errors import Parser, UserError, run
from src.files import write_text
from src.launcher.rank_table import RankTable, make_rank_table, merge, mixed_groups, own_address, read_rank_table


def parse_range(text: str) -> tuple[int, int]:
    """The cards that "[a,b)" means: a and b, of which b is not among them."""
    match = re.fullmatch(r"\[\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*\)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f'--device_num {text}: must be "[first,last+1)", such as "[0,8)" for the cards 0 to 7')
    return int(match[1]), int(match[2])


def warn(table: RankTable) -> None:
    """Say on standard error where a server's cards are such as an Ascend 910 server would refuse."""
    for server in table.servers:
        problem = mixed_groups([card.device_id for card in server.cards])
        if problem:
            print(f"warning: server {server.server_id}: {problem} (Ascend 910; a 910B takes any)", file=sys.stderr)


def main() -> None:
    """Do one of the three, as the flags say."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--device_num", metavar='"[A,B)"', help="write the table of this server's cards A to B-1")
    what.add_argument("--merge", nargs="+", metavar="TABLE", help="join tables; ranks count on in their order")
    what.add_argument("--check", metavar="TABLE", help="check a table")
    parser.add_argument(
        "--conf", default="/etc/hccn.conf", help="the cards' addresses (default: %(default)s), else hccn_tool's"
    )
    parser.add_argument("--server_id", default="", help="this server's address (default: that of its default route)")
    parser.add_argument("--out", default="", help="file to write (default: rank_table_<cards>pcs.json)")
    options = parser.parse_args()

    if options.check is not None:
        table = read_rank_table(options.check)
        counts = ", ".join(f"{server.server_id}: {len(server.cards)}" for server in table.servers)
        warn(table)
        print(f"{options.check}: right; {table.world} ranks ({counts})")
        return
    if options.merge:
        table = merge([read_rank_table(path) for path in options.merge])
    else:
        table = make_rank_table(*parse_range(options.device_num), options.conf, options.server_id or own_address())
    warn(table)
    out = options.out or f"rank_table_{table.world}pcs.json"
    write_text(out, table.to_json())
    print(out)


if __name__ == "__main__":
    run(main)
