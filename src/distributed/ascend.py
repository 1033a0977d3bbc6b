"""What must stand on a machine before MindSpore can use its Ascend cards, and one line each for what is missing.

MindSpore itself logs some of it over many lines, and raises the rest from deep inside.
"""

import importlib.util
import logging
import os
import re
from pathlib import Path

import mindspore as ms

from src.errors import UserError, essence

INSTALL = "https://www.mindspore.cn/install"
SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
WHEELS = "pip install sympy /usr/local/Ascend/ascend-toolkit/latest/lib64/{te,hccl}-*-py3-none-any.whl"
# Below this many cores MindSpore dispatches operators by one thread, which cannot run a graph that branches (2.10 on
# ms_backend: "Can not build a sub graph which contains ConditionSwitch"); the training step branches at an overflow.
FEW_CORES = 12
_SATURATING = re.compile(r"Ascend910(A|B|ProA|ProB|PremiumA)|Ascend310.*")
_DRIVER = re.compile(r"libascend_hal|libdrv|libdcmi|libmmpa")

_log = logging.getLogger(__name__)


def prepare(world: int) -> None:
    """Check what can be checked before the device is taken, and set what MindSpore must be told.

    Args:
        world: number of ranks.

    Raises:
        UserError: several ranks are to meet, and CANN's hccl package is not there.
    """
    if world > 1 and importlib.util.find_spec("hccl") is None and not dry_run():
        raise UserError(f"several cards need CANN's Python package hccl, which is not installed; {WHEELS}")
    if importlib.util.find_spec("te") is None:
        _log.warning("CANN's Python package te is not installed; operators that it compiles will fail; %s", WHEELS)
    unfit = unfit_cann()
    if unfit:
        _log.warning("%s", unfit)
    if len(os.sched_getaffinity(0)) < FEW_CORES:
        ms.set_context(inter_op_parallel_num=2)


def dry_run() -> bool:
    """Whether MindSpore only compiles and launches nothing, so that no counter moves (MS_SIMULATION_LEVEL)."""
    return bool(os.environ.get("MS_SIMULATION_LEVEL"))


def saturates() -> bool:
    """Whether float16 clips to its largest number instead of overflowing to infinity on the chip that was taken.

    The first 910s (910A to 910ProB; what is sold as 910B is a 910B1 to 910B4) and the 310s know nothing else; others do
    so where MS_ASCEND_CHECK_OVERFLOW_MODE asks for it. `mindspore.amp` decides alike.
    """
    if os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE":
        return True
    try:
        chip = ms.hal.get_device_name(0)
    except ValueError:  # the dry run has no chip
        return False
    return _SATURATING.fullmatch(chip) is not None


def fitting_cann() -> list[str]:
    """The versions of CANN that the installed MindSpore says it fits, as MindSpore's own check has them."""
    try:
        from mindspore.run_check._check_version import AscendEnvChecker

        return list(AscendEnvChecker(None).version)
    except (ImportError, AttributeError, TypeError):
        return []


def unfit_cann() -> str:
    """Why the CANN that the environment names does not fit this MindSpore; '' where it does or cannot be told."""
    home, fitting = os.environ.get("ASCEND_HOME_PATH", ""), fitting_cann()
    try:
        text = (Path(home) / "compiler" / "version.info").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"^Version=(\d+\.\d+)", text, re.MULTILINE)
    if not home or not match or not fitting or match[1] in fitting:
        return ""
    return (
        f"CANN {match[1]} ({home}) does not fit MindSpore {ms.__version__}, which asks for {', '.join(fitting)}; "
        f"install one of these, {INSTALL}"
    )


def missing_card(device_id: int) -> str:
    """Why a card cannot be used once MindSpore has taken to Ascend: there are fewer; '' where it is there."""
    count = ms.hal.device_count("Ascend")
    if device_id < count or dry_run():
        return ""
    return f"this process sees {count} cards, counted from 0 (npu-smi info; ASCEND_RT_VISIBLE_DEVICES hides others)"


def take_card(world: int) -> None:
    """Have MindSpore open the card now, where one that is broken or not free can still be named.

    It would do so at the first operator. Several ranks open theirs where they meet: MindSpore chooses each one's card
    then, if nobody else has.

    Raises:
        RuntimeError: what MindSpore says of a card that cannot be opened.
    """
    if world == 1:
        ms.runtime.synchronize()


def has_plugin() -> bool:
    """Whether the installed MindSpore was built for Ascend too; PyPI's wheels for Linux are."""
    return any((Path(ms.__file__).parent / "lib" / "plugin").glob("libmindspore_ascend.so*"))


def explain(error: Exception, device_id: int) -> str:
    """One line on why a card cannot be used, and what to install."""
    text = str(error)
    if not has_plugin():
        return (
            f"the MindSpore {ms.__version__} that is installed has no part for Ascend; install one that has, {INSTALL}"
        )
    missing = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", text)
    unfit = unfit_cann()
    if unfit:
        return unfit
    if missing and _DRIVER.match(missing[1]):
        return (
            f"{missing[1]} of the Ascend driver cannot be found; install driver and firmware until `npu-smi info` "
            "lists the cards, or add /usr/local/Ascend/driver/lib64 to LD_LIBRARY_PATH"
        )
    if missing:
        versions = f"{', '.join(fitting_cann())} for MindSpore {ms.__version__}"
        return f"{missing[1]} of CANN cannot be found; install CANN ({versions}) and run: {SET_ENV}"
    symbol = re.search(r"undefined symbol: (\w+)", text)
    if symbol:
        return (
            f"the CANN that is installed lacks {symbol[1]}; MindSpore {ms.__version__} asks for one of "
            f"{', '.join(fitting_cann())}, {INSTALL}"
        )
    lacks = re.search(r"\b((?:acl|Hccl|hccl|ge)\w+) is null", text)
    if lacks:
        return (
            f"the CANN that is installed is not whole: its {lacks[1]} cannot be found; install CANN "
            f"({', '.join(fitting_cann())} for MindSpore {ms.__version__}) and run: {SET_ENV}"
        )
    return (
        f"card {device_id} is not there or not free ({essence(error) or type(error).__name__}); npu-smi info lists the "
        "cards and who uses them"
    )
