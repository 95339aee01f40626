"""Compute-optimal choice by difficulty (survey sec. 5.3; Snell et al. 2024,
arxiv.org/abs/2408.03314).

Tokens can be spent in parallel, on answers that vote, or in sequence, on drafts that the model
criticises and revises (self_feedback.py), several such chains side by side, whose last answers
vote.  Which is better may depend on how hard the problem is for the model.  So

    1  `probes` answers say how difficult a problem is: by how many are right (oracle), or by what
       the model's own verdicts on their steps say (estimated)
    2  training problems are cut into `bins` bins by their difficulty, of equal number but for ties
    3  in each bin the way is chosen that gets more of its training problems right
    4  a problem is answered in the way of its bin

Both ways cost `budget` answers each: the number of chains is such that they cost as many tokens on
the training problems, and one where a chain costs more than that.  Probes and verdicts on held-out
problems count, those on training problems do not; so either way alone is also measured with as many
tokens more ("its tokens").  Where we differ: the paper has no probes in its count, takes 2048 of
them, and chooses among more ratios of parallel to sequential answers than two, by a
cross-validation within the test set.  Its reviser is fine-tuned and reads up to four earlier
answers, no critique; a learnt verifier says how difficult a problem is, and takes the best answer
of a chain.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass
from statistics import fmean

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import winner
from minipost.test_time import self_feedback

TASK, KNOBS = "arithmetic", {"hurried": True, "fewest": 2, "terms": 8}
BEFORE, AFTER = "sequential, its tokens", "by difficulty"
PAIRS = (("parallel, its tokens", AFTER), ("sequential alone", AFTER), ("parallel alone", AFTER))
N = 400


@dataclass(frozen=True)
class Config(Bounded):
    """Parallel or sequential, as it was better for problems as difficult as this."""

    budget: int = 8             # answers to a problem, or chains that cost as much
    attempts: int = 4           # answers of a chain, at most
    probes: int = 4             # answers that say how difficult a problem is
    bins: int = 5               # of equally many training problems
    training: int = 300         # training problems on which the ways are compared
    votes: int = 3              # verdicts sampled on a step
    oracle: bool = False        # ask the exact checker, not the model, which probes are right

    LIMITS = dict.fromkeys(("budget", "probes", "bins"), ">= 1, <= 10000")


def answered(problems, tools, chains, attempts):
    """The vote of the last answers of so many chains on each problem."""
    rounds = self_feedback.refine([p for p in problems for _ in range(chains)], tools.sample,
                                  tools.task, attempts)
    last = [found[-1]["answer"] for found in rounds]
    each = [last[k : k + chains] for k in range(0, len(last), chains)]
    return [texts[winner([tools.task.ballot(text) for text in texts])[0]] for texts in each]


def difficulty(problems, tools, cfg):
    """How easy each problem is, within 0..1: the mean of its probes."""
    drawn = tools.sample([p.prompt for p in problems], cfg.probes)
    every = [p for p in problems for _ in range(cfg.probes)]
    flat = [text for texts in drawn for text in texts]
    worth = tools.right(every, flat) if cfg.oracle else tools.worth(list(zip(every, flat)),
                                                                    cfg.votes, {})
    return [fmean(worth[k : k + cfg.probes]) for k in range(0, len(worth), cfg.probes)]


def learn(tools, cfg):
    """What training problems teach: {"chains", "edges", "ways", "rows"}.

    ways: of each bin, "parallel" or "sequential".  edges: where each bin but the first begins.
    rows: of each bin, the share right of either way; 0.0 where ties leave a bin empty.
    """
    if tools.task.critique is None:
        raise MinipostError(f"the task {tools.task.name} has no form for a critique (no `critique` "
                            "and `revise`); arithmetic has one")
    problems = tools.task.sample(cfg.training, random.Random("by difficulty"))
    costs = []
    for attempts in (1, cfg.attempts):
        start = tools.tokens
        answered(problems, tools, 1, attempts)
        costs.append(tools.tokens - start)
    chains = max(1, round(cfg.budget * costs[0] / max(1, costs[1])))
    easy = difficulty(problems, tools, cfg)
    right = {way: tools.right(problems, answered(problems, tools, *each))
             for way, each in ways(cfg, chains).items()}
    order = sorted(easy)
    edges = [order[len(order) * b // cfg.bins] for b in range(1, cfg.bins)]
    parts = [[k for k, d in enumerate(easy) if bisect_right(edges, d) == b]
             for b in range(cfg.bins)]
    rows = [{way: fmean(right[way][k] for k in part) if part else 0.0 for way in right}
            for part in parts]
    return {"chains": chains, "edges": edges, "rows": rows,
            "ways": [max(row, key=row.__getitem__) for row in rows]}


def ways(cfg, chains):
    """The chains and the attempts of each way."""
    return {"parallel": (cfg.budget, 1), "sequential": (chains, cfg.attempts)}


def chosen(problems, tools, cfg, known):
    """Answer in the way of each problem's bin: (answers, workings)."""
    easy, answers = difficulty(problems, tools, cfg), {}
    bins = [bisect_right(known["edges"], d) for d in easy]
    for way, (chains, attempts) in ways(cfg, known["chains"]).items():
        mine = [k for k, b in enumerate(bins) if known["ways"][b] == way]
        answers |= zip(mine, answered([problems[k] for k in mine], tools, chains, attempts))
    return [answers[k] for k in range(len(problems))], [
        {"bin": b, "easy": d, "answer": answers[k], **known}
        for k, (b, d) in enumerate(zip(bins, easy))]


def solve(problems, tools, cfg):
    """Learn on training problems, then answer in the way of each bin: (answers, workings)."""
    return chosen(problems, tools, cfg, learn(tools, cfg))


def arms(problems, tools, cfg):
    """Yield the Arms: either way alone, by difficulty, and either way with as many tokens."""
    known, single = learn(tools, cfg), {}

    def alone(name, chains, attempts):
        start = tools.tokens
        answers = answered(problems, tools, chains, attempts)
        return tools.arm(name, problems, answers, [
            {"bin": None, "easy": 0.0, "answer": text, **known} for text in answers], start)

    for way, each in ways(cfg, known["chains"]).items():
        single[way] = alone(f"{way} alone", *each)
        yield single[way]
    start = tools.tokens
    best = tools.arm(AFTER, problems, *chosen(problems, tools, cfg, known), start)
    yield best
    for way, (chains, attempts) in ways(cfg, known["chains"]).items():
        more = max(1, round(chains * best.tokens / max(1, single[way].tokens)))
        yield alone(f"{way}, its tokens", more, attempts)


def show(working):
    """What was learnt, and the problem's bin, as lines."""
    lines = [f"bin {b + 1}: parallel {row['parallel']:.3f}, sequential {row['sequential']:.3f} of "
             f"the training problems right; {way}"
             for b, (row, way) in enumerate(zip(working["rows"], working["ways"]))]
    if working["bin"] is not None:
        lines.append(f"this problem: {working['easy']:.2f} easy, bin {working['bin'] + 1}")
    return [*lines, f"answer: {working['answer'].strip()!r}"]
