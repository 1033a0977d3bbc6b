"""The link between the launchers of several servers: each hears within seconds when another fails, stops or dies.

The first server's launcher listens; the others connect to it and it passes on what one of them says. Messages are lines
of JSON. A launcher's death closes its connection, which shows at once. A server without power closes none; so silence
counts as death too, but only after minutes: a launcher that stood still for a while, as on a machine that swaps, is
paused or waits for a disk, has lost nothing, and its ranks go on meanwhile.

Whoever connects must prove that it knows the job's key (`src.launcher.job`), by an HMAC over a number that the listener
has just drawn (challenge and response, as in RFC 2195), and the listener proves the same to it; so nobody else takes a
server's place or ends the job, and the key is never sent. What is said afterwards is not encrypted.
"""

import contextlib
import hmac
import json
import secrets
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any, Callable, Optional

from src.errors import TEMPORARY, TemporaryFailure, UserError
from src.launcher.job import Job

BEAT = 2.0  # seconds between two signs of life
SILENCE = 300.0  # seconds without one after which a server counts as dead
JOIN_LIMIT = 1800.0  # seconds in which all servers must come, MindSpore's own MS_TOPO_TIMEOUT
HELLO_LIMIT = 5.0  # seconds in which whoever connects must have said who it is
MOST_STRANGERS = 64  # connections that have not done so yet
LONGEST_LINE = 65536  # bytes


@dataclass
class News:
    """What the other servers have said: a failure and its exit code, or a signal to stop by; None and 0: nothing."""

    failed: Optional[str] = None
    code: int = TEMPORARY
    stop: int = 0


class Connection:
    """A connection as lines of JSON objects, read and written without waiting."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.since = time.monotonic()
        self._in, self._out = b"", b""
        self._early: list[dict[str, Any]] = []
        peer.setblocking(False)
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> Optional[list[dict[str, Any]]]:
        """The messages that have come; None: the connection has ended. Raises ValueError on what is no message."""
        early, self._early = self._early, []
        try:
            content = self.peer.recv(LONGEST_LINE)
        except (BlockingIOError, InterruptedError):
            return early
        except OSError:
            content = b""
        if not content:
            return early or None
        *lines, self._in = (self._in + content).split(b"\n")
        if len(self._in) > LONGEST_LINE:
            raise ValueError("a line without end")
        try:
            messages = [json.loads(line) for line in lines]
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("no object")
        return early + messages

    def unread(self, messages: list[dict[str, Any]]) -> None:
        """Put messages back, for whoever reads next."""
        self._early = messages + self._early

    def tell(self, message: dict[str, Any]) -> None:
        """Send what can be sent now; the rest goes with the next message."""
        self._out = (self._out + json.dumps(message).encode() + b"\n")[-(1 << 20) :]
        with contextlib.suppress(OSError):  # what is wrong with the connection shows when it is read
            self._out = self._out[self.peer.send(self._out) :]

    def close(self) -> None:
        """End the connection."""
        self.peer.close()


class Link:
    """Without peers, as on a single server: nobody says anything, and all others are done.

    Args:
        peers: the connections to other servers, with their names.
        relays: whether what one says is passed on to the others.
        attempt: which attempt of the job this is, as the servers have agreed.

    Attributes:
        code: the highest exit code that a peer has ended with.
    """

    def __init__(self, peers: Optional[dict[Connection, str]] = None, relays: bool = False, attempt: int = 0) -> None:
        self.code = 0
        self.attempt = attempt
        self._relays = relays
        self._peers = dict(peers or {})
        self._looked = time.monotonic()
        self._heard = dict.fromkeys(self._peers, self._looked)
        self._done: set[Connection] = set()
        self._gone: set[Connection] = set()
        self._said_done = False
        self._beaten = 0.0

    def poll(self) -> News:
        """What has been said since the last call."""
        news = News()
        now = time.monotonic()
        if now - self._looked > 2 * BEAT:  # it was this launcher that stood still, perhaps all of them
            self._heard = dict.fromkeys(self._peers, now)
        self._looked = now
        if now - self._beaten > BEAT:
            self._beaten = now
            self._tell({})
        for peer, name in self._peers.items():
            if peer in self._gone:
                continue
            self._read(peer, news)
            if peer not in self._done and time.monotonic() - self._heard[peer] > SILENCE:
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
        for peer in self._peers:
            peer.close()

    def _tell(self, message: dict[str, Any], but: Optional[Connection] = None) -> None:
        for peer in self._peers:
            if peer is not but and peer not in self._gone:
                peer.tell(message)

    def _read(self, peer: Connection, news: News) -> None:
        name = self._peers[peer]
        try:
            messages = peer.read()
        except ValueError:
            messages, reason = None, f"{name} has sent what is no message"
        else:
            reason = f"the launcher of {name} has gone"
        if messages is None:
            self._gone.add(peer)
            if peer not in self._done:
                news.failed = news.failed or reason
            return
        if messages:
            self._heard[peer] = time.monotonic()
        for message in messages:
            self._take(peer, message, news)

    def _take(self, peer: Connection, message: dict[str, Any], news: News) -> None:
        """Act on one message; what is not as this launcher would say it counts as a failure, never as success."""
        if "failed" in message:
            news.failed = f"{self._peers[peer]}: {str(message['failed'])[:1000]}"
            news.code = _exit_code(message.get("code"), TEMPORARY) or TEMPORARY
        if "stop" in message:
            known = (int(signal.SIGINT), int(signal.SIGTERM))
            news.stop = message["stop"] if message["stop"] in known else int(signal.SIGTERM)
        if "done" in message:
            self._done.add(peer)
            self.code = max(self.code, _exit_code(message["done"], TEMPORARY))
        if self._relays and ("failed" in message or "stop" in message):
            self._tell(message, but=peer)


def _exit_code(value: Any, otherwise: int) -> int:
    """An exit code that a message gives; another value where it gives none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256 else otherwise


def connect(
    job: Job, attempt: int, cancelled: Callable[[], bool], say: Callable[[str], None] = print
) -> Optional[Link]:
    """Join the other servers' launchers; returns when all are there.

    Args:
        job: its `node` 0 listens at `host`, on the port after `port`.
        attempt: which attempt this is here; the servers agree on the highest, as one may have been started anew.
        cancelled: asked often; waiting ends when it is true.
        say: takes a line for the log.

    Returns:
        The link, or None where it was cancelled.

    Raises:
        UserError: the servers were started for different jobs.
        TemporaryFailure: not all servers came within JOIN_LIMIT, or the port is taken.
    """
    deadline = time.monotonic() + JOIN_LIMIT
    try:
        return (_gather if job.node == 0 else _join)(job, attempt, deadline, cancelled, say)
    except TimeoutError:
        raise TemporaryFailure(
            f"MASTER_ADDR, NODE_RANK: not all {job.nodes} servers met at {job.host}:{job.port + 1} within "
            f"{JOIN_LIMIT:.0f} s"
        ) from None


def _proof(job: Job, role: str, challenge: Any, hello: dict[str, Any]) -> str:
    """What only a server of the job can say to a challenge."""
    facts = [role, str(challenge), *(str(hello.get(name)) for name in ("node", "nodes", "attempt", "challenge"))]
    return hmac.new(job.key, "\0".join(facts).encode("utf-8", "surrogatepass"), "sha256").hexdigest()


class _Stranger:
    """A connection to the first server that has not yet shown whose it is."""

    def __init__(self, peer: socket.socket, address: str) -> None:
        self.lines, self.address = Connection(peer), address
        self.challenge = secrets.token_hex(16)
        self.lines.tell({"challenge": self.challenge})

    def hello(self) -> Optional[dict[str, Any]]:
        """What it says of itself, once it has; raises ValueError where it has gone or talks rubbish."""
        messages = self.lines.read()
        if messages is None or len(messages) > 1 or time.monotonic() - self.lines.since > HELLO_LIMIT:
            raise ValueError
        return messages[0] if messages else None


def _gather(
    job: Job, attempt: int, deadline: float, cancelled: Callable[[], bool], say: Callable[[str], None]
) -> Optional[Link]:
    peers: dict[int, tuple[Connection, dict[str, Any]]] = {}
    strangers: list[_Stranger] = []
    family = socket.AF_INET6 if ":" in job.host else socket.AF_INET
    try:
        server = socket.create_server((job.host, job.port + 1), family=family, backlog=MOST_STRANGERS)
    except OSError as error:
        raise TemporaryFailure(
            f"MASTER_PORT: {job.host}:{job.port + 1} cannot be listened on ({error.strerror})"
        ) from error
    with server:
        server.setblocking(False)
        try:
            while len(peers) < job.nodes - 1:
                if cancelled():
                    return None
                if time.monotonic() > deadline:
                    raise TimeoutError
                _admit(server, strangers)
                for stranger in list(strangers):
                    _examine(job, stranger, strangers, peers, say)
                _drop_gone(peers)
                time.sleep(0.05)
            agreed = max([attempt, *(hello["attempt"] for _, hello in peers.values())])
            for lines, hello in peers.values():
                lines.tell({"proof": _proof(job, "welcome", hello["challenge"], hello), "attempt": agreed})
            chosen = {lines: f"server {node}" for node, (lines, _) in peers.items()}
            peers = {}
            return Link(chosen, relays=True, attempt=agreed)
        finally:
            for lines in [stranger.lines for stranger in strangers] + [lines for lines, _ in peers.values()]:
                lines.close()


def _drop_gone(peers: dict[int, tuple[Connection, dict[str, Any]]]) -> None:
    """Wait again for servers whose launchers have ended before the others had come."""
    for node, (lines, _) in list(peers.items()):
        try:
            messages = lines.read()
        except ValueError:
            messages = None
        if messages is None:
            del peers[node]
            lines.close()
        else:
            lines.unread(messages)


def _admit(server: socket.socket, strangers: list[_Stranger]) -> None:
    """Take up new connections; of too many that say nothing the oldest goes."""
    with contextlib.suppress(OSError):
        while True:
            peer, address = server.accept()
            strangers.append(_Stranger(peer, str(address[0])))
            if len(strangers) > MOST_STRANGERS:
                strangers.pop(0).lines.close()


def _examine(
    job: Job,
    stranger: _Stranger,
    strangers: list[_Stranger],
    peers: dict[int, tuple[Connection, dict[str, Any]]],
    say: Callable[[str], None],
) -> None:
    """Make a stranger that has shown whose it is a peer; turn it away where it is none."""
    try:
        hello = stranger.hello()
    except ValueError:
        hello = {}
    if hello is None:
        return
    strangers.remove(stranger)
    node, proof = hello.get("node"), hello.get("proof")
    knows = isinstance(proof, str) and hmac.compare_digest(
        proof.encode("utf-8", "surrogatepass"), _proof(job, "join", stranger.challenge, hello).encode()
    )
    right = all(type(hello.get(name)) is int for name in ("node", "nodes", "attempt")) and hello["attempt"] >= 0
    if knows and right and isinstance(node, int) and hello["nodes"] == job.nodes and 0 < node < job.nodes:
        if node in peers:  # it was started again before the others had come
            peers[node][0].close()
        peers[node] = (stranger.lines, hello)
        return
    if hello:
        say(f"a stranger from {stranger.address} was turned away: it does not know this job's key")
        stranger.lines.tell({"refused": True})
    stranger.lines.close()


def _join(
    job: Job, attempt: int, deadline: float, cancelled: Callable[[], bool], _say: Callable[[str], None]
) -> Optional[Link]:
    while time.monotonic() < deadline:
        if cancelled():
            return None
        try:
            lines = Connection(socket.create_connection((job.host, job.port + 1), timeout=2.0))
        except OSError:  # nobody there yet
            time.sleep(0.2)
            continue
        link = _introduce(job, attempt, lines, deadline, cancelled)
        if link is not None:
            return link
        lines.close()
        time.sleep(0.2)
    raise TimeoutError


def _introduce(
    job: Job, attempt: int, lines: Connection, deadline: float, cancelled: Callable[[], bool]
) -> Optional[Link]:
    """Show the first server whose launcher this is, and wait until all have come."""
    hello = {"node": job.node, "nodes": job.nodes, "attempt": attempt, "challenge": secrets.token_hex(16)}
    said_hello = False
    while time.monotonic() < deadline and not cancelled():
        try:
            messages = lines.read()
        except ValueError:
            messages = None
        if messages is None:  # somebody else, or it has gone
            return None
        for index, message in enumerate(messages):
            if "challenge" in message and not said_hello:
                said_hello = True
                lines.tell({**hello, "proof": _proof(job, "join", message["challenge"], hello)})
            elif message.get("refused"):
                raise UserError(
                    f"MASTER_ADDR: the launcher at {job.host}:{job.port + 1} is of another job; rank table, "
                    "SERVER_NUM, number of ranks and JOB_TOKEN must be the same on all servers, NODE_RANK must differ"
                )
            elif message.get("proof") == _proof(job, "welcome", hello["challenge"], hello):
                lines.unread(messages[index + 1 :])
                agreed = message.get("attempt")
                return Link({lines: "server 0"}, attempt=agreed if type(agreed) is int else attempt)
            elif message:
                return None
        if not said_hello and time.monotonic() - lines.since > HELLO_LIMIT:
            return None
        time.sleep(0.05)
    return None
