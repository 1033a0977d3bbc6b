"""The link between the launchers of several servers: only those of the job come in, no failure becomes a success."""

import contextlib
import json
import signal
import socket
import threading
import time

import pytest

from src.errors import TemporaryFailure, UserError
from src.launcher import link as link_module
from src.launcher.job import Job, Rank
from src.launcher.link import Connection, Link, connect
from tests.processes import wait_until


def free_port() -> int:
    """A port with a free one after it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            try:
                two.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except OSError:
                continue
            return one.getsockname()[1]


def job_of(node: int, port: int, nodes: int = 2, key: bytes = b"key") -> Job:
    ranks = (Rank(node, 0, 1),)
    return Job(("true",), ranks, nodes, "folder", nodes=nodes, node=node, port=port, key=key)


class Server(threading.Thread):
    """One server's launcher, as far as it meets the others."""

    def __init__(self, job: Job, attempt: int = 0) -> None:
        super().__init__(daemon=True)
        self.job, self.attempt = job, attempt
        self.cancelled, self.said = False, []
        self.link = self.error = None
        self.start()

    def run(self) -> None:
        try:
            self.link = connect(self.job, self.attempt, lambda: self.cancelled, self.said.append)
        except UserError as error:
            self.error = error

    def met(self) -> Link:
        self.join(20)
        assert self.link is not None, self.error
        return self.link


@pytest.fixture
def port() -> int:
    return free_port()


def stranger(port: int, *lines: bytes) -> socket.socket:
    """Somebody who connects and says something."""
    deadline = time.monotonic() + 10
    while True:
        try:
            peer = socket.create_connection(("127.0.0.1", port + 1), timeout=5)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    for line in lines:
        peer.sendall(line)
    return peer


RUBBISH = [
    b"GET / HTTP/1.1\r\n\r\n",
    b'{"node": 1, "nodes": 2, "attempt": 0}\n',
    b'{"node": 1, "nodes": 2, "attempt": 0, "challenge": "x", "proof": "' + b"0" * 64 + b'"}\n',
    b'{"node": 1, "nodes": 2, "attempt": 0, "proof": 7}\n',
    b'{"node": 1, "nodes": 2, "attempt": 0, "proof": "\\ud800"}\n',
    b'{"node": "\\ud800", "proof": "x"}\n',
    b'{"node": 1, "nodes": 2, "attempt": 0, "challenge": "\\udfff", "proof": "x"}\n',
    b'{"node": 1e999, "nodes": -Infinity, "attempt": NaN, "proof": "x"}\n',
    b'{"node": ' + b"9" * 5000 + b', "proof": "x"}\n',
    b'{"node": [], "nodes": {}, "attempt": null, "proof": "' + "é".encode() + b'"}\n',
    b"[]\n7\nnull\n",
    b"[" * 30000 + b"\n",
    b"\xff\xfe\x00\n",
    b"x" * 200_000,
    b"{}\n{}\n{}\n",
    b"",
]


def test_servers_of_the_job_meet_whatever_strangers_say_or_keep_to_themselves(port):
    first = Server(job_of(0, port, nodes=3))
    strangers = []
    for line in RUBBISH:
        peer = stranger(port)
        strangers.append(peer)
        with contextlib.suppress(OSError):  # it may be turned away while it speaks
            peer.sendall(line)
    second, third = Server(job_of(1, port, nodes=3)), Server(job_of(2, port, nodes=3))
    links = [server.met() for server in (first, second, third)]
    assert first.said
    assert all("does not know this job's key" in line for line in first.said)
    links[2].tell_stop(signal.SIGINT)
    heard: list[int] = []
    wait_until(lambda: heard.append(links[1].poll().stop | links[0].poll().stop) or signal.SIGINT in heard, 5, "a stop")
    for link in links:
        link.close()
    for peer in strangers:
        peer.close()


def test_one_who_drips_bytes_delays_neither_the_others_nor_a_stop(port):
    first = Server(job_of(0, port))
    peers = [stranger(port, b'{"node"') for _ in range(3)]
    dripping = threading.Event()

    def drip() -> None:
        while not dripping.wait(0.2):
            for peer in peers:
                with contextlib.suppress(OSError):
                    peer.sendall(b" ")

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    first.cancelled = True
    first.join(5)
    assert first.link is None
    assert first.error is None
    assert time.monotonic() - began < 2
    first = Server(job_of(0, port))
    second = Server(job_of(1, port))
    first.met()
    second.met()
    assert time.monotonic() - began < 10
    dripping.set()


def test_a_server_with_another_key_is_refused_at_once(port):
    first = Server(job_of(0, port))
    second = Server(job_of(1, port, key=b"another"))
    second.join(10)
    assert "is of another job; rank table" in str(second.error)
    assert second.error.exit_code == 2
    assert first.is_alive()
    Server(job_of(1, port)).met()
    first.met()


@pytest.mark.parametrize(("node", "nodes"), [(7, 2), (0, 2), (1, 3)])
def test_a_server_whose_number_does_not_fit_is_refused(port, node, nodes):
    first = Server(job_of(0, port))
    joins = Server(Job(("true",), (Rank(1, 0, 1),), 2, "f", nodes=nodes, node=node or 2, port=port, key=b"key"))
    joins.join(10)
    assert isinstance(joins.error, UserError)
    first.cancelled = True


def test_a_listener_that_does_not_know_the_key_is_not_believed(port):
    """Who listens in server 0's place and says that all is well, or that all has failed."""
    with socket.create_server(("127.0.0.1", port + 1)) as impostor:
        second = Server(job_of(1, port))
        peer, _ = impostor.accept()
        peer.sendall(b'{"challenge": "1"}\n{"proof": "' + b"0" * 64 + b'", "attempt": 0}\n{"done": 0}\n')
        time.sleep(0.5)
        assert second.link is None
        peer.close()
    second.cancelled = True


def test_a_server_that_was_started_again_takes_its_own_place_and_the_attempt_of_the_others(port):
    first = Server(job_of(0, port, nodes=3), attempt=2)
    gone = Server(job_of(1, port, nodes=3))
    time.sleep(0.5)
    gone.cancelled = True
    gone.join(5)
    third = Server(job_of(2, port, nodes=3), attempt=2)
    time.sleep(0.5)
    assert first.link is None  # the one that has gone does not count
    again = Server(job_of(1, port, nodes=3))
    assert [server.met().attempt for server in (first, again, third)] == [2, 2, 2]


def test_servers_that_do_not_come_are_trouble_that_may_pass(port, monkeypatch):
    monkeypatch.setattr(link_module, "JOIN_LIMIT", 0.5)
    for node in (0, 1):
        server = Server(job_of(node, port))
        server.join(10)
        assert isinstance(server.error, TemporaryFailure)
        assert "not all 2 servers met" in str(server.error)


# What a peer says once it is in.


@pytest.fixture
def pair():
    """A link with one peer, and that peer's end."""
    mine, other = socket.socketpair()
    link = Link({Connection(mine): "server 1"}, relays=True)
    yield link, other
    link.close()
    other.close()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"failed": "rank 1", "code": 7}, 7),
        ({"failed": "rank 1", "code": 0}, 75),
        ({"failed": "rank 1"}, 75),
        ({"failed": "rank 1", "code": "0"}, 75),
        ({"failed": None, "code": True}, 75),
        ({"failed": ["x"] * 10, "code": 10**30}, 75),
    ],
)
def test_a_failure_is_never_a_success(pair, message, code):
    link, other = pair
    other.sendall(json.dumps(message).encode() + b"\n")
    news = link.poll()
    assert news.failed.startswith("server 1: ")
    assert news.code == code


@pytest.mark.parametrize("done", [None, "0", -1, 256, [], True, 1.5])
def test_an_end_with_a_code_that_is_none_is_no_success(pair, done):
    link, other = pair
    other.sendall(json.dumps({"done": done}).encode() + b"\n")
    link.poll()
    assert link.code == 75


@pytest.mark.parametrize("content", [b"no JSON\n", b"[]\n", b"7\n", b"[" * 5000 + b"\n", b"\xff\n", b'{"a"' * 40000])
def test_a_peer_that_talks_rubbish_counts_as_failed(pair, content):
    link, other = pair
    threading.Thread(target=other.sendall, args=(content,), daemon=True).start()
    found = []
    wait_until(lambda: found.append(link.poll().failed) or found[-1] is not None, 5, "it is noticed")
    assert found[-1] == "server 1 has sent what is no message"
    assert link.poll().failed is None  # told once
    assert not link.all_done()


@pytest.mark.parametrize(("stop", "number"), [(2, 2), (15, 15), (9, 15), ("x", 15), ([], 15)])
def test_a_stop_is_by_a_signal_that_ranks_save_at(pair, stop, number):
    link, other = pair
    other.sendall(json.dumps({"stop": stop}).encode() + b"\n")
    assert link.poll().stop == number


def test_a_peer_that_goes_after_its_end_is_no_failure_and_before_it_is_one(pair):
    link, other = pair
    other.sendall(b'{"done": 0}\n')
    other.close()
    for _ in range(3):
        assert link.poll().failed is None
    assert link.all_done()
    mine, other = socket.socketpair()
    link = Link({Connection(mine): "server 1"})
    other.close()
    news = link.poll()
    assert (news.failed, news.code) == ("the launcher of server 1 has gone", 75)
