"""Speculative rejection: best of n that stops the worst beginnings early (survey sec. 5.2; Sun et
al. 2024, arxiv.org/abs/2410.20290).

`group_size` (n) answers are begun and go on side by side.  Whenever those that are left hold
`memory` steps together, a reward model scores them as they are, and the share `alpha` with the
lowest scores is rejected:

    reject y_k   if  score(x, y_k so far) is among the floor(alpha n_left) lowest

In the end the best answer is taken by the same score.  As fewer are left, each may grow longer
until the memory is full again, so rejections come further and further apart.

The scores are either

    verdicts    the model's own, as in tree of thoughts: on the steps so far, and on whether the
                goal is still in reach
    verifier    a process reward model's: the least of its chances, of the steps so far and, when an
                answer is finished, of the whole

With alpha 0 this is best of n.  Rejection can pay only as far as a beginning tells how the answer
will end: a first move in the Game of 24 can be a dead end, while in sums errors come late.

The paper rejects when the GPU's memory is full, wherever the answers stand, and starts with as many
as it holds at first.  Here memory is counted in steps and rejections come between steps, since a
search knows texts and no tensors.  An answer that has ended may still be rejected; the authors'
code keeps it to the end, and rounds alpha n_left, of which we take the floor.
"""

from dataclasses import dataclass, replace
from typing import Literal

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import beginnings

TASK, KNOBS = "countdown", {"numbers": 4, "target": 24}
BEFORE, AFTER = "best of n, tokens of rejection", "speculative rejection"
FULL = "best of {group_size}"
PAIRS = ((FULL, AFTER),)
N = 100


@dataclass(frozen=True)
class Config(Bounded):
    """Many beginnings, of which few come to an end."""

    group_size: int = 32        # answers that are begun (n)
    alpha: float = 0.5          # share that is rejected at a time
    memory: int = 32            # steps of all answers to a problem at which some are rejected
    score: Literal["verdicts", "verifier"] = "verdicts"  # whose scores reject and choose
    votes: int = 3              # verdicts sampled on a question
    depth: int = 32             # steps of an answer, at most

    LIMITS = {"alpha": ">= 0, < 1"}


@dataclass
class Answer:
    """An answer, finished or not: how many steps it has, and its score if it is known."""

    text: str = ""
    steps: int = 0
    going: bool = True
    score: float = 0.0
    rejected: int = 0           # the round in which it was rejected, 0 if it was not


def search(prompts, step, score, *, mark, group_size, alpha, memory, depth):
    """The answers to each prompt, rejected ones too, in the order in which they were begun.

    step(texts, n) -> n one-step continuations of each text; one without `mark` ends the answer.
    score(rows) -> a number for each (k, text, going): an answer to prompt k, unfinished if going.
    """
    drawn = [[Answer() for _ in range(group_size)] for _ in prompts]
    rounds = [0] * len(prompts)
    for _ in range(depth):
        going = [(k, a) for k, mine in enumerate(drawn) for a in mine if a.going and not a.rejected]
        for (k, a), (more,) in zip(going, step([prompts[k] + a.text for k, a in going], 1),
                                   strict=True):
            a.text, a.steps, a.going = a.text + more, a.steps + 1, mark in more
        left = {k: [a for a in mine if not a.rejected] for k, mine in enumerate(drawn)}
        full = {k: mine for k, mine in left.items() if any(a.going for a in mine)
                and sum(a.steps for a in mine) >= memory and floor(alpha, len(mine))}
        scored(full, score)
        for k, mine in full.items():
            rounds[k] += 1
            for a in sorted(mine, key=lambda a: a.score)[: floor(alpha, len(mine))]:
                a.rejected = rounds[k]
    scored({k: [a for a in mine if not a.rejected] for k, mine in enumerate(drawn)}, score)
    return drawn


def floor(alpha, n):
    """floor(alpha n) of the alpha that was written: 0.29 of 100 are 29, and not 28.999..."""
    return int(alpha * n + 1e-9)


def scored(parts, score):
    """Score the answers {k: [Answer]}."""
    rows = [(k, a) for k, mine in parts.items() for a in mine]
    for (_, a), value in zip(rows, score([(k, a.text, a.going) for k, a in rows]), strict=True):
        a.score = value


def solve(problems, tools, cfg):
    """The best of the answers that were not rejected: (answers, workings)."""
    if cfg.score == "verifier" and tools.verifier is None:
        raise MinipostError("--score verifier needs a reward model to reject by: --verifier DIR, "
                            "such as --algo prm saves")
    known: dict = {}

    def verdicts(rows):
        return tools.worth([(problems[k], text) for k, text, _ in rows], cfg.votes, known)

    def verifier(rows):
        return beginnings(tools.verified([problems[k].prompt for k, _, _ in rows],
                                         [text for _, text, _ in rows]), [on for *_, on in rows])

    drawn = search([p.prompt for p in problems], tools.step,
                   {"verdicts": verdicts, "verifier": verifier}[cfg.score], mark=tools.mark,
                   group_size=cfg.group_size, alpha=cfg.alpha, memory=cfg.memory, depth=cfg.depth)
    picks = [max((k for k, a in enumerate(mine) if not a.rejected),
                 key=lambda k: (not mine[k].going, mine[k].score, -k)) for mine in drawn]
    return [mine[k].text for mine, k in zip(drawn, picks)], [
        {"chosen": k, "samples": [vars(a) for a in mine]} for mine, k in zip(drawn, picks)]


def arms(problems, tools, cfg):
    """Yield the Arms: with rejection, without it, and best of as few as cost what it cost."""
    start = tools.tokens
    answers, workings = solve(problems, tools, cfg)
    spent = tools.tokens - start
    yield tools.arm(AFTER, problems, answers, workings, start)
    start = tools.tokens
    answers, workings = solve(problems, tools, replace(cfg, alpha=0.0))
    full = tools.tokens - start
    yield tools.arm(FULL.format(**vars(cfg)), problems, answers, workings, start)
    start, few = tools.tokens, max(1, round(cfg.group_size * spent / full))
    answers, workings = solve(problems, tools, replace(cfg, alpha=0.0, group_size=few))
    yield tools.arm(BEFORE, problems, answers, workings, start)


def show(working):
    """The answers as lines: which was chosen, which were rejected and in which round."""
    return [f"{'->' if k == working['chosen'] else '  '} {a['score']:8.3f}  {a['text'].strip()!r}"
            + (f"  rejected in round {a['rejected']}" if a["rejected"] else "")
            for k, a in enumerate(working["samples"])]
