"""The command `minipost`: `minipost train --algo grpo` is `python -m minipost.train --algo grpo`.

    minipost train     a method trains a model              minipost train --algo grpo
    minipost evaluate  a model on held-out problems         minipost evaluate --task countdown
    minipost solve     one problem, with its working        minipost solve --method tot
    minipost doctor    what is wrong with a set-up          minipost doctor --task countdown
    minipost prove     methods against an exact oracle      minipost prove --algo grpo
    minipost report    a page about a run, or several       minipost report runs/demo-grpo

`minipost NAME --help` lists what each one takes.  From Python: `import minipost`, minipost/api.py.
"""

import importlib
import sys

from minipost import __version__
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError

DOORS = ("train", "evaluate", "solve", "doctor", "prove", "report")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in DOORS:
        return importlib.import_module(f"minipost.{argv[0]}").main(argv[1:])
    return fail_in_one_sentence(lambda: usage(argv))


def usage(argv):
    if argv == ["--version"]:
        print(f"minipost {__version__}")
        return 0
    if argv and argv[0] not in ("-h", "--help"):
        raise MinipostError(f"there is no command {argv[0]!r:.40}; there are {', '.join(DOORS)}")
    print(__doc__.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
