"""Run the tests of what has changed: `make quick`, or `python -m scripts.quick --since REV`.

A changed file of minipost or scripts asks for the test file of its name, a changed test file for
itself.  A changed method is also held to the gradient of its loss, derived three ways.  The tests
of the structure always run.  `make test` runs everything.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ALWAYS = ("test_floors.py", "test_contracts.py")
NO_TESTS = 5  # pytest's exit code where -k leaves none
ELSEWHERE = {  # whose tests bear another name
    "cli": "test_cli.py", "train": "test_cli.py", "evaluate": "test_cli.py",
    "solve": "test_inference.py", "inference": "test_inference.py", "session": "test_resume.py",
    "prove": "test_proof.py", "proof": "test_proof.py", "errors": "test_methods.py",
    "samples": "test_report.py", "watch": "test_report.py", "page": "test_page.py",
    "results": "test_cli.py", "examine": "test_doctor.py", "base": "test_corpus.py",
}


def changed(since):
    """The Python files that differ from a commit, new ones included."""
    lines = []
    for command in (["diff", "--name-only", since], ["ls-files", "--others", "--exclude-standard"]):
        lines += subprocess.run(["git", *command], capture_output=True, text=True, check=True
                                ).stdout.splitlines()
    return [Path(line) for line in lines if line.endswith(".py")]


def tests_of(paths, tests):
    """The test files that some changed files ask for."""
    found = {tests / name for name in ALWAYS}
    for path in paths:
        found |= {tests / path.name, tests / f"test_{path.stem}.py",
                  tests / f"test_{path.parent.name}_{path.stem}.py",
                  *(tests / ELSEWHERE[part] for part in (path.stem, path.parent.name)
                    if part in ELSEWHERE)}
    return sorted(path for path in found if path.name.startswith("test_") and path.is_file())


def gradients_of(paths, tests):
    """Of these files' methods, the three-way check of the loss, as arguments of pytest; or []."""
    names = [path.stem for path in paths if path.parent.name == "methods" and path.is_file()
             and path.name != "__init__.py"]
    return [str(tests / "test_gradients.py"), "-k", " or ".join(f"[{name}]" for name in names)
            ] if names else []


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", default="HEAD", help="the commit to compare with")
    paths, tests = changed(parser.parse_args(argv).since), Path("tests")
    chosen, gradients = tests_of(paths, tests), gradients_of(paths, tests)
    print("tests:", " ".join([*(path.name for path in chosen), *gradients]), flush=True)
    code = pytest(*map(str, chosen))
    if gradients and code == 0:
        code = pytest(*gradients)
        code = 0 if code == NO_TESTS else code  # a method without a loss of its own
    return code


def pytest(*arguments):
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
