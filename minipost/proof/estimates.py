"""Gradient estimates: each method's own training step, on every rollout of the smallest kind.

The mean of the step over all rollouts is computed by the code that trains (oracle.Dealer), and held
against the exact gradient of what the method should descend (exact.py).  A method whose mean is in theory
a multiple of that gradient has to hit it to rounding.  One that aims elsewhere is not forced to agree: by
how much it differs is what is reported.

Most methods divide their step by the tokens of the rollout.  Those are drawn with the answers, so the
mean of the quotient is not the quotient of the means: the theorems are about the step before that division
("per answer"), and what the division does is reported beside.  It fades as rollouts grow (`by_size`).
"""

import copy
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from minipost import methods
from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.methods import distill, rft, sft
from minipost.proof import exact
from minipost.proof.exact import Exact
from minipost.proof.oracle import Dealer, Recorder, divergence, relative
from minipost.run import REWARD_MODEL, Frozen

EXACT = 1e-9    # relative distance up to which two float64 vectors are the same
SURE = 5.0      # standard errors beyond which a sampled mean is another one
BASELINE = 0.3  # REINFORCE's moving average, held there


# ---- the smallest step of every method

def method_of(name):
    """The method's command-line name, without what it is run with."""
    return name.replace(",", " ").split()[0]


AIMS = {  # what a loss of exact.py is called in the tables; "its loss" where a method has its own
    "minus_reward": "J", "minus_regularised": "J_b", "maximum_likelihood": "likelihood",
    "centred_bradley_terry": "Bradley-Terry", "bradley_terry": "Plackett-Luce",
    "outcome_entropy": "cross-entropy", "step_entropy": "cross-entropy",
    "minus_success": "P(right)", "forward_kl": "forward KL", "reverse_kl": "reverse KL",
}
LENGTHS = "exact but for the division by the rollout's own tokens"


@dataclass(frozen=True)
class Estimate:
    """A method's step on `rows` answers to one prompt, and what its mean over all of them should be.

    A method states it in its own file: PROOF is a list of dicts of these fields, all but the name.

    loss     what it should descend: the name of a function in exact.py
    factor   the mean is so many times that gradient, once the step's own divisor is put back to the
             number of answers; None where the method aims elsewhere, and `why` says how
    divisor  "tokens": the step divides by the tokens that it was dealt; "longest": by answers x longest;
             "marks": by the tokens at which steps end; "kept": by the tokens that it keeps;
             "rows": by answers or pairs
    learner  the learner that the step is of
    variant  the flags that tell it from others of the method
    """

    name: str
    config: dict
    rows: int
    loss: str
    factor: float | None = None
    why: str = ""
    divisor: str = "rows"
    learner: str = "policy"
    variant: str = ""

    @property
    def aim(self):
        return AIMS.get(self.loss, "its loss")

    @property
    def reason(self):
        """Why the mean step is not that gradient, or not quite."""
        return self.why or (LENGTHS if self.divisor == "tokens" else "")

    @property
    def module(self):
        return methods.load(method_of(self.name)).module


def stated(name):
    """The Estimates of a method's PROOF; [] where it says in words why it has none of its own.

    MinipostError where there is no PROOF at all.
    """
    method = methods.load(name)
    if not method.PROOF:
        raise MinipostError(f"{method.module.__file__}: has no PROOF, which says what gradient its mean "
                            "step is; minipost/proof/estimates.py says how it is written (Estimate)")
    if isinstance(method.PROOF, str):
        return []
    return [Estimate(**{**fields, "name": f"{name} {fields.get('variant', '')}".strip()})
            for fields in method.PROOF]


ESTIMATES = [e for name in methods.names() if methods.load(name).PROOF for e in stated(name)]
INHERITS = {name: said for name in methods.names() if isinstance(said := methods.load(name).PROOF, str)}


def dealer(world, sampler=None, critic=None):
    """A run in which every learner is a Recorder."""
    run = Dealer(Recorder(copy.deepcopy(world.policy)), world.words, world.task, world.task.reward,
                 max_new_tokens=world.horizon, world=world, sampler=sampler)
    start = Frozen(copy.deepcopy(world.reference))          # `world.reference` may go on learning
    run.parts["frozen/reference"] = run.parts["frozen/start"] = start
    run.parts["learner/critic"] = Recorder(critic or RewardModel(copy.deepcopy(world.reference)))
    scorer = RewardModel(copy.deepcopy(world.reference))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        scorer.score.weight.copy_(torch.randn(scorer.score.weight.shape, generator=generator,
                                              dtype=torch.float64))
    run.parts[f"learner/{REWARD_MODEL}"] = Recorder(scorer)
    return run


def stepper(estimate, run, label=None):
    """A function that makes one step of the method and returns the gradient that it took.  (W,)"""
    module, options = estimate.module, {}
    if label is not None:
        options["label"] = label
    if module is distill:
        options["teacher"] = run.world.reference

    def step():
        run.carried = {"baseline": BASELINE}
        learner = run.learners[estimate.learner]
        learner.seen = torch.zeros_like(learner.flat)       # where there is nothing to learn from
        try:
            run.metrics = next(module.train(run, module.Config(**estimate.config), **options))
        except MinipostError:
            if module is not rft:                           # which says so where nothing is right
                raise
        return learner.seen

    return step


def divisor_of(estimate, run, prompt, rows):
    """What the step divides by, for each answer that it is dealt."""
    world, task = run.world, run.task
    lengths = {row: int(world.seqs.lengths[prompt * world.count + row]) for row in rows}
    if estimate.divisor == "rows":
        return 1.0
    if estimate.divisor == "longest":
        return float(world.horizon)
    if estimate.divisor == "marks":                         # the ends of steps, and what is no such end
        texts = [world.texts[row] for row in rows]
        over = [len(text) < lengths[row] or not text.endswith(task.step_end)
                for row, text in zip(rows, texts)]
        return (sum(text.count(task.step_end) for text in texts) + sum(over)) / len(rows)
    if estimate.divisor == "kept":
        return sum(n for row, n in lengths.items()
                   if world.reward[prompt, row] >= estimate.config["least"]) / len(rows)
    return sum(lengths[row] for row in rows) / len(rows)


@dataclass
class Mean:
    """The mean of a step over all rollouts: as it is, with its divisor put back, and its square."""

    step: torch.Tensor
    whole: torch.Tensor
    square: float
    chance: float

    @property
    def noise(self):
        """Deviation of one step, as a share of the mean's size."""
        return math.sqrt(max(0.0, self.square - float(self.step @ self.step))) / float(self.step.norm())


def hands(world, rows):
    """Every rollout of so many answers to one prompt, with how many orders it stands for."""
    for prompt in range(len(world.prompts)):
        for hand in itertools.combinations_with_replacement(range(world.count), rows):
            yield prompt, list(hand), math.factorial(rows) if len(set(hand)) == rows else 1


def enumerate_step(estimate, run, labels=(None,)):
    """The Mean of a method's step.  `labels` are the outcomes that a labeller may have besides.

    The answers of a rollout are exchangeable, so each set of two is dealt once and counted twice.
    """
    found = None
    for label in labels:
        step = stepper(estimate, run, label)
        for prompt, rows, orders in hands(run.world, estimate.rows):
            run.deal_hand(prompt, rows)
            if estimate.module is sft and not run.show(rows[0]):
                continue
            gradient = step()
            chance = math.exp(run.log_chance) * orders / len(run.world.prompts)
            found = found or Mean(torch.zeros_like(gradient), torch.zeros_like(gradient), 0.0, 0.0)
            found.step += chance * gradient
            found.whole += chance * divisor_of(estimate, run, prompt, rows) * gradient
            found.square += chance * float(gradient @ gradient)
            found.chance += chance
    run.hand = None
    return found


def split(vector, gradient):
    """A vector as `size` times a gradient and a rest.  -> size, the rest as a share of the vector

    The share is the sine of the angle between the two.
    """
    size = float(vector @ gradient / (gradient @ gradient))
    return size, float((vector - size * gradient).norm() / vector.norm())


def gradient_of(estimate, run):
    """The exact gradient of what a method should descend, at the policy of this run.  (W,)"""
    world, module = copy.copy(run.world), run.learners[estimate.learner].module
    world.policy = run.policy.module
    return world.slope(module, getattr(exact, estimate.loss)(Exact(world, module)))


def measure(estimate, world, samples):
    """All about a method's estimate, as plain data.

    size, off    the mean step is `size` times the gradient, and a rest (see `split`)
    off_answer   that rest where the step is not divided by the tokens, but by the answers
    error        of a method with a factor: how far that mean is from factor x gradient, relatively
    noise        deviation of one step, as a share of the mean's size
    sampled      `size` of the mean of so many steps on answers that were sampled, with its interval; and
                 over five directions the most standard errors from what it should be
    """
    run = dealer(world)
    mean, gradient = enumerate_step(estimate, run), gradient_of(estimate, run)
    size, off = split(mean.step, gradient)
    found = {
        "name": estimate.name, "config": estimate.config, "answers": estimate.rows,
        "aim": estimate.aim, "factor": estimate.factor, "why": estimate.reason, "chance": mean.chance,
        "size": size, "off": off, "off_answer": split(mean.whole, gradient)[1], "noise": mean.noise,
        "sampled": against_samples(estimate, run, mean.step, gradient, samples),
    }
    if estimate.factor is not None:
        found["error"] = relative(mean.whole, estimate.factor * gradient)
    found["holds"] = abs(mean.chance - 1) < EXACT and found.get("error", 0.0) < EXACT and \
        found["sampled"]["z"] < SURE
    return found


def against_samples(estimate, run, mean, gradient, samples):
    """Steps on answers that the method sampled, held against the mean step over all answers."""
    run.task, run.hand = run.world.task, None
    step, generator = stepper(estimate, run), torch.Generator().manual_seed(1)
    along = torch.stack([gradient / (gradient @ gradient), *torch.randn(
        4, len(gradient), generator=generator, dtype=gradient.dtype)])
    steps = []
    for run.seed in range(samples):
        steps.append(along @ step())
    seen = torch.stack(steps)                                               # (samples, 5)
    error = seen.std(0) / math.sqrt(samples)
    value, half = float(seen[:, 0].mean()), 1.96 * float(error[0])
    return {"n": samples, "value": value, "low": value - half, "high": value + half,
            "z": float(((seen.mean(0) - along @ mean).abs() / error.clamp(min=1e-12)).max())}


def by_size(world, sizes=(1, 2, 16, 256)):
    """What division by a rollout's own tokens does to REINFORCE, for rollouts of so many answers.

        mean step = sum over y of pi(y) (r - b) grad log pi(y) B E[ 1 / (|y| + the others' tokens) ]

    where the others' tokens are distributed as the sum of B - 1 lengths.  -> [{"answers", "off"}]
    """
    log_p = world.log_chance(world.policy)
    weight = log_p.detach().exp() / 2 * (world.reward - BASELINE)           # (P, S)
    lengths = world.seqs.lengths.view(2, -1)
    chance = torch.zeros(world.horizon + 1, dtype=torch.float64).index_add(
        0, lengths.flatten(), log_p.detach().exp().flatten() / 2).numpy()
    gradient, found = world.slope(world.policy, (weight * log_p).sum()), []
    others, many = np.ones(1), 1
    for size in sizes:
        while many < size:
            others, many = np.convolve(others, chance), many + 1
        share = torch.tensor([(others / (np.arange(len(others)) + n)).sum() if n else 0.0
                              for n in range(world.horizon + 1)])
        step = world.slope(world.policy, (weight * size * share[lengths] * world.log_chance(
            world.policy)).sum())
        found.append({"answers": size, "off": split(step, gradient)[1]})
    return found


# ---- away from the policy that sampled

CLIPS = {"reinforce-pp": ("clip",), "ppo": ("clip",), "grpo": ("clip",), "dr-grpo": ("clip",),
         "dapo": ("clip_low", "clip_high"), "trpo": ()}


def clipped(estimate, world, far=0.25):
    """How far a mean step is from the gradient at a policy that has moved since it sampled.

    -> {"name", "kl": of the move, "off": with the clip, "off_free": without}
    """
    found = {"name": estimate.name}
    for key, width in (("off", {}), ("off_free", dict.fromkeys(CLIPS[estimate.name], 1e6))):
        run, generator = dealer(world, sampler=world.policy), torch.Generator().manual_seed(2)
        move = torch.randn(run.policy.flat.shape, generator=generator, dtype=torch.float64)
        run.policy.assign(run.policy.flat + far * run.policy.flat.std() * move)
        mean = enumerate_step(replace(estimate, config={**estimate.config, **width}), run)
        found[key] = split(mean.step, gradient_of(estimate, run))[1]
        found["kl"] = float(divergence(*(world.log_chance(m).detach()
                                         for m in (world.policy, run.policy.module))))
    return found
