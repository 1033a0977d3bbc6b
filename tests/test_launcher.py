"""The supervisor, with ranks that are small programs: nobody is left behind, whoever dies, and the exit code tells."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from src.launcher.job import share_of_cores
from src.launcher.link import SILENCE
from src.stops import STOPS, TOGETHER
from tests.processes import ROOT, alive, end_all, finished, says, started, wait_until
from tests.test_rank_table import WRONG, table, written

LIMIT = 30  # seconds in which a job with a dead member must have ended
CONFIG = ROOT / "src/configs/ddrnet23_digits.yaml"

# A rank: says what it was given, then does as argv[1] says where it is rank argv[2], and otherwise waits.
RANK = """
import os, signal, subprocess, sys, time
rank = int(os.environ["RANK_ID"])
what, who = sys.argv[1], sys.argv[2]
def stop(number, _):
    open(f"saved{rank}-{number}", "w").close()
    sys.exit(128 + number)
if what != "deaf":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
else:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
names = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "DEVICE_NUM", "RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH")
names += ("ASCEND_RT_VISIBLE_DEVICES", "MS_ROLE", "MS_WORKER_NUM", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")
print({name: os.environ.get(name) for name in names}, sorted(os.sched_getaffinity(0)), sys.argv[3:], flush=True)
if what == "child":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", os.getcwd()])
mine = who == "all" or int(who) == rank
print("ready", flush=True)
if what == "end":
    sys.exit(0)
if what == "fail" and mine:
    while "ready" not in open(f"../train_parallel{rank ^ 1}/log.txt").read():  # to save where it is asked to
        time.sleep(0.05)
    for line in range(30):
        print("line", line)
    sys.exit(7)
if what == "fail once" and mine and "--resume" not in sys.argv:
    sys.exit(7)
if what == "fail once" and "--resume" in sys.argv:
    sys.exit(0)
if what == "mistake" and mine:
    print("error: batch_size: is odd")
    sys.exit(2)
time.sleep(120)
"""


@pytest.fixture
def job(tmp_path):
    """Starts the supervisor over ranks that do as they are told; ends what a failed test leaves."""
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    path = written(tmp_path, table("127.0.0.1"))

    def command(what: str, who="all", *options: str, rank_table: str = path) -> list:
        rank = ["--", sys.executable, program, what, who]
        return [sys.executable, "-m", "src.launcher.supervisor", "--rank_table", rank_table, *options, *rank]

    yield command
    end_all(tmp_path)


def rank_of(process: subprocess.Popen, rank: int) -> int:
    """The process of one rank."""
    found = [(pid, environment(pid)) for pid in children(process.pid)]
    [pid] = [pid for pid, values in found if values.get("RANK_ID") == str(rank) and values["MS_ROLE"] == "MS_WORKER"]
    return pid


def guard_of(process: subprocess.Popen):
    """The guard that is the launcher's child; None: there is none at the moment."""
    found = [pid for pid in children(process.pid) if "RANK_ID" not in environment(pid)]
    return found[0] if len(found) == 1 else None


def both_ready(folder, first: int = 0):
    for rank in (first, first + 1):
        wait_until(says(folder / f"train_parallel{rank}/log.txt", "ready"), 60, f"rank {rank} starts")


def ended(process: subprocess.Popen, folder, seconds: float = LIMIT) -> int:
    """The exit code, once nothing of the job is left."""
    code = process.wait(seconds)
    wait_until(lambda: not alive(folder), 2, "all processes end")
    return code


def test_the_log_of_an_earlier_start_stays(job, tmp_path):
    for start in range(3):
        assert finished(job("end"), tmp_path, START=str(start)).returncode == 0
    for rank in range(2):
        logs = [tmp_path / f"train_parallel{rank}" / name for name in ("log.1.txt", "log.2.txt", "log.txt")]
        assert all("RANK_ID" in log.read_text() for log in logs)


def test_each_rank_gets_its_environment_its_cores_its_folder_and_a_log(job, tmp_path):
    content = table("127.0.0.1", cards=2)
    content["server_list"][0]["device"][1]["device_id"] = "5"
    path = written(tmp_path, content)
    left = {"RANK_TABLE_FILE": path, "MINDSPORE_HCCL_CONFIG_PATH": path, "HCCL_EXEC_TIMEOUT": "3600", "DEVICE_ID": "7"}
    left["HCCL_CONNECT_TIMEOUT"] = ""  # to import MindSpore sets it, here in pytest
    run = finished(job("end", "all", rank_table=path), tmp_path, **left)
    assert run.returncode == 0, run.stdout
    cores = sorted(os.sched_getaffinity(0))
    for rank in range(2):
        log = (tmp_path / f"train_parallel{rank}/log.txt").read_text()
        expected = {
            "RANK_ID": str(rank),
            "RANK_SIZE": "2",
            "DEVICE_ID": str(rank),  # the number that CANN gives the second card that it shows
            "DEVICE_NUM": "2",
            "RANK_TABLE_FILE": None,
            "MINDSPORE_HCCL_CONFIG_PATH": None,
            "ASCEND_RT_VISIBLE_DEVICES": "0,5",
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": "2",
            "HCCL_CONNECT_TIMEOUT": "1800",
            "HCCL_EXEC_TIMEOUT": "3600",
        }
        assert log == f"{expected} {share_of_cores(cores, rank, 2)} []\nready\n"
    assert "ready" in run.stdout  # rank 0's progress is shown


def test_cores_are_shared_out_without_overlap_or_remainder():
    shares = [share_of_cores(range(10, 20), local, 3) for local in range(3)]
    assert sorted(core for share in shares for core in share) == list(range(10, 20))
    assert min(map(len, shares)) >= 3
    assert [share_of_cores([4, 6], local, 3) for local in range(3)] == [[4], [6], [4]]


def test_a_failing_rank_ends_the_job_with_its_code_and_its_last_20_lines(job, tmp_path):
    began = time.monotonic()
    run = finished(job("fail", 1), tmp_path)
    assert run.returncode == 7
    assert time.monotonic() - began < LIMIT
    assert "rank 1 ended with exit code 7" in run.stdout
    assert [line for line in run.stdout.splitlines() if "line" in line and "last" not in line] == [
        f"  line {number}" for number in range(10, 30)
    ]
    assert (tmp_path / f"train_parallel0/saved0-{signal.SIGTERM}").exists()
    assert not alive(tmp_path)


def test_a_killed_rank_ends_the_job(job, tmp_path):
    process = started(job("wait"), tmp_path)
    both_ready(tmp_path)
    victim = rank_of(process, 1)
    os.kill(victim, signal.SIGKILL)
    assert ended(process, tmp_path) == 128 + signal.SIGKILL
    assert says(tmp_path / "output.txt", "rank 1 ended with signal 9, perhaps out of memory")()


def test_a_rank_that_ignores_its_end_is_killed(job, tmp_path):
    process = started(job("deaf"), tmp_path)
    both_ready(tmp_path)
    victim = rank_of(process, 0)
    os.kill(victim, signal.SIGKILL)
    assert ended(process, tmp_path) == 128 + signal.SIGKILL


def test_a_killed_scheduler_ends_the_job(tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    options = ["--workers", 2, "--device_target", "CPU", "--", sys.executable, program, "wait", "all"]
    process = started([sys.executable, "-m", "src.launcher.supervisor", *options], tmp_path)
    try:
        both_ready(tmp_path)
        [scheduler] = [pid for pid in children(process.pid) if environment(pid).get("MS_ROLE") == "MS_SCHED"]
        os.kill(scheduler, signal.SIGKILL)
        assert ended(process, tmp_path) == 128 + signal.SIGKILL
        assert says(tmp_path / "output.txt", "the scheduler ended with signal 9")()
    finally:
        end_all(tmp_path)


def test_what_a_rank_has_started_ends_with_it(job, tmp_path):
    process = started(job("child"), tmp_path)
    both_ready(tmp_path)
    wait_until(lambda: len(alive(tmp_path)) >= 5, 10, "the ranks' children run")
    process.terminate()
    assert ended(process, tmp_path) == 128 + signal.SIGTERM


def test_ranks_save_and_end_when_the_launcher_is_killed(job, tmp_path):
    process = started(job("wait"), tmp_path)
    both_ready(tmp_path)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(tmp_path), LIMIT, "the ranks and the guard end")
    assert (tmp_path / f"train_parallel1/saved1-{signal.SIGTERM}").exists()


def test_no_rank_outlives_launcher_and_guard_killed_together(job, tmp_path):
    process = started(job("wait"), tmp_path)
    both_ready(tmp_path)
    for pid in (guard_of(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive(tmp_path), LIMIT, "the ranks end")


def test_a_killed_guard_is_replaced_and_deaf_ranks_do_not_outlive_the_launcher(job, tmp_path):
    process = started(job("deaf"), tmp_path)
    both_ready(tmp_path)
    guard = guard_of(process)
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: guard_of(process) not in (None, guard), 5, "a new guard")
    process.kill()
    process.wait()
    wait_until(lambda: not alive(tmp_path), LIMIT, "the ranks end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_ranks_once_and_is_the_exit_code(job, tmp_path, number):
    process = started(job("wait", "all", "--max_restarts", "3"), tmp_path)
    both_ready(tmp_path)
    process.send_signal(number)
    assert ended(process, tmp_path) == 128 + number
    for rank in range(2):
        assert (tmp_path / f"train_parallel{rank}/saved{rank}-{number.value}").exists()
    assert not says(tmp_path / "output.txt", "restart")()


@pytest.mark.parametrize("number", set(STOPS) - {signal.SIGINT, signal.SIGTERM})
def test_a_closed_terminal_or_a_batch_system_stops_the_ranks_in_good_order(job, tmp_path, number):
    process = started(job("wait"), tmp_path)
    both_ready(tmp_path)
    for _ in range(2):  # as `timeout` does: its child, and then its group
        process.send_signal(number)
        time.sleep(TOGETHER / 4)
    assert not says(tmp_path / "output.txt", "stopping at once")()
    assert ended(process, tmp_path) == 128 + signal.SIGTERM
    assert (tmp_path / f"train_parallel1/saved1-{signal.SIGTERM}").exists()


def test_a_job_under_nohup_outlives_its_terminal(job, tmp_path):
    process = started(["nohup", *job("wait")], tmp_path)
    both_ready(tmp_path)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert not says(tmp_path / "output.txt", "stopping")()
    process.send_signal(signal.SIGTERM)
    assert ended(process, tmp_path) == 128 + signal.SIGTERM


def test_a_second_signal_ends_even_deaf_ranks(job, tmp_path):
    process = started(job("deaf"), tmp_path)
    both_ready(tmp_path)
    process.send_signal(signal.SIGINT)
    wait_until(says(tmp_path / "output.txt", "stopping"), 5, "the first signal is noticed")
    time.sleep(2 * TOGETHER)
    process.send_signal(signal.SIGINT)
    assert ended(process, tmp_path) == 128 + signal.SIGINT


def test_ranks_are_started_again_from_the_newest_checkpoint(job, tmp_path):
    run = finished(job("fail once", 1, "--max_restarts", "2", "--restart_flags=--resume auto"), tmp_path)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("restart 1 of 2, from the newest checkpoint") == 1
    assert "restart 2" not in run.stdout
    assert "['--resume', 'auto']" in (tmp_path / "train_parallel0/log.txt").read_text()


def test_after_the_last_restart_the_job_has_failed(job, tmp_path):
    run = finished(job("fail", 0, "--max_restarts", "1"), tmp_path)
    assert (run.returncode, run.stdout.count("ended with exit code 7")) == (7, 2)


def test_a_user_s_mistake_is_not_tried_again(job, tmp_path):
    run = finished(job("mistake", 0, "--max_restarts", "3"), tmp_path)
    assert run.returncode == 2
    assert "batch_size: is odd" in run.stdout
    assert "restart" not in run.stdout


def test_detached_it_returns_at_once_and_is_stopped_by_its_process_id(job, tmp_path):
    run = finished(job("wait", "all", "--detach"), tmp_path, timeout=20)
    assert run.returncode == 0
    pid = int(run.stdout.split("kill ")[1])
    both_ready(tmp_path)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(tmp_path), LIMIT, "the job ends")
    assert (tmp_path / f"train_parallel0/saved0-{signal.SIGTERM}").exists()
    assert "stopping" in (tmp_path / "train_parallel.txt").read_text()


def test_a_reader_that_has_gone_does_not_stop_the_job(job, tmp_path):
    with subprocess.Popen(
        [str(word) for word in job("fail", 1)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        process.stdout.close()
        assert ended(process, tmp_path) == 7


def test_a_rank_table_without_this_server_starts_nothing(job, tmp_path):
    run = finished(job("end", rank_table=written(tmp_path, table("192.0.2.7"))), tmp_path)
    assert (run.returncode, len(run.stdout.splitlines())) == (2, 1), run.stdout
    assert not (tmp_path / "train_parallel0").exists()


# Several servers, all on this machine: NODE_RANK and SERVER_ID tell them apart.


def free_ports() -> int:
    """A port that is free, like the one after it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture
def servers(job, tmp_path):
    """Starts the supervisors of two servers with two ranks each."""
    content = table("127.0.0.1", "127.0.0.2")
    path = written(tmp_path, content)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports())}

    def start(what: str, who="all", *options: str, silence: float = SILENCE) -> list[subprocess.Popen]:
        # Signs of life by which also a busy machine's launchers are told from dead ones.
        begin = f"from src.launcher import link, supervisor; link.SILENCE, link.BEAT = {silence}, {silence / 10}; "
        begin += "supervisor.run(supervisor.main)"
        processes = []
        for server in ("127.0.0.1", "127.0.0.2"):
            command = job(what, who, *options, rank_table=path)
            command[1:3] = ["-c", begin]
            processes.append(started(command, tmp_path, SERVER_ID=server, **common))
        return processes

    return start


def test_a_failure_on_one_server_ends_the_others(servers, tmp_path):
    processes = servers("fail", 3)
    assert [process.wait(LIMIT) for process in processes] == [7, 7]
    assert says(tmp_path / "output.txt", "server 1: rank 3 ended with exit code 7")()
    assert not alive(tmp_path)


def test_a_killed_launcher_ends_the_other_servers(servers, tmp_path):
    processes = servers("wait")
    both_ready(tmp_path)
    both_ready(tmp_path, 2)
    processes[0].kill()
    assert processes[1].wait(LIMIT) == 75
    wait_until(lambda: not alive(tmp_path), LIMIT, "all ranks end")
    assert says(tmp_path / "output.txt", "the launcher of server 0 has gone")()


def test_launchers_that_stood_still_for_a_while_lose_nothing(servers, tmp_path):
    """As on machines that swap or are paused; one alone, then both at once."""
    processes = servers("wait", silence=10)
    both_ready(tmp_path)
    both_ready(tmp_path, 2)
    for seconds, still in ((4, processes[1:]), (11, processes)):
        for process in still:
            process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        for process in still:
            process.send_signal(signal.SIGCONT)
    time.sleep(2)
    assert [process.poll() for process in processes] == [None, None], (tmp_path / "output.txt").read_text()
    processes[0].terminate()
    assert [process.wait(LIMIT) for process in processes] == [128 + signal.SIGTERM] * 2
    assert not says(tmp_path / "output.txt", "silent")()


def test_a_server_that_falls_silent_ends_the_others(servers, tmp_path):
    processes = servers("wait", silence=3)
    both_ready(tmp_path)
    both_ready(tmp_path, 2)
    processes[1].send_signal(signal.SIGSTOP)  # as a server without power: its connection stays open
    assert processes[0].wait(LIMIT) == 75
    assert says(tmp_path / "output.txt", "server 1 has been silent for 3 s")()
    processes[1].kill()
    wait_until(lambda: not alive(tmp_path), LIMIT, "all ranks end")


def test_silence_counts_as_death_after_minutes():
    """Longer than machines pause and disks stall, shorter than a rank's HANG_LIMIT."""
    assert 2 * 60 <= SILENCE <= 10 * 60


def test_a_signal_to_one_server_stops_all(servers, tmp_path):
    processes = servers("wait")
    both_ready(tmp_path)
    both_ready(tmp_path, 2)
    processes[1].send_signal(signal.SIGINT)
    assert [process.wait(LIMIT) for process in processes] == [128 + signal.SIGINT] * 2
    assert sorted(path.name for path in tmp_path.glob("*/saved*")) == [f"saved{rank}-2" for rank in range(4)]
    assert not alive(tmp_path)


def test_all_servers_restart_together_and_end_well(servers, tmp_path):
    processes = servers("fail once", 2, "--max_restarts", "1", "--restart_flags=--resume auto")
    assert [process.wait(2 * LIMIT) for process in processes] == [0, 0], (tmp_path / "output.txt").read_text()
    assert (tmp_path / "output.txt").read_text().count("restart 1 of 1") == 2


# The shell scripts.


def script(name: str, *arguments) -> list:
    return ["bash", ROOT / "scripts" / name, *arguments]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run_distribute_train_ascend.sh", [], "RANK_TABLE_FILE and CONFIG_PATH are needed"),
        ("run_distribute_train_ascend.sh", ["nowhere.json", CONFIG], "RANK_TABLE_FILE 'nowhere.json' is no file"),
        ("run_distribute_train_ascend.sh", [CONFIG, "nowhere.yaml"], "CONFIG_PATH 'nowhere.yaml' is no file"),
        ("run_distribute_train_msrun_ascend.sh", ["0", CONFIG], "CARDS must be a number such as 8, not '0'"),
        ("run_distribute_train_cpu.sh", ["two", CONFIG], "WORKERS must be a number such as 8, not 'two'"),
        ("run_distribute_train_cpu.sh", ["2", CONFIG, "--max_restarts", "x"], "--max_restarts must be followed"),
        ("run_distribute_eval_ascend.sh", [CONFIG, CONFIG], "CHECKPOINT_PATH are needed"),
        ("run_distribute_eval_cpu.sh", ["2", CONFIG, "nowhere.ckpt"], "CHECKPOINT_PATH 'nowhere.ckpt' is no file"),
    ],
)
def test_a_script_says_its_usage_and_exits_2(tmp_path, name, arguments, message):
    run = finished(script(name, *arguments), tmp_path, PYTHON=sys.executable)
    assert run.returncode == 2
    assert f"error: {message}" in run.stdout or f"{message}" in run.stdout.splitlines()[0], run.stdout
    assert "usage: bash" in run.stdout
    assert not list(tmp_path.iterdir())


def test_a_wrong_configuration_or_table_starts_nothing(tmp_path):
    path = written(tmp_path, WRONG["same rank"][0])
    name = "run_distribute_train_ascend.sh"
    run = finished(script(name, path, CONFIG), tmp_path, PYTHON=sys.executable)
    assert (run.returncode, run.stdout.count("\n")) == (2, 1)
    assert "rank_id 1 stands there twice" in run.stdout
    run = finished(script(name, path, CONFIG, "--epochs", "none"), tmp_path, PYTHON=sys.executable)
    assert (run.returncode, "epochs" in run.stdout) == (2, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.json"]


def test_a_taken_port_is_found_at_the_start(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = finished(
            script("run_distribute_train_cpu.sh", 2, CONFIG), tmp_path, PYTHON=sys.executable, MASTER_PORT=str(port)
        )
    assert run.returncode == 2
    assert f"MASTER_PORT: 127.0.0.1:{port} cannot be used" in run.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SERVER_NUM": "2", "NODE_RANK": "2", "MASTER_ADDR": "127.0.0.1"}, "NODE_RANK: is 2, but SERVER_NUM is 2"),
        ({"SERVER_NUM": "2"}, "MASTER_ADDR: with several servers"),
        ({"SERVER_NUM": "two"}, "SERVER_NUM: is 'two'"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT: is 'x'"),
    ],
)
def test_servers_that_do_not_fit_are_refused(tmp_path, environment, message):
    run = finished(
        script("run_distribute_train_msrun_ascend.sh", 8, CONFIG), tmp_path, PYTHON=sys.executable, **environment
    )
    assert run.returncode == 2
    assert message in run.stdout
    assert not list(tmp_path.iterdir())


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet reaped."""
    return [int(word) for word in (ROOT / f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment(pid: int) -> dict[str, str]:
    """What a process was started with, as far as the job has set it; of one that has ended nothing."""
    try:
        pairs = (ROOT / f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if pair.startswith(("RANK_ID=", "MS_ROLE=")))
