"""Self-consistency: sample n answers and take the one most of them agree on (survey sec. 5.5; Wang
et al. 2022, arxiv.org/abs/2203.11171).

    answer = argmax_a sum_i w_i [ parse(y_i) = a ],     y_i ~ pi(. | x)

with w_i = 1, or a weight for each sample such as how likely the model finds it.  Samples that state
no answer have no vote.  Ties go to the answer that was stated first.

By Condorcet's theorem the vote approaches certainty as n grows where the right answer is the
likeliest one.  It approaches error where a wrong one is (Condorcet 1785).  So votes cure slips and
not faults.  `arms` asks the same problems in the mode that slips at random and, where the task has
one, in the mode with a fault.  Beside a vote it measures whether any of its samples is right.  No
choice among the samples can reach more.
"""

import math
from dataclasses import dataclass, replace

from minipost.errors import Bounded, MinipostError
from minipost.measure.results import Arm
from minipost.measure.stats import winner

TASK, KNOBS = "arithmetic", {}
BEFORE, AFTER = "n=1", "n={group_size}"


@dataclass(frozen=True)
class Config(Bounded):
    """A vote among sampled answers."""

    group_size: int = 17        # answers to a problem (n)
    curve: tuple[int, ...] = (1, 3, 5, 9, 17, 33)  # further numbers of samples to measure

    def __post_init__(self):
        super().__post_init__()
        if not all(1 <= n <= 10_000 for n in self.curve):
            raise MinipostError(f"curve is {self.curve}; expected numbers from 1 to 10000")


def elect(texts, ballot, weights=None):
    """The first text that states the winning answer, and the count; if no votes, the first text."""
    first, count = winner([ballot(text) for text in texts], weights)
    return texts[first], count


def elected(problems, drawn, task, weights=None):
    """The vote on each problem's samples: (answers, workings)."""
    found = [elect(texts, task.ballot, weights and weights[k]) for k, texts in enumerate(drawn)]
    return [text for text, _ in found], [
        {"votes": [{"answer": str(answer), "votes": votes} for answer, votes in count],
         "samples": texts} for (_, count), texts in zip(found, drawn)]


def solve(problems, tools, cfg):
    """The vote of cfg.group_size samples on each problem: (answers, workings)."""
    drawn = tools.sample([p.prompt for p in problems], cfg.group_size)
    return elected(problems, drawn, tools.task)


def arms(problems, tools, cfg):
    """Yield the Arm of each number of samples, from the smallest on."""
    modes = [("", problems)]
    if tools.task.hurried is False and not tools.task.direct:
        modes.append((", hurried", [replace(tools.task, hurried=True).like(p) for p in problems]))
    for mode, asked in modes:
        start, prompts, drawn = tools.tokens, [p.prompt for p in asked], [[] for _ in asked]
        for n in sorted({1, *cfg.curve, cfg.group_size}):
            for texts, more in zip(drawn, tools.sample(prompts, n - len(drawn[0]))):
                texts += more
            answers, workings = elected(asked, drawn, tools.task)
            name = f"n={n}{mode}"
            yield tools.arm(name, asked, answers, workings, start)
            if n > 1:
                every = iter(tools.right([p for p in asked for _ in range(n)],
                                         [text for texts in drawn for text in texts]))
                best = [max(next(every) for _ in texts) for texts in drawn]
                yield Arm.of(f"any of {name}", tools.tokens - start, best, answers, workings)
        flat = [text for texts in drawn for text in texts]
        sure = tools.confidence([p for p in prompts for _ in range(n)], flat)
        weights = [[math.exp(c) for c in sure[k * n : (k + 1) * n]] for k in range(len(asked))]
        answers, workings = elected(asked, drawn, tools.task, weights)
        yield tools.arm(f"n={n} weighted by likelihood{mode}", asked, answers, workings, start)


def show(working):
    """The working as lines."""
    return [*(f"sample: {text.strip()!r}" for text in working["samples"]),
            *(f"{entry['votes']:g} votes for {entry['answer']}" for entry in working["votes"])]
