"""Messages: one line that a terminal and a log can take, whatever a file holds."""

import errno
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import MESSAGE_LIMIT, Parser, TemporaryFailure, TrainingStopped, UserError, essence, printable
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("sports car", "sports car"),
        ("红熊猫 café", "红熊猫 café"),
        ("a\nerror: b", "a\\nerror: b"),
        ("\x1b[2J\r\t\x00", "\\x1b[2J\\r\\t\\x00"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("a\u2028b\u202ec", "a\\u2028b\\u202ec"),
        (7, "7"),
        (["a\n"], "['a\\n']"),
    ],
)
def test_what_a_message_shows_of_a_value(value, text):
    assert printable(value) == text


def test_a_mistake_in_a_command_line_is_one_line():
    parser = Parser()
    parser.add_argument("--number", type=int)
    for flags in (["--number", "a\nb"], ["--number"], ["--other"], ["word"]):
        with pytest.raises(UserError, match=r"--help says what there is$") as raised:
            parser.parse_args(flags)
        assert str(raised.value).isprintable()


def test_a_long_value_keeps_both_its_ends():
    shown = printable("begin" + "x" * 1000 + "end", 60)
    assert len(shown) <= 60
    assert shown.startswith("beginx")
    assert shown.endswith("xend")


@settings(deadline=None)  # a busy machine is no fault
@given(st.text())
def test_any_message_is_one_printable_line_of_bounded_length(text):
    for error in (UserError(text * 500), TrainingStopped(text * 500)):
        message = str(error)
        assert message.isprintable()
        assert len(message) <= MESSAGE_LIMIT
        message.encode()  # also where the text has lone surrogates


def test_values_that_python_cannot_print_are_named_by_their_type():
    endless: list = []
    for _ in range(100_000):
        endless = [endless]
    assert printable(endless) == "<list>"
    if hasattr(sys, "get_int_max_str_digits"):
        assert printable(10**5000) == "<int>"


def test_a_file_name_can_forge_no_line_of_a_log():
    program = (
        "import logging\nfrom src.errors import run\n"
        "run(lambda: logging.info('%s: skipped', 'a.jpg\\nerror: b.jpg\\x1b[31m\\udcff'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONIOENCODING": "utf-8:strict"}, capture_output=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == b"a.jpg\\nerror: b.jpg\\x1b[31m\\udcff: skipped\n"
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EIO, ""), 75), (OSError(errno.ESTALE, ""), 75), (OSError(errno.EDQUOT, ""), 75),
        (OSError(errno.ENOTCONN, ""), 75), (OSError(errno.EROFS, ""), 2), (FileNotFoundError(errno.ENOENT, ""), 2),
    ],
)  # fmt: skip
def test_what_a_failing_disk_or_server_of_files_has_caused_may_pass(error, code):
    def read() -> None:
        raise error

    def wrapped() -> None:
        try:
            read()
        except OSError as first:
            raise OSError("it cannot be read") from first

    for work in (read, wrapped):
        with pytest.raises(UserError) as told:
            try:
                work()
            except OSError:
                raise UserError("data_url: x: cannot be read") from None
        assert told.value.exit_code == code


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (TemporaryFailure, 75), (TrainingStopped, 1)])
def test_the_exit_code_tells_bad_input_from_trouble_that_may_pass(kind, code):
    program = f"from src import errors\ndef main(): raise errors.{kind.__name__}('why')\nerrors.run(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "error: why\n")


@pytest.mark.parametrize(
    "text",
    [  # by MindSpore 2.10's own libraries
        "Framework Error Message:\n\nOut of Memory!!! Request memory size: 9G, Memory Statistic:\nTotal: 32G",
        "x\nDevice(id:0) memory isn't enough and alloc failed, kernel name: Conv2D-op1, alloc size: 9B.\n\nC++:",
        "Allocate memory failed, outer index: 3, alloc size: 9B, for kernel tensor: 0x5600219815e0",
    ],
)
def test_a_card_whose_memory_does_not_suffice_asks_for_a_smaller_batch(text):
    program = f"from src.errors import run\ndef main(): raise RuntimeError({text!r})\nrun(main)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    [line] = run.stderr.splitlines()
    assert line.startswith("error: batch_size: the device's memory does not suffice (")
    assert ("Request memory size: 9G" in line) or ("alloc size: 9B" in line)
    assert "double accumulation_step" in line


def test_memory_that_does_not_suffice_asks_for_a_smaller_batch():
    program = "import numpy as np\nfrom src.errors import run\nrun(lambda: np.empty((1 << 20, 3, 4096, 4096)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: batch_size: this machine's memory does not suffice (Unable to allocate 384. TiB")


SECTIONS = """{first}

----------------------------------------------------
- Ascend Error Message:
----------------------------------------------------
EI0006: Getting socket times out. Reason: Remote Rank did not send the data in time.
(Please search "CANN Common Error Analysis" at https://www.mindspore.cn/en for error code description)

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/runtime/graph_scheduler/actor/kernel_actor.cc:1 Launch
"""


@pytest.mark.parametrize(
    ("text", "shown", "code"),
    [
        (
            SECTIONS.format(first="Launch kernel failed, name:Default/AllGather-op0"),
            "op0 (CANN: EI0006: Getting socket",
            75,
        ),
        ("Create stream failed, ret:507899", "Create stream failed, ret:507899; npu", 75),
        (
            "The pointer[executor] is null.\n\n-----\n- C++ Call Stack:\n-----\nmindspore/ops/a.h:7 Get",
            "The pointer[executor] is null.; npu",
            2,
        ),
        (
            "aclnnInit not in /lib64/libopapi.so, please check!",
            "aclnnInit not in /lib64/libopapi.so, please check!; npu",
            2,
        ),
    ],
)
def test_what_cann_refuses_is_one_line_of_what_counts_and_may_pass_unless_it_lacks_something(text, shown, code):
    program = f"from src.errors import run\ndef main(): raise RuntimeError({text!r})\nrun(main)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == code
    [line] = run.stderr.splitlines()
    assert line.startswith("error: device_target: the Ascend card or its CANN refused an operation: ")
    assert shown in line
    assert "CANN's toolkit and its kernels for this chip must both be there" in line
    assert "C++" not in line


def test_an_unforeseen_error_of_mindspore_is_its_first_line_and_another_s_is_whole():
    text = "\nFor 'Add', shapes differ.\n\n--------\n- C++ Call Stack:\n--------\na.cc:1 Infer\n"
    assert essence(RuntimeError(text)) == "For 'Add', shapes differ."
    assert essence(ValueError("two\nlines")) == "two\nlines"
    assert essence(RuntimeError("")) == ""
