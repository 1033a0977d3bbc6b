"""The job: what is to run on this server, who else takes part, and where they meet.

The launcher's only module that reads the environment.
"""

import argparse
import contextlib
import hashlib
import ipaddress
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.launcher.environment import (
    DEFAULT_PORT,
    first_cards,
    rank_environment,
    scheduler_environment,
    table_cards,
)
from src.launcher.rank_table import find_server, read_rank_table

MOST_RANKS = 1024  # of a server
MOST_SERVERS = 4096
HANG_LIMIT = 900  # seconds; a step takes seconds, and what takes longer is announced
HEARTBEAT = "heartbeat"  # in a rank's folder


@dataclass(frozen=True)
class Rank:
    """A rank of this server: its number, and its place among the `local_world` ranks here."""

    rank: int
    local: int
    local_world: int


@dataclass(frozen=True)
class Job:
    """What to run on this server, and who else takes part.

    Attributes:
        command: the program and its arguments, the same for each rank.
        ranks: of this server.
        world: ranks on all servers.
        folder: rank r runs in <folder><r>/.
        environment: what the launcher was started with.
        cards: of this server, which the ranks use; '': as many as there are ranks, from the first on.
        device_target: Ascend, GPU or CPU.
        nodes, node: number of servers, and which this is.
        host, port: of the scheduler, and with the port after it of the first server's launcher; 0: any free one.
        key: what the servers of the job know and others do not.
        max_restarts: how often all ranks are started again after a failure.
        restart_flags: what is added to the command then.
        hang_limit: seconds without a sign of life after which a rank counts as hung; 0: never.
    """

    command: tuple[str, ...]
    ranks: tuple[Rank, ...]
    world: int
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cards: str = ""
    device_target: str = "Ascend"
    nodes: int = 1
    node: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    key: bytes = b""
    max_restarts: int = 0
    restart_flags: tuple[str, ...] = ()
    hang_limit: float = HANG_LIMIT

    @property
    def needs_scheduler(self) -> bool:
        """Whether the ranks must find each other."""
        return self.world > 1

    def rank_folder(self, rank: Rank) -> Path:
        """Where a rank runs."""
        return Path(f"{self.folder}{rank.rank}").absolute()

    def heartbeat_file(self, rank: Rank) -> Path:
        """What a rank writes to as a sign of life."""
        return self.rank_folder(rank) / HEARTBEAT

    def rank_environment(self, rank: Rank, port: int) -> dict[str, str]:
        """All of a rank's environment."""
        return rank_environment(
            self.environment,
            self.device_target,
            rank.rank,
            self.world,
            rank.local,
            self.cards,
            (self.host, port),
            str(self.heartbeat_file(rank)),
        )

    def scheduler_environment(self, port: int) -> dict[str, str]:
        """All of the scheduler's environment."""
        return scheduler_environment(self.environment, self.world, (self.host, port))


def plan(options: argparse.Namespace) -> Job:
    """The job that the command line and the environment ask for.

    Raises:
        UserError: the rank table, a number, an address or a port is wrong.
    """
    environment = dict(os.environ)
    try:
        restart_flags = tuple(shlex.split(options.restart_flags))
    except ValueError as error:
        raise UserError(f"--restart_flags: is {options.restart_flags!r}; must be as in a shell ({error})") from error
    common: dict[str, Any] = {
        "command": tuple(options.command),
        "folder": options.folder,
        "device_target": options.device_target,
        "max_restarts": options.max_restarts,
        "restart_flags": restart_flags,
        "environment": environment,
        "hang_limit": environment_number("HANG_LIMIT", HANG_LIMIT, 0, 10**7),
    }
    host = environment.get("MASTER_ADDR", "")
    secret = [environment.get("JOB_TOKEN", "")]
    if options.rank_table is not None:
        table = read_rank_table(options.rank_table)
        server = find_server(table, environment.get("SERVER_ID", ""))
        nodes, node, world = len(table.servers), table.servers.index(server), table.world
        ranks = [card.rank for card in server.cards]
        cards = table_cards([card.device_id for card in server.cards], options.device_target, environment)
        first = table.servers[0]
        host = host or (nodes > 1 and first.reached_by) or ""
        secret.append(table.to_json())
    else:
        nodes = environment_number("SERVER_NUM", 1, 1, MOST_SERVERS)
        node = environment_number("NODE_RANK", 0, 0, MOST_SERVERS)
        if not 1 <= options.workers <= MOST_RANKS:
            raise UserError(
                f"WORKERS: is {str(options.workers)[:40]}; must be 1 to {MOST_RANKS}, the ranks of a server"
            )
        if node >= nodes:
            raise UserError(f"NODE_RANK: is {node}, but SERVER_NUM is {nodes}; servers count from 0 to {nodes - 1}")
        if nodes > 1 and not host:
            raise UserError("MASTER_ADDR: with several servers, it must be the address of the one with NODE_RANK 0")
        world = options.workers * nodes
        ranks = [node * options.workers + index for index in range(options.workers)]
        cards = first_cards(options.workers, options.device_target, environment)
        secret.append(f"{world} ranks on {nodes} servers")
    port = environment_number("MASTER_PORT", DEFAULT_PORT if nodes > 1 else 0, 0, 65534)
    host = resolve(host) if host else "127.0.0.1"
    job = Job(
        ranks=tuple(Rank(rank, local, len(ranks)) for local, rank in enumerate(ranks)),
        world=world,
        cards=cards,
        nodes=nodes,
        node=node,
        host=host if nodes > 1 else "127.0.0.1",
        port=port,
        key=hashlib.sha256("\0".join(secret).encode("utf-8", "surrogateescape")).digest(),
        **common,
    )
    if node == 0 and port:
        if job.needs_scheduler:
            check_port(job.host, port)
        if nodes > 1:
            check_port(job.host, port + 1)
    return job


def environment_number(name: str, default: int, least: int, most: int) -> int:
    """A number from the environment.

    Raises:
        UserError: it is none, or out of its bounds.
    """
    text = os.environ.get(name, "") or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise UserError(f"{name}: is {text[:40]!r}; must be a number from {least} to {most}")
    return int(text)


def resolve(host: str) -> str:
    """The address that a name stands for, IPv4 where there is a choice.

    Raises:
        UserError: none is known.
    """
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no host name"
        raise UserError(f"MASTER_ADDR: {host[:200]!r} is no address of a server ({reason}); set it") from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def share_of_cores(cores: Sequence[int], local: int, local_world: int) -> list[int]:
    """The cores of one of `local_world` processes: contiguous, none of them another's where there are enough."""
    cores = sorted(cores)
    if len(cores) < local_world:
        return [cores[local % len(cores)]]
    return cores[len(cores) * local // local_world : len(cores) * (local + 1) // local_world]


def check_port(host: str, port: int) -> None:
    """Raise UserError if another program listens on a port of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT: {host}:{port} cannot be used ({error.strerror}); end the program that has it, or choose "
                f"another port, such as MASTER_PORT={free_port(host)}"
            ) from error


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        with contextlib.suppress(OSError):
            probe.bind((host, 0))
        return probe.getsockname()[1] or DEFAULT_PORT + 1
