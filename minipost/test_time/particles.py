"""Particle filtering: beginnings of answers, resampled by a process reward model (survey sec. 7;
Puri et al. 2025, arxiv.org/abs/2502.01618).

`particles` (N) answers are begun.  In each round

    propagate   every unfinished one goes on by one step, sampled from the model
    weigh       w_i is the log-odds of the reward model's chance for what stands there so far
    resample    all N are drawn anew, with replacement, j with chance  exp(w_j / tau) / sum

until all are finished.  The answer is the particle of the highest weight.  So this samples from the
model's answers, each weighed by the reward model's odds, and does not look for the highest score as
a beam does: with tau to infinity nobody is preferred and it is N samples, with tau to 0 all
particles are copies of the best, a beam of one.

The chance of a beginning is the least of its steps' chances, and when it is finished also of the
whole.  The weight is that of the whole beginning and is not multiplied by earlier ones, as in the
authors' code (its_hub), which also takes the log-odds and resamples finished particles with the
others.  A resampled particle that goes on is a copy, and its next step is drawn apart.

The controls spend as many tokens: the best of so many whole answers by the same reward model, and a
beam, which keeps the best quarter of the particles and copies each four times.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import beginnings

TASK, KNOBS = "arithmetic", {"hurried": True}
VERIFIER = "checkpoints/verifier"
BEFORE, AFTER = "best of {particles}", "particles"
PAIRS = (("beam", "particles"),)
BRANCHING = 4   # copies of each particle that the beam keeps
LEAST = 1e-7    # chances are cut to within this and 1 less this, as in the authors' code


@dataclass(frozen=True)
class Config(Bounded):
    """Answers that are thinned out and multiplied on the way."""

    particles: int = 16         # answers that are under way at a time (N)
    tau: float = 1.0            # temperature of the weights
    resample: Literal["softmax", "top", "never"] = "softmax"  # top: a beam; never: best of N
    depth: int = 32             # steps of an answer, at most

    LIMITS = {"particles": ">= 1, <= 10000", "tau": "> 0"}


def search(prompts, step, chance, *, mark, particles, tau, resample, depth):
    """The particles of each prompt, [(text, going, weight)], and the rounds that led there.

    step(texts, n) -> n one-step continuations of each text; one without `mark` ends the answer.
    chance(rows) -> the chance of each (k, text, going): an answer to prompt k, unfinished if going.
    A round is, for each particle, (the particle of the round before that it goes on from, weight).
    """
    swarms = [[("", True, 0.0)] * particles for _ in prompts]
    rounds = [[] for _ in prompts]
    rngs = [random.Random(f"particles of {k}") for k in range(len(prompts))]
    for _ in range(depth):
        going = [(k, i) for k, swarm in enumerate(swarms) for i, p in enumerate(swarm) if p[1]]
        if not going:
            break
        nexts = step([prompts[k] + swarms[k][i][0] for k, i in going], 1)
        rows = [(k, swarms[k][i][0] + more, mark in more)
                for (k, i), (more,) in zip(going, nexts, strict=True)]
        for (k, i), (_, text, on), p in zip(going, rows, chance(rows), strict=True):
            p = min(max(p, LEAST), 1 - LEAST)
            swarms[k][i] = text, on, math.log(p / (1 - p))
        for k in {k for k, _ in going}:
            parents = list(range(particles))
            if any(on for _, on, _ in swarms[k]):
                parents = chosen([w for _, _, w in swarms[k]], resample, tau, rngs[k])
            swarms[k] = [swarms[k][i] for i in parents]
            rounds[k].append([(i, p[2]) for i, p in zip(parents, swarms[k])])
    return swarms, rounds


def chosen(weights, resample, tau, rng):
    """Which particles stand at the places of the next round."""
    n = len(weights)
    if resample == "softmax":
        most = max(weights)
        return rng.choices(range(n), [math.exp((w - most) / tau) for w in weights], k=n)
    if resample == "top":
        order = sorted(range(n), key=lambda i: -weights[i])
        return [order[i // BRANCHING] for i in range(n)]
    return list(range(n))


def solve(problems, tools, cfg):
    """The finished particle of the highest weight: (answers, workings)."""
    if tools.verifier is None:
        raise MinipostError("particles need a reward model that weighs them: --verifier DIR, such "
                            "as --algo prm saves")

    def chance(rows):
        return beginnings(tools.verified([problems[k].prompt for k, _, _ in rows],
                                         [text for _, text, _ in rows]), [on for *_, on in rows])

    swarms, rounds = search([p.prompt for p in problems], tools.step, chance, mark=tools.mark,
                            **vars(cfg))
    picks = [max(swarm, key=lambda p: (not p[1], p[2])) for swarm in swarms]
    return [text for text, _, _ in picks], [
        {"rounds of particles": made, "answer": text, "weight": weight}
        for (text, _, weight), made in zip(picks, rounds)]


def arms(problems, tools, cfg):
    """Yield the Arms: particles, a beam of as many, and best of as many as cost the same.

    Best of as many particles costs about the same by itself: each writes one answer at a time.
    """
    for name, how in ((AFTER, "softmax"), ("beam", "top"), (BEFORE, "never")):
        start = tools.tokens
        answers, workings = solve(problems, tools, replace(cfg, resample=how))
        yield tools.arm(name.format(**vars(cfg)), problems, answers, workings, start)


def show(working):
    """The rounds as lines: how many particles of the round before have children, and weights."""
    lines = []
    for k, made in enumerate(working["rounds of particles"]):
        weights = [w for _, w in made]
        lines.append(f"step {k + 1}: {len({i for i, _ in made})} of {len(made)} go on; log-odds "
                     f"{min(weights):.2f} to {max(weights):.2f}")
    return [*lines, f"answer, log-odds {working['weight']:.2f}: {working['answer'].strip()!r}"]
