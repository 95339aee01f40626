"""Solve one problem by a test-time method and show the working, or ask a chat model a question.

    python -m minipost.solve --method tot                        a held-out hand of the Game of 24
    python -m minipost.solve --method tot --problem "4 9 10 13"  this hand
    python -m minipost.solve --method self-feedback --problem 7+5-3+8-6
    python -m minipost.solve --method mcts --index 7 --json      the working as data
    python -m minipost.solve --chat --model DIR --problem "Why is the sky blue?"
    python -m minipost.solve --chat --model DIR                  a talk: each line that is typed

`--method NAME --help` lists the knobs of a method and of its task, `--chat --help` those of a chat.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Literal

from minipost import contract, test_time
from minipost.chat import ROLE, Messages
from minipost.cli import inference
from minipost.cli import options as command
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError, visible, visible_json

PROG = "python -m minipost.solve"


@dataclass(frozen=True)
class Options(inference.Options):
    """Which problem to solve, beside what every test-time method has."""

    problem: str = ""           # the problem, as the task writes it; a held-out one if empty
    index: int = 0              # which of the held-out problems, from 0 on

    LIMITS = {"index": ">= 0"}


@dataclass(frozen=True)
class Chat(command.Options):
    """A talk with a chat model."""

    problem: str = ""           # the question; if empty, each line of standard input is one
    system: str = ""            # the message that sets the model's part, before all others
    chat_template: str = ""     # file of a chat template (jinja) in place of the model's
    temperature: float = 0.0    # sampling temperature (tau); 0: always the likeliest token
    max_new_tokens: int = 256   # longest answer, in tokens
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to run; auto: the best available

    LIMITS = {"temperature": ">= 0"}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if "--chat" in argv:
        return fail_in_one_sentence(lambda: talk([each for each in argv if each != "--chat"]))
    if not argv or argv in (["-h"], ["--help"]):
        return fail_in_one_sentence(lambda: usage(argv))
    return fail_in_one_sentence(lambda: solve(argv))


def usage(argv):
    from minipost.cli import help

    print(help.choice(PROG, "--method", contract.titles(test_time),
                      ["--method NAME [options]", "--chat --model DIR [options]"], __doc__))
    raise SystemExit(0 if argv else 2)


def talk(argv):
    """Answer the question, or each line of standard input with what was said before it."""
    settings = command.parse(argv, f"{PROG} --chat", Chat, description=__doc__, task=False,
                             json=True)
    from minipost import checkpoint
    from minipost.cli.session import pick_device
    from minipost.rollout import generate

    options = settings.options
    if settings.task:
        raise MinipostError("--chat answers a question, not a task; leave out --task, or use "
                            "python -m minipost.evaluate --task NAME --chat")
    model, vocabulary = checkpoint.load(options.model, pick_device(options.device),
                                        template=options.chat_template)
    vocabulary.begin_chat()
    turns = [{"role": "system", "content": options.system}] if options.system else []
    for question in [options.problem] if options.problem else sys.stdin:
        if not question.strip():
            continue
        turns.append({"role": "user", "content": question.rstrip("\n")})
        ids = vocabulary.prompt(Messages(turns))
        room = min(options.max_new_tokens, model.context - len(ids))
        if room < 1:
            raise MinipostError(f"what was said has {len(ids)} tokens, which leaves no room for an "
                                f"answer in the model's context of {model.context}; begin anew")
        rollout = generate(model, [ids], max_new_tokens=room, eos=vocabulary.eos,
                           pad=vocabulary.pad, temperature=options.temperature,
                           seed=(options.seed, len(turns)))
        text = vocabulary.decode(rollout.responses()[0])
        turns.append({"role": ROLE, "content": text})
        print(visible_json(json.dumps({
            "model": options.model, "problem": turns[-2]["content"], "answer": text},
            ensure_ascii=False)) if settings.json else visible(text), flush=True)


def pick(options, task):
    """The problem that the command line names."""
    if options.problem:
        if task.pose is None:
            raise MinipostError(f"the task {task.name} takes no --problem; choose a held-out one "
                                "with --index")
        return task.pose(options.problem)
    problems = inference.heldout(task, options.index + 1)
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
