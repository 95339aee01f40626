"""Early exit from a vote by confidence (survey sec. 5.8; adaptive consistency, Aggarwal et al.
2023, arxiv.org/abs/2305.11860).

Answers are sampled one after another.  After each, with a votes for the leading answer and b for
the next, sampling stops when the lead is safe:

    P(p > 1/2) >= threshold,    p ~ Beta(a + 1, b + 1)

p is the leading answer's share of the votes for these two, and the prior is uniform.  For whole
numbers the probability is that of at most a heads among a + b + 1 tosses of a fair coin.  At most
`group_size` answers are sampled.  Threshold and number are the paper's, 0.95 and 40.  With a
threshold of 1 this is self-consistency.

The other way to stop is by the model's own confidence (`stop own`): at the first answer whose mean
log-prob, as a probability, is at least `sure`; if none is, at the surest.  It needs no second
answer.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from minipost.errors import Bounded
from minipost.measure.stats import vote, winner

TASK, KNOBS = "arithmetic", {}
BEFORE, AFTER = "vote, its tokens", "safe lead"
FULL = "vote of {group_size}"
PAIRS = ((FULL, AFTER), (FULL, "own confidence"))


@dataclass(frozen=True)
class Config(Bounded):
    """A vote that ends when it is decided."""

    group_size: int = 40        # answers to a problem, at most (n)
    threshold: float = 0.95     # chance that the lead is safe, from which sampling stops
    stop: Literal["lead", "own"] = "lead"  # what stops: a safe lead, or the model's own confidence
    sure: float = 0.97          # confidence at which the model's own answer is taken

    LIMITS = {"threshold": ">= 0, <= 1", "sure": ">= 0, <= 1"}


def safe(count):
    """The chance that the leading answer of a vote is the likelier of the first two."""
    a, b = ([votes for _, votes in count] + [0, 0])[:2]
    tosses = int(a + b) + 1
    return sum(math.comb(tosses, k) for k in range(int(a) + 1)) / 2**tosses


def search(prompts, sample, ballot, confidence, *, group_size, threshold, stop, sure):
    """The samples of each prompt, up to where it stopped: [[(text, confidence)]].

    sample(texts, n) -> n answers to each text.  confidence(prompts, texts) -> mean log-probs; it is
    only asked where the model's own confidence stops.
    """
    drawn, going = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(group_size):
        if not going:
            break
        asked = [prompts[k] for k in going]
        texts = [text for text, in sample(asked, 1)]
        logps = confidence(asked, texts) if stop == "own" else [0.0] * len(texts)
        for k, text, logp in zip(going, texts, logps, strict=True):
            drawn[k].append((text, math.exp(logp)))
        if stop == "own":
            going = [k for k in going if drawn[k][-1][1] < sure]
        else:
            going = [k for k in going if threshold == 1
                     or safe(vote([ballot(text) for text, _ in drawn[k]])) < threshold]
    return drawn


def solve(problems, tools, cfg):
    """The winner of each vote, or the answer that was sure enough: (answers, workings)."""
    drawn = search([p.prompt for p in problems], tools.sample, tools.task.ballot, tools.confidence,
                   **vars(cfg))
    answers, workings = [], []
    for mine in drawn:
        texts = [text for text, _ in mine]
        first, count = winner([tools.task.ballot(text) for text in texts])
        if cfg.stop == "own":
            first = max(range(len(mine)), key=lambda k: (mine[k][1], -k))
        answers.append(texts[first])
        workings.append({"votes": [{"answer": str(a), "votes": n} for a, n in count],
                         "samples": texts, "safe": safe(count)})
    return answers, workings


def arms(problems, tools, cfg):
    """Yield the Arms: both ways to stop, all samples, and as many for all as a safe lead took."""
    spent = {}
    for name, changes in ((AFTER, {"stop": "lead"}), ("own confidence", {"stop": "own"}),
                          (FULL, {"stop": "lead", "threshold": 1.0})):
        start = tools.tokens
        answers, workings = solve(problems, tools, replace(cfg, **changes))
        spent[name] = tools.tokens - start
        yield tools.arm(name.format(**vars(cfg)), problems, answers, workings, start)
    start, few = tools.tokens, max(1, round(cfg.group_size * spent[AFTER] / spent[FULL]))
    answers, workings = solve(problems, tools, replace(cfg, group_size=few, threshold=1.0,
                                                       stop="lead"))
    yield tools.arm(BEFORE, problems, answers, workings, start)


def show(working):
    """The votes as lines, and how safe the lead was."""
    return [f"stopped after {len(working['samples'])} samples, lead safe by {working['safe']:.3f}",
            *(f"{entry['votes']:g} votes for {entry['answer']}" for entry in working["votes"])]
