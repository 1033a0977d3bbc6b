"""Saves that are killed at every call by which they change the disk: one whole checkpoint is always there."""

import json
from pathlib import Path

import pytest

from tests.shims import compiled, run_behind

# Kills the process before its KILL_AT-th call that gives, takes or syncs a name.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define NEXT(name) dlsym(RTLD_NEXT, name)
static int calls;
static void count(void) {
    const char *text = getenv("KILL_AT");
    if (text && ++calls == atoi(text)) kill(getpid(), SIGKILL);
}
int rename(const char *from, const char *to) {
    count();
    return ((int (*)(const char *, const char *))NEXT("rename"))(from, to);
}
int unlink(const char *path) {
    count();
    return ((int (*)(const char *))NEXT("unlink"))(path);
}
int fsync(int file) {
    count();
    return ((int (*)(int))NEXT("fsync"))(file);
}
"""
# MindSpore is imported once; each save is a child's.
SAVES = """
import json, os, shutil, sys
from pathlib import Path
import mindspore as ms
from mindspore import nn
from src.args import Config
from src.trainers.checkpoint import Checkpoints, Cursor

class Step:
    def __init__(self):
        self.network, self.updates = nn.Dense(2, 2), ms.Parameter(ms.Tensor(0), name="updates")

    def set(self, value):
        self.network.weight.set_data(ms.Tensor([[value] * 2] * 2, ms.float32))
        self.updates.set_data(ms.Tensor(value))

    def state(self):
        return {"updates": self.updates}

kind, folder = sys.argv[1], Path(sys.argv[2])
steps = [Step() for _ in range(3)]
for value, step in enumerate(steps):
    step.set(value)

def save(checkpoints, value, place):
    checkpoints.save(steps[value].network, steps[value], Config(), Cursor(*place), False)

def seen(checkpoints):
    saved, _ = checkpoints.newest_good()
    weights = ms.load_checkpoint(str(saved.path))["weight"].asnumpy()
    assert (weights == saved.arrays["updates"]).all(), "weights and state are not of one save"
    return int(saved.arrays["updates"])

outcomes, number = [], 0
while True:
    number += 1
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints = Checkpoints(folder, "DDRNet23", keep=1 if kind != "best" else 2)
    save(checkpoints, 0, (1, 1))
    checkpoints.save_best(steps[0].network, 0.5)
    child = os.fork()
    if child == 0:
        os.environ["KILL_AT"] = str(number)
        if kind == "best":
            checkpoints.save_best(steps[1].network, 0.6)
        else:
            save(checkpoints, 1, (1, 1) if kind == "the same name" else (1, 2))
        os._exit(0)
    code = os.waitpid(child, 0)[1]
    checkpoints.lock()
    checkpoints._lock.close()
    if kind == "best":
        best = ms.load_checkpoint(str(checkpoints.best_path))["weight"].asnumpy()
        outcomes.append(int(best[0, 0]))
    else:
        outcomes.append(seen(checkpoints))
        save(checkpoints, 2, (1, 1) if kind == "the same name" else (1, 3))  # a run that goes on
        assert seen(checkpoints) == 2
        left = sorted(path.name for path in folder.iterdir() if "best" not in path.name and path.name != ".lock")
        assert len(left) == 2, left
    if code == 0:
        break
    assert code == 9, code
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    return compiled(SHIM, tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("kind", ["the same name", "another name", "best"])
def test_wherever_a_save_is_killed_the_old_or_the_new_is_whole(kind, shim, tmp_path):
    done = run_behind(shim, SAVES, kind, tmp_path / "ckpt_0")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) > 4  # what was killed, and one that was not
    assert outcomes == sorted(outcomes)  # the old until the new is whole
    assert set(outcomes) == {0, 1}
