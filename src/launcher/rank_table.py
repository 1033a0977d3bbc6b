"""Rank tables: which card of which server is which rank, as HCCL reads it.

The format is template 1 of https://www.hiascend.com/document/detail/en/CANNCommunityEdition/900/API/hcclug/hcclug_000068.html
and MindSpore's https://www.mindspore.cn/tutorials/en/r2.7.0/parallel/rank_table.html, both of which also say where the
cards' addresses stand: in /etc/hccn.conf, lines `address_N=IP`. What that file lacks, `hccn_tool -i N -ip -g` is asked
for, as hccl_tools does (https://gitee.com/mindspore/models/tree/master/utils/hccl_tools). Fields that this does not
know, such as super_device_id and super_pod_list of version 1.2, are kept as they are. Template 2, a list of groups of
instances as ModelArts' and Kubernetes' older controllers write it, is read as the same and written as template 1.
"""

import contextlib
import ipaddress
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from src.errors import UserError, printable
from src.files import read_json, read_text

HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
MOST_BYTES = 1 << 24  # a table of 10,000 cards has 2 MB
CONTAINER_ADDRESSES = ("container_ip", "pod_ip", "server_ip")  # beside a machine's server_id, as MindCluster writes


@dataclass(frozen=True)
class Card:
    """One rank: its number, and its card's number and address on its server (None: the table has none)."""

    rank: int
    device_id: int
    device_ip: Optional[str]
    other: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A server's name, usually its address, and its cards by rank."""

    server_id: str
    cards: tuple[Card, ...]
    host_ip: Optional[str] = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What it can be reached by, the best first: a container's own address before that of its machine."""
        names = (self.host_ip, *(self.other.get(name) for name in CONTAINER_ADDRESSES), self.server_id)
        return tuple(name for name in names if isinstance(name, str) and _is_address(name))

    @property
    def reached_by(self) -> str:
        """The address, or where it has none the name, by which other servers reach it."""
        return next(iter(self.addresses), self.server_id)


@dataclass(frozen=True)
class RankTable:
    """All servers of a job, by rank: the first has rank 0."""

    servers: tuple[Server, ...]
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> int:
        """Number of ranks on all servers."""
        return sum(len(server.cards) for server in self.servers)

    def to_json(self) -> str:
        """The file's text, every number a string, as HCCL wants it."""
        servers = []
        for server in self.servers:
            devices = [
                {
                    "device_id": str(card.device_id),
                    **({"device_ip": card.device_ip} if card.device_ip else {}),
                    "rank_id": str(card.rank),
                    **card.other,
                }
                for card in server.cards
            ]
            host = {"host_ip": server.host_ip} if server.host_ip else {}
            entry = {"server_id": server.server_id, **host, "device": devices, "host_nic_ip": "reserve", **server.other}
            servers.append(entry)
        table = {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
        return json.dumps({**table, **self.other}, indent=2) + "\n"


def read_rank_table(path: str) -> RankTable:
    """A checked rank table.

    Raises:
        UserError: the file is missing or no JSON, or an entry is wrong; the message names the entry.
    """
    table = read_json(path, MOST_BYTES, "rank table ")
    try:
        return _parse(table)
    except UserError as error:
        raise UserError(f"rank table {path}: {error}") from None


def _parse(table: Any) -> RankTable:
    if isinstance(table, dict) and "server_list" not in table and "group_list" in table:
        table = _as_template_1(table)
    if isinstance(table, dict) and "server_list" not in table and "rank_list" in table:
        raise UserError(
            "is of version 2.0, whose rank_list does not say which card is on which server; start without it, by "
            "MASTER_ADDR, SERVER_NUM, NODE_RANK and scripts/run_distribute_train_msrun_ascend.sh CARDS CONFIG"
        )
    entries = _list(table, "server_list", "the table")
    status = table.get("status", "completed")
    if status != "completed":
        raise UserError(
            f"status is {_shown(status)}; a table that can be used says 'completed', so wait for its writer"
        )
    if "server_count" in table and _number(table, "server_count", "the table") != len(entries):
        raise UserError(f"server_count is {table['server_count']}, but server_list has {len(entries)} entries")
    servers = tuple(_server(entry, f"server_list[{index}]", len(entries)) for index, entry in enumerate(entries))
    _unique(((server.server_id, f"server {server.server_id}") for server in servers), "server_id")
    _check_ranks(servers)
    other = _other(table, "server_list", "server_count", "status")
    return RankTable(tuple(sorted(servers, key=lambda server: server.cards[0].rank)), other)


def _as_template_1(table: dict[str, Any]) -> dict[str, Any]:
    """A table in groups of instances, each some cards of one server, as a table of servers.

    Ranks count on in the order of the instances where these do not say their own.
    """
    servers: dict[Any, dict[str, Any]] = {}
    rank = 0
    for number, group in enumerate(_list(table, "group_list", "the table")):
        where = f"group_list[{number}]"
        for place, instance in enumerate(_list(group, "instance_list", where)):
            here = f"{where}.instance_list[{place}]"
            name, devices = instance.get("server_id") if isinstance(instance, dict) else None, []
            for device in _list(instance, "devices", here):
                if not isinstance(device, dict):
                    raise UserError(f"{here}: devices must be objects with device_id and device_ip")
                own = {"rank_id": instance["rank_id"]} if "rank_id" in instance else {}
                devices.append({"rank_id": rank, **own, **device})
                rank += 1
            if not isinstance(name, str):
                raise UserError(f"{here}: server_id is {_shown(name)}; must be the server's address or name")
            servers.setdefault(name, {"server_id": name, "device": []})["device"] += devices
    return {**_other(table, "group_list", "group_count"), "server_list": list(servers.values())}


def _server(entry: Any, where: str, servers: int) -> Server:
    devices = _list(entry, "device", where)
    server_id = entry.get("server_id")
    if not isinstance(server_id, str) or not re.fullmatch(r"[\w.:%-]{1,253}", server_id):
        raise UserError(f"{where}: server_id is {_shown(server_id)}; must be the server's address or name")
    host_ip = entry.get("host_ip")
    if host_ip == "":
        host_ip = None
    if host_ip is not None:
        _check_address(host_ip, f"{where}.host_ip")
    cards = []
    for index, device in enumerate(devices):
        place = f"{where}.device[{index}]"
        if not isinstance(device, dict):
            raise UserError(f"{place}: must be an object with device_id, device_ip and rank_id")
        device_ip = device.get("device_ip")
        if device_ip is not None or servers > 1:  # one server may do without, several may not
            _check_address(device_ip, f"{place}.device_ip")
        other = _other(device, "rank_id", "device_id", "device_ip")
        cards.append(Card(_number(device, "rank_id", place), _number(device, "device_id", place), device_ip, other))
    _unique(((card.device_id, f"device {card.device_id}") for card in cards), f"{where}: device_id")
    other = _other(entry, "server_id", "host_ip", "device")
    return Server(server_id, tuple(sorted(cards, key=lambda card: card.rank)), host_ip, other)


def _check_ranks(servers: Sequence[Server]) -> None:
    cards = [(card, server) for server in servers for card in server.cards]
    _unique(((card.rank, f"rank {card.rank}, server {server.server_id}") for card, server in cards), "rank_id")
    for card, server in cards:
        if card.rank >= len(cards):
            raise UserError(
                f"server {server.server_id}, device {card.device_id}: rank_id is {card.rank}, but the table has "
                f"{len(cards)} ranks, which count from 0 to {len(cards) - 1}"
            )
    addresses = [(card.device_ip, f"{card.device_ip}, rank {card.rank}") for card, _ in cards if card.device_ip]
    _unique(iter(addresses), "device_ip")


def _list(holder: Any, name: str, where: str) -> list:
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {name} must be a list of at least one entry")
    return value


def _other(holder: dict[str, Any], *known: str) -> dict[str, Any]:
    """The fields that are none of the known ones."""
    return {name: value for name, value in holder.items() if name not in known}


def _number(holder: dict, name: str, where: str) -> int:
    value = holder.get(name)
    text = str(value) if type(value) in (str, int) else ""
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise UserError(f"{where}: {name} is {_shown(value)}; must be a number from 0 to 99999")
    return int(text)


def _check_address(value: Any, where: str) -> None:
    try:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Fa-f.:]{1,45}(%[\w.-]{1,16})?", value):
            raise ValueError
        ipaddress.ip_address(value)
    except ValueError:
        raise UserError(f"{where} is {_shown(value)}; must be an IP address, as /etc/hccn.conf has it") from None


def _shown(value: Any) -> str:
    """A value as a message shows it, texts in quotes."""
    return f"'{printable(value, 80)}'" if isinstance(value, str) else printable(value, 80)


def _unique(pairs: Any, name: str) -> None:
    seen: dict[Any, str] = {}
    for value, label in pairs:
        if value in seen:
            raise UserError(f"{name} {value} stands there twice ({seen[value]}; {label})")
        seen[value] = label


def find_server(table: RankTable, server_id: str = "") -> Server:
    """This server's entry: the one named `server_id`, else the one whose address is this machine's.

    Raises:
        UserError: the table lacks this server, or has two that could be it.
    """
    names = ", ".join(server.server_id for server in table.servers)
    if server_id:
        found = [server for server in table.servers if server.server_id == server_id]
        if not found:
            raise UserError(f"the rank table has no server {server_id} (SERVER_ID); it has {names}")
        return found[0]
    found = [server for server in table.servers if any(map(is_own, server.addresses))]
    if not found and len(table.servers) == 1 and not _is_address(names):
        found = list(table.servers)
    if len(found) != 1:
        problem = "none of its servers is" if not found else "several of its servers are"
        raise UserError(f"the rank table lists {names}; {problem} this one by address: say SERVER_ID=<server_id>")
    return found[0]


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return False


def is_own(address: str) -> bool:
    """Whether an address is one of this machine's: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def own_address() -> str:
    """The address that this machine is reached by: that of its default route, else that of its name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a datagram socket sends nothing when it connects
        return probe.getsockname()[0]
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise UserError("--server_id: this machine's address cannot be told; give it") from error


def make_rank_table(first: int, last: int, conf: str, server_id: str) -> RankTable:
    """The table of one server's cards `first` to `last` - 1, with the addresses that `conf` (hccn.conf) gives them.

    What that file lacks is asked of hccn_tool, where it is there.

    Raises:
        UserError: a card's address cannot be told.
    """
    try:
        text, problem = read_text(conf, MOST_BYTES, "--conf "), ""
    except UserError as error:
        text, problem = "", str(error)
    pairs = re.findall(r"^\s*address_(\d{1,6})\s*=\s*(\S+)\s*$", text, re.MULTILINE)
    addresses = {int(number): (ip, f"--conf {conf}: address_{number}") for number, ip in pairs}
    cards = []
    for rank, device_id in enumerate(range(first, last)):
        ip, source = addresses.get(device_id) or (_ask_hccn_tool(device_id), f"hccn_tool -i {device_id} -ip -g")
        if not ip:
            problem = problem or f"--conf {conf}: has no line address_{device_id}=IP"
            raise UserError(
                f"{problem}; hccn_tool, which writes it, does not say the address of card {device_id} either"
            )
        _check_address(ip, source)
        cards.append(Card(rank, device_id, ip))
    return checked(RankTable((Server(server_id, tuple(cards)),)))


def _ask_hccn_tool(device_id: int) -> str:
    """A card's address as the driver's tool says it; '' where there is no such tool, or it does not know."""
    tool = shutil.which("hccn_tool") or HCCN_TOOL
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [tool, "-i", str(device_id), "-ip", "-g"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
        match = re.search(r"^\s*ipaddr\s*:\s*(\S+)", done.stdout, re.MULTILINE)
        return match[1] if match and done.returncode == 0 else ""
    return ""


def mixed_groups(cards: Sequence[int]) -> str:
    """What is wrong with a choice of cards on an Ascend 910 server, where 0 to 3 and 4 to 7 are rings; '': nothing.

    HCCL there takes 1, 2 or 4 cards of one ring or all eight; hccl_tools refuses other ranges. A 910B has no such rule,
    and a server with cards from 8 on is none of these.
    """
    if any(card >= 8 for card in cards):
        return ""
    if len(cards) == 8 or not (any(card < 4 for card in cards) and any(card >= 4 for card in cards)):
        return "" if len(cards) in (1, 2, 4, 8) else f"{len(cards)} cards; HCCL there takes 1, 2, 4 or 8"
    return f"cards {', '.join(map(str, cards))} lie in both groups of four, 0 to 3 and 4 to 7"


def merge(tables: Sequence[RankTable]) -> RankTable:
    """One table of all servers, in the tables' order, with ranks counted on; lists that this does not know are joined.

    Raises:
        UserError: a server stands there twice, or the tables differ in another field that this does not know.
    """
    servers, rank = [], 0
    for server in (server for table in tables for server in table.servers):
        cards = tuple(replace(card, rank=rank + index) for index, card in enumerate(server.cards))
        rank += len(cards)
        servers.append(replace(server, cards=cards))
    other: dict[str, Any] = {}
    for table in tables:
        for name, value in table.other.items():
            if name in other and isinstance(value, list) and isinstance(other[name], list):
                other[name] = _joined(other[name], value)
            elif other.setdefault(name, value) != value:
                raise UserError(f"--merge: the tables differ in {printable(name)}; make them alike first")
    return checked(RankTable(tuple(servers), other))


def _joined(first: list[Any], second: list[Any]) -> list[Any]:
    """Two lists as one; entries of one super_pod_id as one entry, with the servers of both."""
    result = list(first)
    for entry in second:
        pod = entry.get("super_pod_id") if isinstance(entry, dict) else None
        same = [
            index
            for index, old in enumerate(result)
            if pod and isinstance(old, dict) and old.get("super_pod_id") == pod
        ]
        if same:
            old = result[same[0]]
            servers = [*old.get("server_list", []), *entry.get("server_list", [])]
            result[same[0]] = {**old, **entry, "server_list": servers}
        else:
            result.append(entry)
    return result


def checked(table: RankTable) -> RankTable:
    """The same table, once it has passed every check of `read_rank_table`."""
    return _parse(json.loads(table.to_json()))
