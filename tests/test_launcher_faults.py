"""The launcher in bad company: ranks that hang, guards that are killed, folders, ports and addresses that are none."""

import os
import shutil
import signal
import sys
import time

import pytest

from src.errors import UserError
from src.launcher.environment import first_cards, table_cards
from src.launcher.job import resolve
from src.launcher.processes import Pulse
from src.stops import TOGETHER
from tests.processes import ROOT, alive, end_all, finished, says, started, wait_until
from tests.test_launcher import guard_of, rank_of
from tests.test_rank_table import table, written

LIMIT = 40  # seconds in which a job must have ended

# A rank that beats twenty times a second, until the file `hang` is there: then rank argv[2] does nothing any more.
RANK = """
import os, signal, sys, time
from src.heartbeat import beat, finish
rank, what = int(os.environ["RANK_ID"]), sys.argv[1]
deaf = lambda *_: None
asked = []
spoiled = lambda number, _: sys.exit(2) if asked else asked.append(number)
kinds = {"deaf": deaf, "spoiled": spoiled}
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, kinds.get(what) or (lambda number, _: sys.exit(128 + number)))
print("ready", flush=True)
if what == "code":
    sys.exit(int(sys.argv[2]) if rank == 1 and "--again" not in sys.argv else 0)
if what in ("leaves", "ends") and rank == 1:
    for _ in range(1 if what == "ends" else 10):
        beat()
        time.sleep(0.2)
    sys.exit(0)
if what == "ends":
    sys.exit(0)
if what == "late":
    finish()
    while rank == 0:  # waits for the other in vain
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGSEGV)
if what != "mute":
    beat()
while not (os.path.exists("../hang") and rank == int(sys.argv[2])):
    if what != "mute":
        beat()
    time.sleep(0.05)
print("hangs", flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture
def job(tmp_path):
    """The command line of a launcher over two such ranks; what a failed test leaves is ended."""
    program = tmp_path / "rank.py"
    program.write_text(RANK)

    def command(what: str, who: object = 1, *options: object) -> list:
        launcher = [sys.executable, "-m", "src.launcher.supervisor", "--workers", 2, "--device_target", "CPU"]
        return [*launcher, *options, "--", sys.executable, program, what, who]

    yield command
    end_all(tmp_path)


def ready(folder):
    for rank in range(2):
        wait_until(says(folder / f"train_parallel{rank}/log.txt", "ready"), 20, f"rank {rank} starts")


def test_a_rank_that_gives_no_sign_of_life_ends_the_job_like_a_dead_one(job, tmp_path):
    process = started(job("beats"), tmp_path, HANG_LIMIT="2")
    ready(tmp_path)
    time.sleep(3)  # longer than the limit: ranks that beat are left alone
    assert process.poll() is None
    (tmp_path / "hang").touch()
    assert process.wait(LIMIT) == 75
    assert says(tmp_path / "output.txt", "rank 1 has given no sign of life for 2 s (HANG_LIMIT)")()
    wait_until(lambda: not alive(tmp_path), 2, "all processes end")


def test_a_rank_whose_folder_somebody_removes_still_gives_signs_of_life(job, tmp_path):
    process = started(job("beats"), tmp_path, HANG_LIMIT="2")
    ready(tmp_path)
    time.sleep(1)
    shutil.rmtree(tmp_path / "train_parallel1")
    time.sleep(3)
    assert process.poll() is None
    process.terminate()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_a_rank_that_leaves_before_its_work_is_done_ends_the_job(job, tmp_path):
    process = started(job("leaves"), tmp_path)
    assert process.wait(LIMIT) == 75
    assert says(tmp_path / "output.txt", "rank 1 ended with exit code 0 before its work was done")()
    wait_until(lambda: not alive(tmp_path), 2, "all processes end")


def test_a_program_that_says_no_more_than_that_it_has_joined_ends_well(job, tmp_path):
    process = started(job("ends"), tmp_path)
    assert process.wait(LIMIT) == 0


def test_a_rank_that_a_signal_ends_after_its_work_has_ended_well(job, tmp_path):
    process = started(job("late"), tmp_path)
    assert process.wait(LIMIT) == 0
    assert says(tmp_path / "output.txt", "rank 1 ended with signal 11 after its work was done")()
    wait_until(lambda: not alive(tmp_path), 2, "all processes end")


def test_ranks_that_are_to_end_at_once_may_end_anyhow(job, tmp_path):
    process = started(job("spoiled"), tmp_path)
    ready(tmp_path)
    for _ in range(2):
        process.terminate()
        wait_until(says(tmp_path / "output.txt", "stopping"), LIMIT, "the signal is noticed")
        time.sleep(3 * TOGETHER)
    assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_a_hung_rank_is_started_again_where_restarts_are_allowed(job, tmp_path):
    process = started(job("beats", 1, "--max_restarts", 1), tmp_path, HANG_LIMIT="2")
    ready(tmp_path)
    (tmp_path / "hang").touch()
    wait_until(says(tmp_path / "output.txt", "restart 1 of 1"), LIMIT, "the ranks are started again")
    assert process.wait(LIMIT) == 75  # the file is still there


def test_a_stopped_rank_does_not_keep_a_job_from_stopping(job, tmp_path):
    process = started(job("mute"), tmp_path)
    ready(tmp_path)
    os.kill(rank_of(process, 1), signal.SIGSTOP)
    process.terminate()
    began = time.monotonic()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 30
    wait_until(lambda: not alive(tmp_path), 2, "all processes end")


def test_no_deaf_rank_outlives_launcher_and_guard_killed_together(job, tmp_path):
    process = started(job("deaf", 0), tmp_path)
    ready(tmp_path)
    for pid in (guard_of(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive(tmp_path), LIMIT, "the ranks end")


def test_a_stopped_guard_does_not_keep_a_job_from_ending(job, tmp_path):
    process = started(job("mute"), tmp_path)
    ready(tmp_path)
    os.kill(guard_of(process), signal.SIGSTOP)
    process.terminate()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    wait_until(lambda: not alive(tmp_path), 2, "all processes end")


def test_a_rank_s_silence_is_told_from_what_it_has_announced(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    file = tmp_path / "heartbeat"
    pulse = Pulse(file, limit=10)

    def beat(seconds: float) -> None:
        file.write_text(f"{seconds:15.0f}\n")
        os.utime(file, ns=(int(now[0] * 1e9),) * 2)
        pulse.look()

    now[0] += 1000
    assert not pulse.is_overdue()  # it has never given a sign: it may be a program that does not
    beat(60)
    now[0] += 59
    assert not pulse.is_overdue()
    now[0] += 2
    assert pulse.is_overdue()
    beat(0)
    now[0] += 9
    assert not pulse.is_overdue()
    now[0] += 2
    assert pulse.is_overdue()
    pulse.excuse()
    assert not pulse.is_overdue()
    beat(0)
    assert pulse.pace == 0.0  # the launcher's own absence is no step
    now[0] += 4
    beat(0)
    assert pulse.pace == 4.0
    assert (pulse.stops_by(60, 900), Pulse(file, 10).stops_by(60, 900)) == (72.0, 900)
    assert not Pulse(file, limit=0).is_overdue()


# Exit codes.


@pytest.mark.parametrize(("code", "restarts"), [(2, False), (75, True), (1, True), (7, True)])
def test_only_bad_input_is_not_tried_again(job, tmp_path, code, restarts):
    run = finished(job("code", code, "--max_restarts", 1, "--restart_flags=--again"), tmp_path)
    assert (run.returncode, "restart 1 of 1" in run.stdout) == (0 if restarts else code, restarts), run.stdout


# What cannot be: one line, exit code 2, and nothing started.


def refused(run) -> str:
    assert run.returncode == 2, run.stdout
    assert "Traceback" not in run.stdout
    [line] = run.stdout.splitlines()
    return line


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_folder_that_cannot_be_written_is_named(job, tmp_path):
    place = tmp_path / "closed"
    place.mkdir()
    (place / "train_parallel1").write_text("a file")
    assert "train_parallel1: cannot be written" in refused(finished(job("beats"), place))
    (place / "train_parallel1").unlink()
    (place / "train_parallel1/log.txt").mkdir(parents=True)
    assert "log.txt: cannot be written (Is a directory)" in refused(finished(job("beats"), place))
    (place / "train_parallel.txt").mkdir()
    (place / "train_parallel1/log.txt").rmdir()
    run = finished(job("beats", 1, "--detach"), place)
    assert (run.returncode, "train_parallel.txt: cannot be written" in run.stdout) == (2, True)
    tmp_path.chmod(0o755)
    place.chmod(0o555)
    for entry in place.iterdir():
        entry.chmod(0o555)
    as_other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *job("beats")]
    line = refused(finished(as_other, place, PYTHONDONTWRITEBYTECODE="1", HOME="/"))
    assert "cannot be written (Permission denied); start from a folder that can be" in line


@pytest.mark.parametrize("name", ["log.txt", "scheduler.txt", "heartbeat"])
def test_a_pipe_in_a_file_s_place_is_refused_at_once(job, tmp_path, name):
    (tmp_path / "train_parallel0").mkdir()
    os.mkfifo(tmp_path / "train_parallel0" / name)
    assert f"train_parallel0/{name}: cannot be written (No such device" in refused(finished(job("beats"), tmp_path))


def test_links_that_lead_to_themselves_are_named(job, tmp_path):
    (tmp_path / "train_parallel0").symlink_to("train_parallel0")
    assert "train_parallel0: cannot be written (File exists)" in refused(finished(job("beats"), tmp_path))
    (tmp_path / "train_parallel0").unlink()
    (tmp_path / "train_parallel.txt").symlink_to("train_parallel.txt")
    run = finished(job("beats", 1, "--detach"), tmp_path)
    assert (run.returncode, "train_parallel.txt: cannot be written (Too many levels" in run.stdout) == (2, True)


def test_a_log_without_an_end_is_not_followed(job, tmp_path):
    (tmp_path / "train_parallel0").mkdir()
    (tmp_path / "train_parallel0/log.txt").symlink_to("/dev/zero")
    run = finished(job("code", 7), tmp_path)
    assert run.returncode == 7
    assert len(run.stdout) < 1000


def test_flags_for_a_restart_that_no_shell_would_take_are_named(job, tmp_path):
    line = refused(finished(job("beats", 1, "--restart_flags", "--resume 'auto"), tmp_path))
    assert '--restart_flags: is "--resume \'auto"; must be as in a shell (No closing quotation)' in line
    assert [path.name for path in tmp_path.iterdir()] == ["rank.py"]


def test_a_current_folder_that_is_gone_is_told(job, tmp_path):
    (tmp_path / "gone").mkdir()
    gone = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh", *job("beats")]
    assert "the current folder is not there any more" in refused(finished(gone, tmp_path))


def test_a_program_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, "-m", "src.launcher.supervisor", "--workers", 1, "--", tmp_path / "nothing"]
    run = finished(command, tmp_path)
    assert run.returncode == 2
    assert f"error: {tmp_path}/nothing: cannot be used to start rank 0 (No such file or directory)" in run.stdout


@pytest.mark.parametrize(
    ("workers", "environment", "message"),
    [
        (2, {"MASTER_PORT": "70000"}, "MASTER_PORT: is '70000'; must be a number from 0 to 65534"),
        (2, {"MASTER_PORT": "\u00b2"}, "MASTER_PORT: is"),
        (2, {"MASTER_ADDR": "a..b"}, "MASTER_ADDR: 'a..b' is no address of a server"),
        (2, {"MASTER_ADDR": "x" * 500}, "MASTER_ADDR:"),
        (2, {"MASTER_ADDR": "no-such-host.invalid"}, "'no-such-host.invalid' is no address of a server"),
        (2, {"MASTER_ADDR": "a..b", "SERVER_NUM": "2"}, "'a..b' is no address of a server"),
        (2, {"SERVER_NUM": "0"}, "SERVER_NUM: is '0'; must be a number from 1"),
        (2, {"SERVER_NUM": "9" * 30}, "SERVER_NUM: is"),
        (2, {"HANG_LIMIT": "-1"}, "HANG_LIMIT: is '-1'; must be a number from 0"),
        (10**20, {}, "WORKERS: is 100000000000000000000; must be 1 to 1024"),
        (0, {}, "WORKERS: is 0; must be 1 to 1024"),
    ],
)
def test_numbers_and_addresses_that_are_none_are_refused_at_once(tmp_path, workers, environment, message):
    command = [sys.executable, "-m", "src.launcher.supervisor", "--workers", workers, "--", sys.executable, "-V"]
    assert message in refused(finished(command, tmp_path, **environment))
    assert not list(tmp_path.iterdir())


def test_a_script_refuses_more_ranks_than_a_server_can_have(tmp_path):
    script = ROOT / "scripts/run_distribute_train_cpu.sh"
    run = finished(["bash", script, "9" * 20, ROOT / "src/configs/ddrnet23_digits.yaml"], tmp_path, timeout=20)
    assert (run.returncode, "WORKERS must be a number from 1 to 1024" in run.stdout) == (2, True), run.stdout


def test_addresses_are_taken_in_either_family():
    assert resolve("::1") == "::1"
    assert resolve("127.0.0.1") == "127.0.0.1"
    assert resolve("localhost") == "127.0.0.1"


# Cards.


@pytest.mark.parametrize(
    ("cards", "chosen", "here", "shown"),
    [
        ([4, 5], "", 0, "4,5"),
        ([5, 4], "", 8, "4,5"),
        ([4, 5], "4,5,6,7", 8, "4,5"),
        ([0, 1, 2, 3], "", 8, "0,1,2,3"),
        ([4, 5], "", 2, ""),  # a container with these two alone counts them from 0
    ],
)
def test_a_table_s_cards_are_the_visible_ones(tmp_path, cards, chosen, here, shown):
    for number in range(here):
        (tmp_path / f"davinci{number}").touch()
    (tmp_path / "davinci_manager").touch()
    inherited = {"ASCEND_RT_VISIBLE_DEVICES": chosen} if chosen else {}
    assert table_cards(cards, "Ascend", inherited, str(tmp_path)) == shown
    assert table_cards(cards, "CPU", inherited, str(tmp_path)) == ""


@pytest.mark.parametrize("text", ["4,5,x", "5,4", "4,4", "-1", "4;5", "4,,5"])
def test_a_list_of_cards_that_cann_would_read_in_part_is_refused(text):
    with pytest.raises(UserError, match=r"ASCEND_RT_VISIBLE_DEVICES: is .* ascending, such as 4,5,6,7"):
        first_cards(1, "Ascend", {"ASCEND_RT_VISIBLE_DEVICES": text})


def test_cards_that_the_user_has_hidden_are_not_used():
    hidden = {"ASCEND_RT_VISIBLE_DEVICES": "4,5"}
    with pytest.raises(UserError, match="without the rank table's card 6"):
        table_cards([5, 6], "Ascend", hidden)
    with pytest.raises(UserError, match="'4,5', 2 cards; 3 ranks need as many"):
        first_cards(3, "Ascend", hidden)
    assert first_cards(2, "Ascend", {"ASCEND_RT_VISIBLE_DEVICES": "4, 5,6"}) == "4,5"
    assert first_cards(2, "Ascend", {}) == ""


def test_a_table_of_no_server_is_no_job(tmp_path):
    content = table("127.0.0.1")
    content["server_list"][0]["host_ip"] = 7
    command = [sys.executable, "-m", "src.launcher.supervisor", "--rank_table", written(tmp_path, content), "--", "x"]
    assert "host_ip is 7; must be an IP address" in refused(finished(command, tmp_path))
