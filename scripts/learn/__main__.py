"""docs/learn.md: rewrite the code that it shows, and check answers to its exercises.

    python -m scripts.learn page               cut the page's code out of the files anew
    python -m scripts.learn check              what exercises there are
    python -m scripts.learn check NAME         check runs/exercises/NAME.py, which is copied from
                                               docs/exercises the first time
    python -m scripts.learn check NAME FILE    check another file
"""

import argparse
import shutil
import sys
from pathlib import Path

from minipost.cli.options import fail_in_one_sentence
from minipost.datasets import usercode
from minipost.errors import MinipostError
from scripts.learn.page import PAGE, ROOT, write


def answer(name, file, function):
    """The function in a learner's file.  MinipostError where there is none."""
    if not file.is_file():
        raise MinipostError(f"{name}: there is no file {file}")
    try:
        usercode.forget(file.resolve())     # it may have been edited since
        module = usercode.load(file.resolve())
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise MinipostError(f"{file}{line}: {type(error).__name__}: {error}") from None
    if not callable(getattr(module, function, None)):
        raise MinipostError(f"{file}: does not define {function}(), which the exercise {name} is "
                            "about")
    return getattr(module, function)


def template(name):
    """The file in which an exercise is set."""
    return ROOT / "docs" / "exercises" / f"{name.replace('-', '_')}.py"


def check(name, given):
    """Check one answer and say what differs.  -> exit code"""
    from scripts.learn.exercises import EXERCISES
    from scripts.learn.exercises import check as verdict

    if name not in EXERCISES:
        raise MinipostError(f"no exercise {name!r}; there are {', '.join(EXERCISES)}")
    exercise, setting = EXERCISES[name], template(name)
    file = Path(given or Path("runs") / "exercises" / setting.name)
    if not given and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(setting, file)
        print(f"{setting.relative_to(ROOT)} is copied to {file}, which is yours to edit.")
    right, said = verdict(exercise, answer(name, file, exercise.function))
    print(f"{name}: {'right' if right else 'not yet'}.")
    for sentence in said:
        print(f"  {sentence}")
    if right:
        print(f"The real one is {exercise.function} in "
              f"{exercise.solution.partition(':')[0].replace('.', '/')}.py.")
        if exercise.bug:
            from tests.museum.exhibits import EXHIBITS
            bug = next(each for each in EXHIBITS if each.name == exercise.bug)
            print(f"This bug was real, see {bug.thread}: {bug.story}")
    else:
        print(f"Edit {file} and run this again.")
    return int(not right)


def listed():
    """Every exercise with its first line."""
    from scripts.learn.exercises import EXERCISES
    for name in EXERCISES:
        first = template(name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:12}{first.strip(chr(34))}")
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m scripts.learn", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("page", "check"))
    parser.add_argument("name", nargs="?", help="an exercise")
    parser.add_argument("file", nargs="?", help="the file with your answer")
    args = parser.parse_args(argv)
    if args.what == "page":
        page = PAGE.relative_to(ROOT)
        print(f"{page} has been rewritten" if write() else f"{page} is as its files are")
        return 0
    return check(args.name, args.file) if args.name else listed()


if __name__ == "__main__":
    sys.exit(fail_in_one_sentence(main))
