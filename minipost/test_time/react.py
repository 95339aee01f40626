"""ReAct: reasoning and acting with a tool (survey fig. 2; Yao et al. 2022,
arxiv.org/abs/2210.03629).

    y <- y + a call ~ pi(. | x, y);    y <- y + tool(x, y);    ...    until the answer ends

The model writes up to the end of a call, where generation stops.  The tool's observation goes into
the text, and generation goes on behind it.  The task says what a call is and what the tool writes
(`call_end`, `tool`).  In sums every "=" is a call: the model chooses what to add, a calculator adds
(as in Cobbe et al. 2021, arxiv.org/abs/2110.14168).  The task calculator has calls of its own,
which `--algo tool-use` teaches.

The arms: the model alone, which writes the results itself, with the tool, and the control: the
calls of each problem are answered as those of another problem were.  Where an answer has used up
`max_calls` the model goes on alone.
"""

from collections import Counter
from dataclasses import dataclass

from minipost.errors import Bounded, MinipostError

TASK, KNOBS = "arithmetic", {"hurried": True}
BEFORE, AFTER = "no tool", "tool"
PAIRS = (("no tool", "wrong tool"),)
N, TOOL = 400, True


@dataclass(frozen=True)
class Config(Bounded):
    """Answers in which a tool has a say."""

    max_calls: int = 16         # calls of the tool in an answer


def act(problems, tools, observe, calls):
    """Answer with a tool: for each problem the pieces of its answer, model and tool in turn.

    Where an observation would leave no room to go on, the answer ends with its call, unfinished.
    observe(k, text) -> what the tool writes behind the answer `text` to problem k, which ends in a
    call.
    """
    mark, pieces = tools.task.call_end, [[] for _ in problems]
    going = list(range(len(problems)))

    def texts(of):
        return [problems[k].prompt + "".join(pieces[k]) for k in of]

    for made in range(calls + 1):
        sample = tools.turn if made < calls else tools.sample
        for k, (more,) in zip(going, sample(texts(going), 1)):
            pieces[k].append(more)
        going = [k for k in going if mark in pieces[k][-1]] if made < calls else []
        if not going:
            break
        called, going = going, []
        for k, text in zip(called, texts(called)):
            more = observe(k, "".join(pieces[k]))
            if tools.heard(text, more):
                pieces[k].append(more)
                going.append(k)
    return pieces


def needed(task):
    if task.tool is None:
        raise MinipostError(f"the task {task.name} has no tool (no `tool` and `call_end`); "
                            "arithmetic and calculator have one")


def right(problems, task):
    """The tool."""
    return lambda k, text: task.tool(problems[k], text)


def wrong(pieces):
    """The control: a problem's calls are answered as the next problem's were, the last again.

    pieces: of the answers with the tool.  The next problem is the next one with a call.  Where no
    other problem has one, nothing is put in.
    """
    said, calls = [found[1::2] for found in pieces], Counter()

    def observe(k, text):
        others = next((each for each in said[k + 1 :] + said[:k] if each), [""])
        calls[k] += 1
        return others[min(calls[k], len(others)) - 1]
    return observe


def solve(problems, tools, cfg):
    """The answers with the tool: (answers, workings)."""
    needed(tools.task)
    pieces = act(problems, tools, right(problems, tools.task), cfg.max_calls)
    return ["".join(found) for found in pieces], [{"pieces": found} for found in pieces]


def arms(problems, tools, cfg):
    """Yield the Arms without the tool, with it, and with one that answers other questions."""
    needed(tools.task)
    if len(problems) < 2:
        raise MinipostError("the control of react answers a problem's calls as those of another "
                            "one; measure at least 2 problems (--n 2)")
    found: dict[str, list] = {}
    ways = {"no tool": lambda: tools.sample([p.prompt for p in problems], 1),
            "tool": lambda: act(problems, tools, right(problems, tools.task), cfg.max_calls),
            "wrong tool": lambda: act(problems, tools, wrong(found["tool"]), cfg.max_calls)}
    for name, way in ways.items():
        start, found[name] = tools.tokens, way()
        yield tools.arm(name, problems, ["".join(pieces) for pieces in found[name]],
                        [{"pieces": pieces} for pieces in found[name]], start)


def show(working):
    """The working as lines; what the tool wrote stands behind an arrow."""
    lines = [""]
    for k, piece in enumerate(working["pieces"]):
        first, *rest = piece.rstrip("\n").split("\n")
        lines[-1] += f" -> {first}" if k % 2 else first
        lines += [*rest, ""] if piece.endswith("\n") else rest
    return [line for line in lines if line]
