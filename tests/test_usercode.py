"""Code of the user's own: files as modules, and what a call may not do to the run."""

import builtins
import copy
import io
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from minipost.datasets import usercode
from minipost.datasets.named import load_reward
from minipost.datasets.rewards import ask
from minipost.datasets.usercode import guarded
from minipost.errors import MinipostError
from minipost.tasks.base import Problem

PROBLEMS, TEXTS = [Problem("a"), Problem("b")], ["x", "yyy"]
LENGTHS = "    return [float(len(text)) for text in completions]\n"


# ---- what is put back

def everything():
    """All that a call may change and that a run relies on."""
    usercode.keep_the_end()  # from the first call on
    return [read() for _, read, _ in usercode.HELD] + [
        torch.is_inference_mode_enabled(), sys.stdout, sys.stderr, sys.stdout.closed,
        os._exit, os.abort, os.execv, os.execve, os.kill, copy.deepcopy, json.dumps,
        math.isfinite, random.Random, re.search, signal.signal, time.perf_counter,
        shutil.rmtree, builtins.print, torch.zeros(1).device, torch.zeros(1).dtype,
        (torch.ones(1, requires_grad=True) * 2).requires_grad]


def warn_as_error():
    warnings.simplefilter("error")


CHANGES = [
    ("torch's gradient mode", lambda: torch.set_grad_enabled(False)),
    ("torch's gradient mode", lambda: torch.no_grad().__enter__()),
    ("torch's gradient mode", lambda: KEPT.append(torch.inference_mode()) or KEPT[-1].__enter__()),
    ("torch's default dtype", lambda: torch.set_default_dtype(torch.float64)),
    ("torch's default device", lambda: torch.set_default_device("meta")),
    ("torch's number of threads", lambda: torch.set_num_threads(2)),
    ("torch's deterministic mode", lambda: torch.set_deterministic_debug_mode("warn")),
    ("torch's deterministic mode", lambda: torch.set_deterministic_debug_mode("error")),
    ("torch's matmul precision", lambda: torch.set_float32_matmul_precision("high")),
    ("torch's anomaly detection", lambda: torch.set_anomaly_enabled(True)),
    ("torch's autocast", lambda: torch.autocast("cpu").__enter__()),
    ("numpy's error handling", lambda: np.seterr(all="raise")),
    ("the filters of warnings", warn_as_error),
    ("the working folder", lambda: os.chdir("/")),
    ("the umask", lambda: os.umask(0o777)),
    ("os.getcwd", lambda: setattr(os, "getcwd", None)),
    ("os.umask", lambda: setattr(os, "umask", None)),
    ("the garbage collector", lambda: usercode.gc.disable()),
    ("the recursion limit", lambda: sys.setrecursionlimit(sys.getrecursionlimit() - 100)),
    ("the handler of SIGINT", lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)),
    ("the handler of SIGTERM", lambda: signal.signal(signal.SIGTERM, lambda *_: None)),
    ("the handler of SIGCHLD", lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)),
    ("the handler of SIGALRM", lambda: signal.signal(signal.SIGALRM, lambda *_: None)),
    ("the handler of SIGHUP", lambda: signal.signal(signal.SIGHUP, lambda *_: None)),
    ("the handler of SIGPIPE", lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL)),
    ("the timer of SIGALRM", lambda: signal.alarm(1)),
    ("sys.stdout", lambda: setattr(sys, "stdout", io.StringIO())),
    ("sys.stderr", lambda: setattr(sys, "stderr", None)),
    ("os.kill", lambda: setattr(os, "kill", None)),
    ("shutil.rmtree", lambda: setattr(shutil, "rmtree", None)),
    ("builtins.print", lambda: delattr(builtins, "print")),
    ("os._exit", lambda: setattr(os, "_exit", None)),
    *((f"{module.__name__}.{name}", partial(setattr, module, name, None))
      for module, name in [(copy, "deepcopy"), (json, "dumps"), (math, "isfinite"),
                           (random, "Random"), (re, "search"), (signal, "signal"),
                           (time, "perf_counter")]),
]
KEPT = []


@pytest.mark.parametrize("what, change", CHANGES)
@pytest.mark.parametrize("raises", [False, True])
def test_what_a_call_changes_is_put_back(what, change, raises):
    before, changes = everything(), {}
    try:
        with guarded(changes):
            change()
            if raises:
                raise EOFError
    except EOFError:
        assert raises
    assert everything() == before
    assert what in changes
    changes.clear()
    with guarded(changes):
        pass
    assert not changes


def test_a_closed_stream_is_opened_again(capfd, monkeypatch):
    for number, name in ((1, "stdout"), (2, "stderr")):
        monkeypatch.setattr(sys, name, open(number, "w", encoding="latin-1", closefd=False))
    for _ in range(2):
        with guarded({}):
            sys.stdout.close()
            sys.stderr.close()
        print("é said", flush=True)
        print("warned", file=sys.stderr, flush=True)
    assert os.fstat(1) and os.fstat(2) and sys.stdout.encoding == "latin-1"
    found = capfd.readouterr()
    assert found.out.count("said\n") == found.err.count("warned\n") == 2


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    """Nothing can be put back, and nothing else goes wrong."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with guarded({}):
        here.rmdir()
        os.chdir("/")
    with guarded({}):
        os.chdir(tmp_path)


def test_nothing_is_put_back_that_a_run_does_not_read(monkeypatch):
    monkeypatch.delenv("MINE", raising=False)
    state = random.getstate(), torch.get_rng_state()
    with guarded({}):
        os.environ["MINE"] = "1"
        random.seed(5)
        torch.manual_seed(5)
    assert os.environ["MINE"] == "1" and random.getstate() == random.Random(5).getstate()
    random.setstate(state[0])
    torch.set_rng_state(state[1])


def test_children_may_end_as_they_like():
    with guarded({}):
        for code in (0, 7):
            if not (pid := os.fork()):
                os._exit(code)
            assert os.waitpid(pid, 0)[1] >> 8 == code
        assert os.spawnl(os.P_WAIT, "/bin/sh", "sh", "-c", "exit 3") == 3


@pytest.mark.parametrize("error, code", [(None, 0), (SystemExit(3), 3), (EOFError(), 1)])
def test_a_child_that_comes_back_ends(error, code):
    """Else two processes would go on with the run."""
    owner = os.getpid()
    try:
        with guarded({}):
            pid = os.fork()
            if not pid and error is not None:
                raise error
    finally:
        if os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] >> 8 == code


def test_code_in_another_thread_is_guarded_too():
    """Without signals, which belong to the main thread."""
    found = []

    def work():
        try:
            with guarded({}):
                os.chdir("/")
                usercode.within(60.0, lambda: os._exit(3))
        except usercode.Ended as error:
            found.append((str(error), os.getcwd()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [("called os._exit(3)", os.getcwd())]


@pytest.mark.parametrize("own", ["alarm", "handler"])
def test_a_limit_leaves_no_clock_and_no_handler(own):
    before = everything()
    with guarded({}):
        assert usercode.within(60.0, lambda: signal.getitimer(signal.ITIMER_REAL)[0]) > 59
        if own == "alarm":
            usercode.within(60.0, lambda: signal.alarm(1))
        else:
            usercode.within(60.0, lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN))
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert everything() == before


@pytest.mark.parametrize("limit", [1e-9, 0.02])
def test_the_end_of_a_limit(limit):
    before, changes = everything(), {}

    def work():
        os.chdir("/")
        while True:
            pass

    with pytest.raises(usercode.TimeIsUp), guarded(changes):
        usercode.within(limit, work)
    assert everything() == before and "the handler of SIGALRM" not in changes
    assert usercode.within(1e30, lambda: 5) == usercode.within(0.0, lambda: 5) == 5


# ---- a file as a module

@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name, code, ...) writes files below tmp_path; what they import is forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)

    def files(*pairs):
        for name, code in zip(pairs[::2], pairs[1::2]):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(code)
        return str(tmp_path / pairs[0])
    yield files
    for name in set(sys.modules) - known:
        if usercode.users(getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def lengths(*names):
    return ask(load_reward(names, None), PROBLEMS, TEXTS)


DATACLASS = """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Verdict:
    value: float

def reward(prompts, completions, **columns):
    return [Verdict(float(len(text))).value for text in completions]
"""
POOL = """import multiprocessing
def one(text):
    return float(len(text))
def reward(prompts, completions, **columns):
    with multiprocessing.get_context("{way}").Pool(1) as pool:
        return pool.map(one, completions)
"""


@pytest.mark.parametrize("name", ["own_x.py", "own_x", "own_x.txt", "own-x.py", "own.x.py",
                                  "json.py", "test.py", "minipost.py", "sys.py", "__main__.py"])
def test_a_file_of_any_name(write, name):
    """Its classes find their module, and no module of the same name is lost."""
    before = {key: sys.modules.get(key) for key in ("json", "minipost", "sys", "__main__")}
    path = write(name, DATACLASS)
    assert lengths(f"{path}:reward") == [1.0, 3.0]
    assert {key: sys.modules.get(key) for key in before} == before
    own = load_reward([f"{path}:reward"], None).parts[0][1].__module__
    assert (own == os.path.splitext(name)[0]) == name.startswith(("own_x", "own-x"))


def test_a_folder_hides_no_installed_module(write):
    path = write("mine.py", f"import colorsys\ndef reward(completions, **columns):\n{LENGTHS}",
                 "colorsys.py", "1 / 0", "wave.py", "1 / 0")
    assert lengths(f"{path}:reward") == [1.0, 3.0]
    import wave
    assert "wave.py" in str(wave.__file__) and usercode.users(path) and not usercode.users(
        wave.__file__)


def test_process_pools(write, python):
    """A child finds what it is given by the module's name: as a copy of us, and as a fresh one."""
    names = [write(f"pool_{way}.py", POOL.format(way=way)) + ":reward" for way in ("fork", "spawn")]
    done = python("-c", f"""
from minipost.datasets.named import load_reward
from minipost.datasets.rewards import ask
from minipost.tasks.base import Problem
if __name__ == "__main__":
    print(ask(load_reward({names}, None), [Problem("a")] * 2, ["x", "yyy"]))
""")
    assert (done.stdout, done.returncode) == ("[2.0, 6.0]\n", 0), done.stderr


def test_a_file_is_executed_once_and_as_it_is_now(write, monkeypatch):
    code = (f"import io\nio.count = getattr(io, 'count', 0) + 1\n"
            f"def f(completions, **columns):\n{LENGTHS}def g(completions, **columns):\n{LENGTHS}")
    monkeypatch.setattr(io, "count", 0, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write("mine.py", code)
    os.utime(path, (1e9, 1e9))
    assert lengths(f"{path}:f", f"{path}:g", f"{path}:f") == [3.0, 9.0] and io.count == 1
    write("mine.py", code.replace("+ 1", "+ 7"))
    os.utime(path, (1e9, 1e9))                              # of the same time and size
    assert lengths(f"{path}:f") == [1.0, 3.0] and io.count == 8


def test_files_that_import_each_other(write):
    """One that another imports is the same module when it is named, too."""
    path = write("one_of_two.py", f"import two_of_two\ndef f(completions, **columns):\n{LENGTHS}",
                 "two_of_two.py", "import one_of_two\nfrom one_of_two import *\n"
                 "def g(completions, **columns):\n    return one_of_two.f(completions)\n")
    names = (f"{path}:f", f"{path.replace('one', 'two', 1)[:-len('one_of_two.py')]}two_of_two.py:g")
    reward = load_reward((names[0], f"{os.path.dirname(path)}/two_of_two.py:g"), None)
    assert ask(reward, PROBLEMS, TEXTS) == [2.0, 6.0]
    f, g = (part.function for part in reward.parts)
    assert g.__globals__["one_of_two"].f is f and sys.modules["two_of_two"].g is g


@pytest.mark.parametrize("code", ["import helpers_x", "from helpers_x import f",
                                  "def f():\n    import helpers_x.part"])
def test_two_folders_with_modules_of_one_name(write, code):
    """A process holds one module of a name.  The second file would get the first one's."""
    where = write("a/one.py", f"import helpers_x\ndef reward(completions, **columns):\n{LENGTHS}",
                  "a/helpers_x.py", "f = 1", "b/two.py", f"{code}\nreward = print\n",
                  "b/helpers_x.py", "f = 2")
    line = 1 + code.count("\n")
    with pytest.raises(MinipostError, match=rf"two.py, line {line}: imports helpers_x, but Python "
                       r"finds .*a/helpers_x.py .*b/helpers_x.py; give one"):
        load_reward([f"{where}:reward", where.replace("a/one", "b/two") + ":reward"], None)
    assert lengths(f"{where}:reward") == [1.0, 3.0]


def test_a_neighbour_with_the_name_of_an_installed_module(write):
    path = write("mine.py", "import beside_x\nreward = print\n", "beside_x.py", "import hypothesis",
                 "hypothesis.py", "")
    with pytest.raises(MinipostError, match=r"beside_x.py, line 1: imports hypothesis, but "
                       r"Python finds .*hypothesis"):
        load_reward([f"{path}:reward"], None)


def test_a_file_may_import_the_installed_module_of_its_own_name(write):
    code = f"import hypothesis\ndef reward(completions, **columns):\n{LENGTHS}"
    assert lengths(write("hypothesis.py", code) + ":reward") == [1.0, 3.0]


def test_a_file_that_raises_leaves_no_half_module(write):
    path = write("half_x.py", "def reward(**columns): ...\n1 / 0\n")
    with pytest.raises(MinipostError, match=r"ZeroDivisionError: .* \(.*half_x.py, line 2: `1 /"):
        load_reward([f"{path}:reward"], None)
    assert "half_x" not in sys.modules


def test_what_a_file_sets_when_imported_holds_in_its_functions_alone(write, tmp_path):
    path = write("mine.py", f"""import os, signal, torch
os.chdir(os.path.dirname(__file__))
torch.set_default_dtype(torch.float64)
for number in (signal.SIGALRM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def reward(completions, **columns):
    assert os.path.exists("known.txt") and torch.zeros(1).dtype == torch.float64
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN != signal.getsignal(signal.SIGINT)
    os.chdir("/")
    torch.set_num_threads(3)
{LENGTHS}""", "known.txt", "5", "other.py", f"""import torch
def reward(completions, **columns):
    assert torch.zeros(1).dtype == torch.float32
{LENGTHS}""")
    before = everything()
    reward = load_reward([f"{path}:reward", f"{tmp_path}/other.py:reward"], None)
    for _ in range(2):
        assert everything() == before
        assert ask(reward, PROBLEMS, TEXTS) == [2.0, 6.0]
    assert everything() == before
    assert reward.changed == {"torch's default dtype", "the working folder",
                              "torch's number of threads", "the handler of SIGALRM",
                              "the handler of SIGINT"}


# ---- what was raised

def test_the_place_of_an_error_is_the_users_own_line():
    """Neither a line of an installed module nor one of ours, nor of text that was executed."""
    assert usercode.users(__file__) and not usercode.users(pytest.__file__)

    def work(what):
        exec(what)

    for what in ("import json\njson.loads('{')", "raise ValueError", "usercode.HELD[0][2]()"):
        try:
            work(what)
        except Exception as error:
            assert f"(tests/test_usercode.py, line {work.__code__.co_firstlineno + 1}: `exec(what)"\
                in usercode.told(error).replace(f"{usercode.OURS.parent}/", "")


def test_an_error_without_a_place_or_words():
    class Silent(Exception):
        def __str__(self):
            raise SystemExit

    assert usercode.told(Silent()) == "Silent" and usercode.told(KeyError("a")) == "KeyError: 'a'"
    odd = SyntaxError(["m"], ("f.py", 3, 1, {5}))
    assert usercode.told(odd) == "SyntaxError: ['m'] (f.py, line 3: `{5}`)"
    blank = SyntaxError("m", ("f.py", 3, 1, "  \n"))
    assert usercode.told(blank) == "SyntaxError: m (f.py, line 3)"


# ---- the end of the process

ENDING = """import atexit, os, posix, sys, threading, time
from minipost.datasets.named import load_reward
from minipost.datasets.rewards import ask
from minipost.tasks.base import Problem
from pathlib import Path
Path("mine.py").write_text(f'''import atexit, os, posix, threading, time
def reward(completions, **columns):
    {sys.argv[1]}
    return [1.0] * len(completions)
''')
print(ask(load_reward(["mine.py:reward"], None), [Problem("a")], ["x"]), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("code, wait, called", [
    ("threading.Thread(target=lambda: (time.sleep(.05), os._exit(0))).start()", 9, "os._exit(0)"),
    ("threading.Thread(target=lambda: (time.sleep(.05), posix._exit(0))).start()", 9,
     "os._exit(0)"),
    ("threading.Timer(.05, os.execv, ('/bin/true', ['true'])).start()", 9, "os.execv("),
    ("atexit.register(lambda: os._exit(0))", 0, "os._exit(0)"),
    ("atexit.register(os._exit, 0)", 0, "os._exit(0)"),
    ("atexit.register(os.abort)", 0, "os.abort()"),
])
def test_what_a_call_leaves_behind_cannot_end_the_process_well(
        python, tmp_path, monkeypatch, code, wait, called):
    """Neither a thread nor a function for the end: exit code 1, and a sentence that says why."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    done = python("-c", ENDING, code, str(wait))
    assert done.returncode == 1 and done.stdout == "[1.0]\n"
    assert done.stderr.startswith(f"error: code of the user's own called {called}")
    assert done.stderr.count("\n") == 1
    assert code == "atexit.register(os._exit, 0)" or "abort" in called or "execv" in called \
        or "(mine.py, line 3: `" in done.stderr


@pytest.mark.parametrize("code, what", [
    ("os.closerange(3, 100)", "called os.closerange(3, 100)"),
    ("[os.close(int(n)) for n in os.listdir('/dev/fd') if int(n) > 2 and os.path.exists(int(n))]",
     "closed files and connections that the run needs"),
])
def test_a_call_that_closes_the_files_of_the_run_is_named(
        python, tmp_path, monkeypatch, code, what):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    done = python("-c", ENDING, code, "0")
    assert done.returncode == 1 and not done.stdout
    assert f"the reward function reward {what}" in done.stderr.splitlines()[-1]


def test_children_end_as_they_like_after_a_call_too():
    """Processes of a pool call os._exit(0) when they have done their work."""
    with guarded({}):
        pass
    assert os._exit is not usercode.REAL["_exit"]
    if not (pid := os.fork()):
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_program_that_runs_this_ends_its_processes_as_it_likes(python):
    """Such as one that trains in a process of multiprocessing, which calls os._exit(0) at last."""
    done = python("-c", """import multiprocessing, os
from minipost.datasets.usercode import guarded
def work():
    with guarded({}):
        pass
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
print(process.exitcode, flush=True)
work()
os._exit(3)""")
    assert (done.returncode, done.stdout, done.stderr) == (3, "0\n", "")
