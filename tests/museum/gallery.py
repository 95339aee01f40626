"""Run tests of the suite on code in which one snippet has been replaced.

The working tree is never touched.  `hang` forks; the child forgets every module of minipost and of
the tests, so that importing them anew gives it the patched file, and runs pytest inside itself.  What
costs seconds, importing torch, is done once, by whoever calls.
"""

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SECONDS = 120  # after which a child that hangs is stopped by a signal

# Whoever catches a bug tells a wrong value from a right one.  A test that fails with anything else,
# such as an import error or a wrong name, has only seen that the patch does not run.
VERDICTS = ("AssertionError", "Failed")

# The tests that may catch a bug: those of the code itself, in the process that holds the bug.
FAST = tuple(f"test_{name}.py" for name in (
    "ops", "gpt", "rollout", "run", "checkpoint", "methods", "policy_gradient", "ppo", "trpo",
    "pairs", "reward", "oreo", "offline", "gradients", "errata"))


def patched(file, ours, theirs):
    """The text of a file of ours with the one snippet replaced.  ValueError unless it is there once."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(ours) != 1:
        raise ValueError(f"{file} holds {text.count(ours)} times: {ours}")
    return text.replace(ours, theirs)


def failed(test, found):
    """Whether a test of this name, or one of its cases, told a wrong value among those found."""
    return any(fault in VERDICTS for name, fault in found.items()
               if name == test or name.startswith(f"{test}["))


def hang(file, ours, theirs, tests):
    """Run tests, "test_file.py::name" each, on code with a bug: {id of a test: how it failed or ""}.

    RuntimeError where they could not be run at all.
    """
    text = patched(file, ours, theirs)
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "found.json"
        gc.freeze()  # pytest collects garbage when it ends, which is not to go through all of torch
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(SECONDS)
                code = visit(file, text, tests, Path(directory), found)
            finally:
                os._exit(code if "code" in locals() else 70)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest ended with {code} on {file} with {theirs!r}")
        return json.loads(found.read_text(encoding="utf-8"))


def tour(hangings):
    """What `hang` finds for each of many, from a process of its own, which has no threads to fork."""
    done = subprocess.run([sys.executable, "-m", "tests.museum.gallery"], cwd=ROOT, text=True,
                          input=json.dumps(hangings), capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def visit(file, text, tests, directory, found):
    """What the child does; returns pytest's exit code."""
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(directory / "hypothesis")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.set_num_threads(1)
    forget()
    calm_hypothesis()
    sys.meta_path.insert(0, Finder(".".join(Path(file).with_suffix("").parts), ROOT / file, text))
    report = Report()
    # Plain asserts: what pytest would say of two models that differ, it says in minutes.
    code = pytest.main(["-p", "no:cacheprovider", "--assert=plain", "--rootdir", str(ROOT), "--basetemp",
                        str(directory / "pytest"), *(str(TESTS / test) for test in tests)], [report])
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


class Finder(importlib.abc.MetaPathFinder):
    """Imports one module from the text that it was given."""

    def __init__(self, name, path, text):
        self.name, self.path, self.text = name, path, text

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, Loader(name, str(self.path), self.text))


class Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name, path, text):
        super().__init__(name, path)
        self.text = text

    def get_code(self, name):
        return self.source_to_code(self.text, self.path)


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
    for hanging in json.load(sys.stdin):
        print(json.dumps(hang(*hanging)), flush=True)
