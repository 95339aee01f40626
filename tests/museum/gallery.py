"""Run tests of the suite on code in which one function has a bug.

The working tree is never touched.  `hang` forks; the child forgets every module of minipost and of
the tests, imports the one that the bug is to stand in, puts it there before anybody else can import
the function, and runs pytest inside itself.  What costs seconds, importing torch, is done once, by
whoever calls.
"""

import functools
import gc
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SECONDS = 120  # after which a child that hangs is stopped by a signal

# Whoever catches a bug tells a wrong value from a right one.  A test that fails with anything else,
# such as an import error or a wrong name, has only seen that the bug does not run.
VERDICTS = ("AssertionError", "Failed")


def place(where):
    """The module or class that holds a function of ours, "module:qualname", and its name there."""
    module, _, path = where.partition(":")
    *classes, name = path.split(".")
    holder = functools.reduce(getattr, classes, importlib.import_module(module))
    if name not in vars(holder):
        raise LookupError(f"we have no {where}")
    return holder, name


def with_bug(ours, bug):
    """A function, or a property, that hands all arguments of ours, defaults too, to the bug.

    By position where that is possible, so that a bug need not know what we call them.
    """
    if isinstance(ours, property):
        return property(with_bug(ours.fget, bug))
    signature = inspect.signature(ours)

    @functools.wraps(ours)
    def theirs(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return bug(ours, *call.args, **call.kwargs)

    return theirs


def failed(test, found):
    """Whether a test of this name, or one of its cases, told a wrong value among those found."""
    return any(fault in VERDICTS for name, fault in found.items()
               if name == test or name.startswith(f"{test}["))


def hang(exhibit, tests):
    """Run tests, "test_file.py::name" each, on code with a bug: {a test's id: how it failed or ""}.

    RuntimeError where they could not be run at all.
    """
    with tempfile.TemporaryDirectory() as directory:
        found, said = Path(directory) / "found.json", Path(directory) / "said.txt"
        gc.freeze()  # pytest collects garbage when it ends, which is not to go through all of torch
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(SECONDS)
                with open(said, "w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                code = visit(exhibit, tests, Path(directory), found)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code if "code" in locals() else 70)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest ended with {code} on {exhibit.name!r}\n{said.read_text()}")
        return json.loads(found.read_text(encoding="utf-8"))


def tour(hangings):
    """What `hang` finds for each of many, (name of an exhibit or a control, tests).

    From a process of its own, which has no threads to fork.
    """
    done = subprocess.run([sys.executable, "-m", "tests.museum.gallery"], cwd=ROOT, text=True,
                          input=json.dumps(hangings), capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def visit(exhibit, tests, directory, found):
    """What the child does; returns pytest's exit code."""
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(directory / "hypothesis")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.set_num_threads(1)
    forget()
    calm_hypothesis()
    for where in exhibit.where.split():
        holder, name = place(where)
        setattr(holder, name, with_bug(vars(holder)[name], exhibit.bug))
    report = Report()
    # Plain asserts: what pytest would say of two models that differ, it says in minutes.
    code = pytest.main(["-p", "no:cacheprovider", "--assert=plain", "--rootdir", str(ROOT),
                        "--basetemp", str(directory / "pytest"),
                        *(str(TESTS / test) for test in tests)], [report])
    found.write_text(json.dumps(report.found), encoding="utf-8")
    return code


def forget():
    """Drop what is imported of minipost and of its tests."""
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        if name.split(".")[0] == "minipost" or file.parent == TESTS:
            del sys.modules[name]


def calm_hypothesis():
    """Let hypothesis draw the same examples each time and not look for the smallest one that fails.

    The tests' own profiles are made of this one, which is the default from here on.
    """
    settings.register_profile("museum", phases=(Phase.explicit, Phase.generate), database=None,
                              derandomize=True, report_multiple_bugs=False)
    settings.load_profile("museum")


class Report:
    """A pytest plugin that notes how each test ended."""

    def __init__(self):
        self.found = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.when == "call" or report.failed:
            fault = call.excinfo.typename if call.excinfo else ""
            if report.failed and report.when != "call":
                fault = f"{fault} in {report.when}"
            self.found[item.nodeid.removeprefix("tests/")] = fault if report.failed else ""
        return report


if __name__ == "__main__":
    from .exhibits import CONTROLS, EXHIBITS

    named = {exhibit.name: exhibit for exhibit in (*EXHIBITS, *CONTROLS)}
    for name, tests in json.load(sys.stdin):
        print(json.dumps(hang(named[name], tests)), flush=True)
