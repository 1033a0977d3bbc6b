"""What a rank finds in its environment: who it is, its card, and where the ranks meet.

Ranks always meet through MindSpore's dynamic cluster (MS_ROLE, MS_WORKER_NUM, MS_SCHED_*), whose scheduler is one more
process on the first server: https://www.mindspore.cn/tutorials/en/r2.10.0/parallel/dynamic_cluster.html. MindSpore's
other way, by rank table, is gone from 2.8 on, and in 2.7 it gives a program's own collectives no communicator; so a
table only says which servers, cards and ranks there are, and its name is kept from MindSpore, which acts on it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src import TABLES
from src.errors import UserError
from src.heartbeat import FILE_VARIABLE

# What an earlier start, another launcher or a platform may have left.
LEFT = re.compile(
    r"RANK_ID|RANK_SIZE|DEVICE_ID|DEVICE_NUM|HELP_CLUSTER|OMPI_COMM(AND|_WORLD_\w+)"
    r"|MS_(ROLE|NODE_ID|WORKER_NUM|WORKER_IP|SERVER_NUM|SCHED_HOST|SCHED_PORT|CLUSTER_ROOT)|" + "|".join(TABLES)
)
# Ranks wait for each other while rank 0 saves, or another copies data in: MindSpore's own limit for a collective on the
# CPU, 30 s, would end the job then, and its heartbeat, also 30 s, where a machine is busy. The launcher tells sooner.
PATIENCE = {"MS_CPU_COMM_OP_TIMEOUT": "1800", "MS_NODE_TIMEOUT": "1800", "MS_TOPO_TIMEOUT": "1800"}
# HCCL's limits for ranks to connect (120 s unless set) and to come to a collective.
# https://www.hiascend.com/document/detail/zh/canncommercial/850/maintenref/envvar/envref_07_0149.html
HCCL_PATIENCE = {"HCCL_CONNECT_TIMEOUT": "1800", "HCCL_EXEC_TIMEOUT": "1836"}
SCHEDULER = "from mindspore import communication; communication.init('mccl')"
DEFAULT_PORT = 8118  # msrun's, https://www.mindspore.cn/tutorials/en/r2.10.0/parallel/msrun_launcher.html
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def without_leftovers(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nobody has started ranks yet."""
    return {name: value for name, value in environment.items() if not LEFT.fullmatch(name)}


def rank_environment(
    inherited: Mapping[str, str],
    device_target: str,
    rank: int,
    world: int,
    local: int,
    cards: str = "",
    scheduler: tuple[str, int] = ("", 0),
    heartbeat: str = "",
) -> dict[str, str]:
    """All of a rank's environment.

    Args:
        inherited: what the launcher has.
        device_target: Ascend, GPU or CPU.
        rank, world: the rank's number, and how many there are.
        local: its place among the ranks of its server, which is also the number that its card has for it.
        cards: the server's cards that the ranks use, such as "4,5"; '': those that are visible anyway.
        scheduler: the cluster's host and port; used where there are several ranks.
        heartbeat: the file of its signs of life.
    """
    values: dict[str, Any] = {"RANK_ID": rank, "RANK_SIZE": world, "DEVICE_NUM": world, "DEVICE_ID": local}
    if cards:
        values[VISIBLE] = cards
    if heartbeat:
        values[FILE_VARIABLE] = heartbeat
    if world > 1:
        values.update(MS_ROLE="MS_WORKER", MS_NODE_ID=rank, **_cluster(world, scheduler))
    if world > 1 and device_target == "Ascend":
        values = {**HCCL_PATIENCE, **{name: inherited[name] for name in HCCL_PATIENCE if inherited.get(name)}, **values}
    return _merged(inherited, values)


def scheduler_environment(inherited: Mapping[str, str], world: int, scheduler: tuple[str, int]) -> dict[str, str]:
    """All of the scheduler's environment."""
    return _merged(inherited, {"MS_ROLE": "MS_SCHED", "RANK_ID": 0, "RANK_SIZE": world, **_cluster(world, scheduler)})


def _cluster(world: int, scheduler: tuple[str, int]) -> dict[str, Any]:
    return {"MS_WORKER_NUM": world, "MS_SCHED_HOST": scheduler[0], "MS_SCHED_PORT": scheduler[1]}


def _merged(inherited: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    return {
        **PATIENCE,
        **without_leftovers(inherited),
        **{name: str(value) for name, value in values.items()},
    }


def table_cards(cards: Sequence[int], device_target: str, inherited: Mapping[str, str], devices: str = "/dev") -> str:
    """The value of ASCEND_RT_VISIBLE_DEVICES with which the ranks of a server have a table's cards.

    CANN numbers the cards that a process sees from 0, in ascending order, and accepts no other
    (https://www.hiascend.com/document/detail/zh/canncommercial/900/maintenref/envvar/envref_07_0028.html). In a
    container that holds the table's cards and no other, these have been numbered from 0 already.

    Args:
        cards: their numbers on the server.
        device_target: Ascend, GPU or CPU.
        inherited: the launcher's environment, in which the user may have named the cards to use.
        devices: where each card that this system has stands as davinciN.

    Raises:
        UserError: the user's list lacks one of the table's cards.
    """
    if device_target != "Ascend":
        return ""
    mine = _visible(inherited)
    hidden = sorted(set(cards) - set(mine)) if mine else []
    if hidden:
        raise UserError(
            f"{VISIBLE}: is {inherited[VISIBLE]!r}, without the rank table's card {hidden[0]}; add or unset it"
        )
    here = [path for path in Path(devices).glob("davinci*") if re.fullmatch(r"davinci\d+", path.name)]
    if not mine and len(here) == len(cards):
        return ""
    return ",".join(map(str, sorted(cards)))


def first_cards(count: int, device_target: str, inherited: Mapping[str, str]) -> str:
    """The same for the first `count` cards of those that the user has named; '': of all.

    Raises:
        UserError: the user's list has fewer.
    """
    mine = _visible(inherited) if device_target == "Ascend" else []
    if mine and len(mine) < count:
        raise UserError(f"{VISIBLE}: is {inherited[VISIBLE]!r}, {len(mine)} cards; {count} ranks need as many")
    return ",".join(map(str, mine[:count]))


def _visible(inherited: Mapping[str, str]) -> list[int]:
    """The cards that the user has named; none: all are to be used."""
    text = inherited.get(VISIBLE, "")
    if not text:
        return []
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if re.fullmatch(r"[0-9]{1,4}", word)]
    if len(numbers) != len(words) or sorted(set(numbers)) != numbers:
        raise UserError(f"{VISIBLE}: is {text!r}; must be the numbers of cards, ascending, such as 4,5,6,7")
    return numbers
