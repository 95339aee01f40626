"""Solve one problem by a test-time method and show the working.

    python -m minipost.solve --method tot                        a held-out hand of the Game of 24
    python -m minipost.solve --method tot --problem "4 9 10 13"  this hand
    python -m minipost.solve --method self-feedback --problem 7+5-3+8-6
    python -m minipost.solve --method mcts --index 7 --json      the working as data

`--method NAME --help` lists the knobs of a method and of its task.
"""

import json
import sys
from dataclasses import asdict, dataclass

from minipost import test_time
from minipost.cli import inference
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError, visible

PROG = "python -m minipost.solve"


@dataclass(frozen=True)
class Options(inference.Options):
    """Which problem to solve, beside what every test-time method has."""

    problem: str = ""           # the problem, as the task writes it; a held-out one if empty
    index: int = 0              # which of the held-out problems, from 0 on

    LIMITS = {"index": ">= 0"}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv in (["-h"], ["--help"]):
        return fail_in_one_sentence(lambda: usage(argv))
    return fail_in_one_sentence(lambda: solve(argv))


def usage(argv):
    print(f"usage: {PROG} --method {{{','.join(test_time.names())}}} [options]\n\n{__doc__}")
    return 0 if argv else 2


def pick(options, task):
    """The problem that the command line names."""
    if options.problem:
        if task.pose is None:
            raise MinipostError(f"the task {task.name} takes no --problem; choose a held-out one "
                                "with --index")
        return task.pose(options.problem)
    problems = task.heldout(options.index + 1)
    if options.index >= len(problems):
        raise MinipostError(f"index is {options.index}; expected 0 to {len(problems) - 1}")
    return problems[options.index]


def solve(argv):
    settings = inference.settings_of(argv, PROG, Options)
    from minipost import parallel  # imports torch, which --help can do without

    method, options = settings.method, settings.options
    problem = pick(options, settings.task)

    def work():
        tools = inference.tools_for(settings)
        (answer,), (working,) = method.solve([problem], tools, settings.config)
        asked, right = method.outcome(working) if method.outcome else (
            problem.prompt, tools.right([problem], [answer])[0])
        return answer, working, tools.tokens, asked, right

    answer, working, tokens, asked, right = parallel.launch(work, 1)
    if settings.json:
        print(json.dumps({"method": method.name, "model": options.model, "seed": options.seed,
                          "settings": asdict(settings.config), "problem": asked, "answer": answer,
                          "right": bool(right), "tokens": tokens, "working": working}, indent=2))
        return
    print(visible(asked.strip()))
    for line in method.show(working):
        print(visible(f"  {line}"))
    print(visible(f"answer: {answer.strip()}"))
    print(f"{'right' if right else 'wrong'}; {tokens} tokens sampled")


if __name__ == "__main__":
    sys.exit(main())
