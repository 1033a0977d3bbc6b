"""The link between the supervisors of several servers: each hears within seconds when another fails, stops or dies.

The first server's supervisor listens; the others connect to it and it passes on what one of them says. Messages are
lines of JSON. Silence counts as death, as a server without power closes no connection.
"""

import contextlib
import json
import select
import selectors
import socket
import time
from dataclasses import dataclass
from typing import Any, Callable, Optional

from src.errors import UserError

BEAT = 2.0  # seconds between two signs of life
SILENCE = 15.0  # seconds without one after which a server counts as dead
JOIN_LIMIT = 1800.0  # seconds in which all servers must come, MindSpore's own MS_TOPO_TIMEOUT


@dataclass
class News:
    """What the other servers have said: a failure and its exit code, or a signal to stop by; None and 0: nothing."""

    failed: Optional[str] = None
    code: int = 1
    stop: int = 0


class Link:
    """Without peers, as on a single server: nobody says anything, and all others are done.

    Attributes:
        code: the highest exit code that a peer has ended with.
    """

    def __init__(self, peers: Optional[dict[socket.socket, str]] = None, relays: bool = False) -> None:
        self.code = 0
        self._relays = relays
        self._peers = dict(peers or {})
        self._buffers = dict.fromkeys(self._peers, b"")
        self._heard = {peer: time.monotonic() for peer in self._peers}
        self._done: set[socket.socket] = set()
        self._said_done = False
        self._beaten = 0.0
        self._selector = selectors.DefaultSelector()
        for peer in self._peers:
            peer.setblocking(False)
            self._selector.register(peer, selectors.EVENT_READ)

    def poll(self) -> News:
        """What has been said since the last call."""
        news = News()
        now = time.monotonic()
        if self._peers and now - self._beaten > BEAT:
            self._beaten = now
            self._tell({})
        for key, _ in self._selector.select(0) if self._peers else ():
            self._read(key.fileobj, news)
        for peer, name in self._peers.items():
            if peer not in self._done and now - self._heard[peer] > SILENCE:
                news.failed = news.failed or f"{name} has been silent for {SILENCE:.0f} s"
        return news

    def tell_failed(self, code: int, message: str) -> None:
        """Say that a rank here has failed."""
        self._tell({"failed": message, "code": code})

    def tell_stop(self, number: int) -> None:
        """Say that this server was asked to stop."""
        self._tell({"stop": int(number)})

    def tell_done(self, code: int) -> None:
        """Say, once, that all ranks here have ended well."""
        if not self._said_done:
            self._said_done = True
            self._tell({"done": code})

    def all_done(self) -> bool:
        """Whether all peers have said so too."""
        return len(self._done) == len(self._peers)

    def close(self) -> None:
        """Leave."""
        self._selector.close()
        for peer in self._peers:
            peer.close()

    def _tell(self, message: dict[str, Any], but: Optional[socket.socket] = None) -> None:
        for peer in self._peers:
            if peer is not but:
                with contextlib.suppress(OSError):  # what is wrong with it shows when it is read
                    peer.send(json.dumps(message).encode() + b"\n")

    def _read(self, peer: socket.socket, news: News) -> None:
        try:
            content = peer.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._selector.unregister(peer)
            if peer not in self._done:
                news.failed = news.failed or f"the launcher of {self._peers[peer]} has gone"
            return
        self._heard[peer] = time.monotonic()
        *lines, self._buffers[peer] = (self._buffers[peer] + content).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "failed" in message:
                news.failed, news.code = f"{self._peers[peer]}: {message['failed']}", message["code"]
            news.stop = message.get("stop", news.stop)
            if "done" in message:
                self._done.add(peer)
                self.code = max(self.code, message["done"])
            if self._relays and ("failed" in message or "stop" in message):
                self._tell(message, but=peer)


def connect(node: int, nodes: int, host: str, port: int, attempt: int, cancelled: Callable[[], bool]) -> Optional[Link]:
    """Join the other servers' supervisors; returns when all are there.

    Args:
        node: which server this is; 0 listens.
        nodes: number of servers.
        host, port: where server 0 listens.
        attempt: which attempt of the job this is; all servers count alike.
        cancelled: asked often; waiting ends when it is true.

    Returns:
        The link, or None where it was cancelled.

    Raises:
        UserError: not all servers came within JOIN_LIMIT, or their numbers do not fit.
    """
    deadline = time.monotonic() + JOIN_LIMIT
    hello = {"node": node, "nodes": nodes, "attempt": attempt}
    try:
        if node == 0:
            return _gather(nodes, host, port, attempt, deadline, cancelled)
        return _join(hello, host, port, deadline, cancelled)
    except TimeoutError:
        raise UserError(
            f"MASTER_ADDR, NODE_RANK: not all {nodes} servers met at {host}:{port} within {JOIN_LIMIT:.0f} s"
        ) from None


def _gather(
    nodes: int, host: str, port: int, attempt: int, deadline: float, cancelled: Callable[[], bool]
) -> Optional[Link]:
    peers: dict[int, socket.socket] = {}
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        while len(peers) < nodes - 1:
            if cancelled():
                return None
            if time.monotonic() > deadline:
                raise TimeoutError
            if not select.select([server], [], [], 0.2)[0]:
                continue
            peer, _ = server.accept()
            hello = _hello(peer)
            if hello == {"node": hello.get("node"), "nodes": nodes, "attempt": attempt} and hello["node"] not in peers:
                peers[hello["node"]] = peer
            else:
                peer.close()
    for peer in peers.values():
        peer.sendall(b"{}\n")
    return Link({peer: f"server {node}" for node, peer in peers.items()}, relays=True)


def _hello(peer: socket.socket) -> dict[str, Any]:
    """A new peer's first line; nothing where it says something else."""
    peer.settimeout(5.0)
    with contextlib.suppress(OSError, ValueError):
        message = json.loads(_line(peer))
        return message if isinstance(message, dict) else {}
    return {}


def _line(peer: socket.socket) -> bytes:
    """One line, byte by byte, so that nothing of the next one is taken."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 200:
        byte = peer.recv(1)
        if not byte:
            raise ConnectionError
        line += byte
    return line


def _join(
    hello: dict[str, int], host: str, port: int, deadline: float, cancelled: Callable[[], bool]
) -> Optional[Link]:
    while time.monotonic() < deadline:
        if cancelled():
            return None
        with contextlib.suppress(OSError):
            peer = socket.create_connection((host, port), timeout=2.0)
            peer.sendall(json.dumps(hello).encode() + b"\n")
            peer.settimeout(max(deadline - time.monotonic(), 0.1))
            while not cancelled():
                if select.select([peer], [], [], 0.2)[0]:
                    _line(peer)
                    return Link({peer: "server 0"})
        time.sleep(0.2)
    raise TimeoutError
