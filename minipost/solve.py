"""Solve one problem by a test-time method and show the working.

    python -m minipost.solve --method tot                             a held-out hand of the Game of 24
    python -m minipost.solve --method tot --problem "4 9 10 13"       this hand
    python -m minipost.solve --method self-feedback --problem 7+5-3+8-6
    python -m minipost.solve --method mcts --index 7 --json           the working as data

`--method NAME --help` lists the knobs of a method and of its task.
"""

import json
import sys
from dataclasses import asdict, dataclass

from minipost import inference
from minipost.errors import MinipostError

PROG = "python -m minipost.solve"


@dataclass(frozen=True)
class Options(inference.Options):
    """Which problem to solve, beside what every test-time method has."""

    problem: str = ""  # the problem, as the task writes it; a held-out one if empty
    index: int = 0     # which of the held-out problems, from 0 on


def main(argv=None):
    from minipost.train import fail_in_one_sentence

    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv in (["-h"], ["--help"]):
        print(f"usage: {PROG} --method {{{','.join(inference.names())}}} [options]\n\n{__doc__}")
        return 0 if argv else 2
    return fail_in_one_sentence(lambda: solve(argv))


def pick(options, task):
    """The problem that the command line names."""
    if options.problem:
        if not hasattr(task, "pose"):
            raise MinipostError(f"the task {task.name} takes no --problem; choose a held-out one with "
                                "--index")
        return task.pose(options.problem)
    problems = task.heldout(options.index + 1) if options.index >= 0 else []
    if not 0 <= options.index < len(problems):
        raise MinipostError(f"index is {options.index}; expected 0 to {max(0, len(problems) - 1)}")
    return problems[options.index]


def solve(argv):
    from minipost import parallel

    name, module, options, cfg, task, data = inference.parse(argv, PROG, Options)
    problem = pick(options, task)

    def work():
        tools = inference.tools_for(module, options, task)
        (answer,), (working,) = module.solve([problem], tools, cfg)
        if hasattr(module, "outcome"):
            return answer, working, tools.tokens, *module.outcome(working)
        return answer, working, tools.tokens, problem.prompt, tools.right([problem], [answer])[0]

    answer, working, tokens, asked, right = parallel.launch(work, 1)
    if data:
        print(json.dumps({"method": name, "model": options.model, "seed": options.seed,
                          "settings": asdict(cfg), "problem": asked, "answer": answer,
                          "right": bool(right), "tokens": tokens, "working": working}, indent=2))
        return
    print(asked.strip())
    for line in module.show(working):
        print(f"  {line}")
    print(f"answer: {answer.strip()}\n{'right' if right else 'wrong'}; {tokens} tokens sampled")


if __name__ == "__main__":
    sys.exit(main())
