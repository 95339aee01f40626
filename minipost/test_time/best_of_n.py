"""Best of n: sample n answers, let a verifier choose (survey sec. 5.2, 5.8, 5.9; Cobbe et al. 2021,
arxiv.org/abs/2110.14168; Lightman et al. 2023, arxiv.org/abs/2305.20050).

    answer = y_k,   k = argmax_i score(x, y_i),   y_i ~ pi(. | x)

The score is one of

    verifier        a process reward model's chance of the steps: the least, the last or the
                    product; an outcome reward model's is the last alone
    confidence      the policy's own mean log-prob
    own verdicts    the product over the steps of the share of the policy's samples that work the
                    step out again and come to the same (SelfCheck, Miao et al. 2023,
                    arxiv.org/abs/2308.00436, whose comparison is by the model, has a third verdict,
                    and puts verdicts together by a weighted sigmoid)
    both            a process and an outcome reward model's (`--outcome-verifier`; survey sec.
                    3.1.4): the sum of their log-odds, as if they erred independently of each other
    exact checker   with it the result is pass@n

The vote, and the vote weighted by the score, are measured beside these.

If scores are independent with distribution F, the score of the best has distribution F^n.  Against
an exact checker, with c right among n (Chen et al. 2021, arxiv.org/abs/2107.03374),

    pass@k = 1 - C(n - c, k) / C(n, k)

is unbiased.  Choosing among n samples moves the policy by at most KL = log n - (n - 1)/n.
"""

import math
from dataclasses import dataclass
from typing import Literal

from minipost.errors import Bounded, MinipostError
from minipost.measure.results import Arm
from minipost.measure.stats import AGGREGATES, pass_at_k, vote

TASK, KNOBS = "arithmetic", {"hurried": True}
VERIFIER = "checkpoints/verifier"
BEFORE, AFTER = "vote", "verifier"


@dataclass(frozen=True)
class Config(Bounded):
    """Sampled answers, and how one of them is chosen."""

    group_size: int = 16        # answers to a problem (n)
    aggregate: Literal["min", "last", "product"] = "min"  # a solution's chance from its steps'
    outcome_verifier: str = ""  # directory of an outcome reward model, to choose by both
    votes: int = 3              # samples of the model's own verdict on a step


def best(scores):
    """The index of the highest score, the first of equals; nan is never the highest."""
    return max(range(len(scores)), key=lambda k: (scores[k] == scores[k], scores[k], -k))


def verified(problems, drawn, tools, *directory):
    """The verifier's chances [problem][sample]: a list of each step's and, last, the whole's.

    directory: of another reward model in its place.
    """
    if tools.verifier is None:
        raise MinipostError("best-of-n needs a reward model to choose with: --verifier DIR, such "
                            "as --algo prm or orm saves")
    flat = [(p.prompt, text) for p, texts in zip(problems, drawn) for text in texts]
    found = iter(tools.verified(*map(list, zip(*flat)), *directory))
    return [[next(found) for _ in texts] for texts in drawn]


def aggregate(chances, how):
    """One chance for each sample."""
    return [[AGGREGATES[how](steps) for steps in row] for row in chances]


def log_odds(chance):
    """log p/(1 - p), with p at least 1e-9 from 0 and 1."""
    p = min(max(chance, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def both(scores, others):
    """The sum of the log-odds of two chances for each sample.

    If a right and a wrong answer get theirs from each model independently, and each knows the
    chance that an answer is right, this is Bayes' rule up to a number that all samples share.
    """
    return [[log_odds(a) + log_odds(b) for a, b in zip(*rows, strict=True)]
            for rows in zip(scores, others, strict=True)]


def chosen(drawn, scores):
    """(answers, workings) by the highest score."""
    picks = [best(row) for row in scores]
    return [texts[k] for texts, k in zip(drawn, picks)], [
        {"chosen": k, "samples": [{"text": text, "score": s} for text, s in zip(texts, row)]}
        for texts, row, k in zip(drawn, scores, picks)]


def solve(problems, tools, cfg):
    """The sample of each problem that the verifier scores highest: (answers, workings)."""
    drawn = tools.sample([p.prompt for p in problems], cfg.group_size)
    score = aggregate(verified(problems, drawn, tools), cfg.aggregate)
    if cfg.outcome_verifier:
        score = both(score, aggregate(verified(problems, drawn, tools, cfg.outcome_verifier),
                                      "last"))
    return chosen(drawn, score)


def arms(problems, tools, cfg):
    """Yield the Arm of each way to choose among the same samples."""
    prompts, n, start = [p.prompt for p in problems], cfg.group_size, tools.tokens
    drawn = tools.sample(prompts, n)
    spent = tools.tokens - start
    first, workings = chosen([texts[:1] for texts in drawn], [[0.0] for _ in drawn])
    yield Arm.of("1 sample", spent / n, tools.right(problems, first), first, workings)
    every = [p for p in problems for _ in range(n)]
    flat = [text for texts in drawn for text in texts]

    def rows(values):
        return [values[k * n : (k + 1) * n] for k in range(len(problems))]

    answers = [[tools.task.ballot(text) for text in texts] for texts in drawn]
    chances, right = verified(problems, drawn, tools), rows(tools.right(every, flat))
    score = aggregate(chances, cfg.aggregate)
    scores = {
        "vote": support(answers),
        "confidence": rows(tools.confidence([p.prompt for p in every], flat)),
        "vote weighted by the verifier": support(answers, score),
        "verifier": score,
        **{f"verifier, {how}": aggregate(chances, how)
           for how in AGGREGATES if how != cfg.aggregate},
        "exact checker": right,
    }
    if cfg.outcome_verifier:
        outcome = aggregate(verified(problems, drawn, tools, cfg.outcome_verifier), "last")
        scores |= {"outcome verifier": outcome, "both verifiers": both(score, outcome)}
    for name, found in scores.items():
        texts, workings = chosen(drawn, found)
        yield Arm.of(name, spent, tools.right(problems, texts), texts, workings)
    if tools.task.questions is not None:
        worth = rows(tools.worth(list(zip(every, flat)), cfg.votes, {}))
        texts, workings = chosen(drawn, worth)
        yield tools.arm("own verdicts", problems, texts, workings, start)
    for k in (2**j for j in range(1, 9) if 2**j < n):       # as if k were drawn; texts as above
        passed = [pass_at_k(n, sum(good == 1.0 for good in row), k) for row in right]
        yield Arm.of(f"exact checker, n={k}", spent * k / n, passed, texts, workings)


def support(answers, weights=None):
    """Each sample's votes: the weight of all that state its answer; -inf without an answer."""
    counts = [dict(vote(row, weights and weights[k])) for k, row in enumerate(answers)]
    return [[count.get(a, -math.inf) for a in row] for row, count in zip(answers, counts)]


def show(working):
    """The working as lines."""
    return [f"{'->' if k == working['chosen'] else '  '} {found['score']:8.3f}  "
            f"{found['text'].strip()!r}" for k, found in enumerate(working["samples"])]
