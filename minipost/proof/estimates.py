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
import importlib
import itertools
import math
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
import torch

from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.methods import distill, rft, sft
from minipost.proof import exact
from minipost.proof.exact import BETA, Exact
from minipost.run import REWARD_MODEL, Frozen
from minipost.proof.oracle import Dealer, Recorder, divergence, relative

EXACT = 1e-9    # relative distance up to which two float64 vectors are the same
SURE = 5.0      # standard errors beyond which a sampled mean is another one
BASELINE = 0.3  # REINFORCE's moving average, held there


# ---- the smallest step of every method

def method_of(name):
    """The method's command-line name, without what it is run with."""
    return name.replace(",", " ").split()[0]


@dataclass(frozen=True)
class Estimate:
    """A method's step on `rows` answers to one prompt, and what its mean over all of them should be.

    loss     what it should descend, from an Exact
    aim      that in words
    factor   the mean is so many times that gradient, once the step's own divisor is put back to the
             number of answers; None where the method aims elsewhere, and `why` says how
    divisor  "tokens": the step divides by the tokens that it was dealt; "room": by answers x longest;
             "marks": by the tokens at which steps end; "kept": by the tokens that it keeps;
             "rows": by answers or pairs
    """

    name: str
    config: dict
    rows: int
    loss: Callable
    aim: str
    factor: float | None = None
    why: str = ""
    divisor: str = "rows"
    learner: str = "policy"

    @property
    def module(self):
        return importlib.import_module(f"minipost.methods.{method_of(self.name).replace('-', '_')}")


TWO = dict(prompts=1, group=2)
J, J_BETA = "J", "J_b"
LENGTHS = "exact but for the division by the rollout's own tokens"
ESTIMATES = [
    Estimate("sft", dict(batch=1), 1, exact.maximum_likelihood, "likelihood", 1.0,
             LENGTHS, "tokens"),
    Estimate("reinforce", TWO, 2, exact.minus_reward, J, 1.0, LENGTHS, "tokens"),
    Estimate("self-critical", TWO, 2, exact.minus_reward, J, 1.0, LENGTHS, "tokens"),
    Estimate("rloo", dict(**TWO, beta=BETA), 2, exact.minus_regularised, J_BETA, 1.0, LENGTHS, "tokens"),
    Estimate("reinforce-pp", dict(**TWO, beta=BETA), 2, exact.minus_regularised, J_BETA, None,
             "whitened, so that every rollout of two is as spread as any other", "tokens"),
    Estimate("a2c", dict(**TWO, entropy_weight=0.0), 2, exact.minus_reward, J, None,
             "whitened, and lambda 0.95 trusts a critic that knows nothing yet", "tokens"),
    Estimate("ppo", dict(prompts=2, minibatch=2, epochs=1, beta=BETA, missing_eos=0.0), 2,
             exact.minus_regularised, J_BETA, None,
             "whitened, and lambda 0.95 trusts a critic that knows nothing yet", "tokens"),
    Estimate("trpo", TWO, 2, exact.minus_reward, J, 0.5, LENGTHS, "tokens"),
    Estimate("grpo", dict(**TWO, beta=BETA), 2, exact.minus_regularised, J_BETA, None,
             "reward over its group's deviation; KL in each state, not of how often it is reached",
             "tokens"),
    Estimate("grpo --kl k3", dict(**TWO, beta=BETA, kl="k3"), 2, exact.minus_regularised, J_BETA, None,
             "as grpo, and k3 as a loss descends KL(ref || pi)", "tokens"),
    Estimate("dr-grpo", TWO, 2, exact.minus_reward, J, 0.5, "", "room"),
    Estimate("dapo", dict(**TWO, rounds=1, overlong=1), 2, exact.minus_reward, J, None,
             "reward less a penalty of length, over its group's deviation", "tokens"),
    Estimate("reward", dict(prompts=1, answers=2, center=0.1), 2, exact.centred_bradley_terry,
             "Bradley-Terry", 1.0, learner=REWARD_MODEL),
    Estimate("plackett-luce", dict(prompts=1, ranked=2), 2, exact.bradley_terry,
             "Plackett-Luce", 1.0, learner=REWARD_MODEL),
    Estimate("orm", dict(prompts=1, copies=1), 1, exact.outcome_entropy, "cross-entropy", 1.0,
             learner=REWARD_MODEL),
    Estimate("prm", dict(prompts=1, copies=1), 1, exact.step_entropy, "cross-entropy", 1.0,
             "exact but for the division by the number of steps", "marks", REWARD_MODEL),
    Estimate("dpo", dict(pairs=1, beta=BETA), 2, exact.dpo_loss, "its loss", 1.0),
    Estimate("ipo", dict(pairs=1, tau=BETA), 2, exact.ipo_loss, "its loss", 1.0),
    Estimate("simpo", dict(pairs=1, beta=2.0, gamma=1.0), 2, exact.simpo_loss,
             "its loss", 1.0),
    Estimate("orpo", dict(pairs=1), 2, exact.orpo_loss, "its loss", 1.0),
    Estimate("kto", dict(answers=2, beta=BETA), 2, exact.kto_loss, "its loss", None,
             "its z0 is a mean over answers of ref, cut at 0; KL(pi || ref) is one over those of pi"),
    Estimate("mdpo", dict(prompts=1, answers=1, beta=BETA), 2, exact.dpo_loss, "DPO's loss", 1.0),
    Estimate("oreo", dict(prompts=1, copies=1, batch=1, level="response", beta=BETA), 1,
             exact.path_consistency, "its loss", 1.0),
    Estimate("rft", dict(prompts=1, copies=2, batch=2, least=0.5), 2, exact.minus_success,
             "P(right)", None,
             "each text once; with none right there is no step", "kept"),
    Estimate("distill", dict(batch=1, on_policy=0.0), 1, exact.forward_kl, "forward KL", 1.0,
             LENGTHS, "tokens"),
    Estimate("distill --mix 1", dict(batch=1, on_policy=1.0, mix=1.0), 1, exact.reverse_kl,
             "reverse KL", None,
             "KL in each state, not of how often it is reached", "tokens"),
]
INHERITS = {"rlaif": "takes the steps of sft, reward and ppo, or of dpo; only the labels are its own"}


def dealer(world, sampler=None, critic=None):
    """A run in which every learner is a Recorder."""
    run = Dealer(Recorder(copy.deepcopy(world.policy)), world.words, world.task, world.task.reward,
                 room=world.horizon, world=world, sampler=sampler)
    run.parts["frozen/reference"] = Frozen(world.reference)
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
    if estimate.divisor == "room":
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
    return world.slope(module, estimate.loss(Exact(world, module)))


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
        "aim": estimate.aim, "factor": estimate.factor, "why": estimate.why, "chance": mean.chance,
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
    seen = []
    for run.seed in range(samples):
        seen.append(along @ step())
    seen = torch.stack(seen)                                                # (samples, 5)
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
