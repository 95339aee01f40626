"""Gradient estimates: each method's own training step, on every rollout of the smallest kind.

The training code itself makes the step on every rollout (oracle.Dealer).  The mean of the step over
all rollouts is compared with the exact gradient of the loss that the method should descend
(exact.py).  For some methods, theory says that the mean is a multiple of that gradient.  Then both
must agree to rounding.  Other methods aim elsewhere.  For them the report says by how much they
differ.

Most methods divide their step by the tokens of the rollout.  The number of tokens is random, as the
answers are, so the mean of the quotient is not the quotient of the means.  The theorems are about
the step before that division ("per answer").  The report also states the effect of the division.
The effect fades as rollouts grow (`by_size`).
"""

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from minipost import methods
from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.methods import clicks, distill, math_shepherd, rft
from minipost.parts import Frozen
from minipost.proof import exact
from minipost.proof.exact import Exact
from minipost.proof.oracle import Dealer, Recorder, divergence, relative
from minipost.run import REWARD_MODEL

EXACT = 1e-9    # up to this relative distance, two float64 vectors are the same
SURE = 5.0      # beyond so many standard errors, a sampled mean is a different one
BASELINE = 0.3  # fixed value of REINFORCE's moving average


# ---- the smallest step of every method

def method_of(name):
    """The method's command-line name, without its flags."""
    return name.replace(",", " ").split()[0]


AIMS = {  # names of the losses of exact.py in the tables; "its loss" if a method has its own
    "minus_reward": "J", "minus_regularised": "J_b", "maximum_likelihood": "likelihood",
    "centred_bradley_terry": "Bradley-Terry", "bradley_terry": "Plackett-Luce",
    "outcome_entropy": "cross-entropy", "step_entropy": "cross-entropy",
    "value_entropy": "cross-entropy", "click_ranking": "ranking",
    "implicit_entropy": "cross-entropy", "minus_success": "P(right)",
    "forward_kl": "forward KL", "reverse_kl": "reverse KL",
}
LENGTHS = "exact but for the division by the rollout's own tokens"


@dataclass(frozen=True)
class Estimate:
    """A method's step on one or two answers (`rows`) to a prompt, and what its mean should be.

    A method states it in its own file: PROOF is a list of dicts of these fields, except the name.

    loss     the loss that the step should descend: the name of a function in exact.py
    factor   the mean is this factor times the gradient, if the step divides by the number of
             answers instead of its own divisor; None if the method aims elsewhere (`why` says how),
             where the mean may not point against the gradient all the same
    opposed  that it may, as where a penalty besides can outweigh the reward
    divisor  what the step divides by: "tokens", the tokens that it was dealt; "longest", answers x
             longest; "marks", the tokens at which steps end; "kept", the tokens that it keeps;
             "rows", answers or pairs
    learner  the learner that makes the step
    variant  the flags that distinguish it from other variants of the method
    """

    name: str
    config: dict
    rows: int
    loss: str
    factor: float | None = None
    why: str = ""
    opposed: bool = False
    divisor: str = "rows"
    learner: str = "policy"
    variant: str = ""

    def __post_init__(self):
        if self.rows not in (1, 2):  # `hands` knows in how many orders those can be dealt
            raise ValueError(f"rows is {self.rows}; expected 1 or 2 answers in all")
        if not hasattr(exact, self.loss):
            raise ValueError(f"loss is {self.loss!r}; expected a function of proof/exact.py")
        if self.factor is None and not self.why:
            raise ValueError("has neither a factor, which is checked, nor a why, which says where "
                             "else the method aims")
        if self.factor is not None and not self.factor > 0:
            raise ValueError(f"factor is {self.factor}; expected more than 0, since a step "
                             "descends its loss")

    @property
    def aim(self):
        return AIMS.get(self.loss, "its loss")

    def failing(self, found):
        """What is wrong with the mean step that `measure` found, or ""."""
        if self.factor is None:
            against = not self.opposed and not found["size"] > 0
            return f"the mean step points against the gradient of {self.aim}" if against else ""
        return "" if found["error"] < EXACT else \
            f"the mean per answer is not {self.factor:g} x the gradient"

    @property
    def reason(self):
        """Why the mean step of a method that holds is not that gradient, or not exactly."""
        return self.why or (LENGTHS if self.divisor == "tokens" else "")

    @property
    def module(self):
        return methods.load(method_of(self.name)).module


def stated(name):
    """The Estimates of a method's PROOF; [] if PROOF is a text that says why it has none.

    MinipostError if there is no PROOF at all.
    """
    method = methods.load(name)
    if not method.PROOF:
        raise MinipostError(f"{method.module.__file__}: has no PROOF, which says what gradient its "
                            "mean step is; minipost/proof/estimates.py says how it is written "
                            "(Estimate)")
    if isinstance(method.PROOF, str):
        return []
    try:
        return [Estimate(**{**entry, "name": f"{name} {entry.get('variant', '')}".strip()})
                for entry in method.PROOF]
    except (TypeError, ValueError) as error:
        raise MinipostError(f"{method.module.__file__}: PROOF: {error}") from None


def all_stated(names):
    """The Estimates of these methods, but for those without a PROOF."""
    return [e for name in names if methods.load(name).PROOF for e in stated(name)]


def inherits(names):
    """{name: whose steps it takes} of those of these methods whose PROOF is a text."""
    return {name: said for name in names if isinstance(said := methods.load(name).PROOF, str)}


def dealer(world, sampler=None, critic=None):
    """A run in which every learner is a Recorder."""
    run = Dealer(Recorder(copy.deepcopy(world.policy)), world.words, world.task, world.task.reward,
                 max_new_tokens=world.horizon, world=world, sampler=sampler)
    start = Frozen(copy.deepcopy(world.reference))          # `world.reference` may go on learning
    run.parts["frozen/reference"] = run.parts["frozen/start"] = start
    run.parts["learner/critic"] = Recorder(critic or RewardModel(copy.deepcopy(world.reference)))
    run.parts["learner/implicit"] = Recorder(copy.deepcopy(world.policy))
    scorer = RewardModel(copy.deepcopy(world.reference))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        scorer.score.weight.copy_(torch.randn(scorer.score.weight.shape, generator=generator,
                                              dtype=torch.float64))
    run.parts[f"learner/{REWARD_MODEL}"] = Recorder(scorer)
    return run


def stepper(estimate, run, label=None):
    """A function that makes one step of the method and returns the gradient of the step.  (W,)"""
    module, options = estimate.module, {}
    if label is not None:
        options["label"] = label
    if module is distill:
        options["teacher"] = run.world.reference
    if module is math_shepherd:
        options["complete"] = completed
    if module is clicks:
        options["browse"] = browsed

    def step():
        run.carried = {"baseline": BASELINE}
        learner = run.learners[estimate.learner]
        learner.seen = torch.zeros_like(learner.flat)       # stays if nothing can be learnt
        try:
            run.metrics = next(module.train(run, module.Config(**estimate.config), **options))
        except MinipostError:
            if module is not rft:                           # rft raises where no answer is right
                raise
        return learner.seen

    return step


def completed(run, problems, rollout, places, cfg):
    """math_shepherd.roll_out; of a hand, the mean over all completions in place of some.  (M, 1)"""
    if run.hand is None:
        return math_shepherd.roll_out(run, problems, rollout, places, cfg)
    world, found = run.world, []
    tokens, mask = world.seqs.tokens, world.seqs.mask
    chance = world.log_chance(run.policy.module).detach().exp().flatten()
    for row, column in places:
        begun = rollout.tokens[row, : column + 2]
        after = mask[:, column] & (tokens[:, : column + 2] == begun).all(1)
        found.append((chance * world.reward.flatten())[after].sum() / chance[after].sum())
    return torch.stack(found)[:, None]


def browsed(run, reward, place, cfg):
    """clicks.browse; of a hand, what all users together would click.  (P, G)"""
    if run.hand is None:
        return clicks.browse(run, reward, place, cfg)
    looked = clicks.attraction(reward).double()
    counted = looked.apply_(lambda worth: clicks.chance(worth, cfg.dwell))
    return counted * clicks.propensity(place, cfg.eta)


def divisor_of(estimate, run, prompt, rows):
    """The step's divisor, per answer that it is dealt."""
    world, task = run.world, run.task
    lengths = {row: int(world.seqs.lengths[prompt * world.count + row]) for row in rows}
    if estimate.divisor == "rows":
        return 1.0
    if estimate.divisor == "longest":
        return float(world.horizon)
    if estimate.divisor == "marks":                         # step ends, and other last tokens
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
    """The mean over all rollouts of a step, of the step times its divisor, and of its square."""

    step: torch.Tensor
    whole: torch.Tensor
    square: float
    chance: float

    @property
    def noise(self):
        """Standard deviation of one step, as a share of the mean's norm."""
        return math.sqrt(max(0.0, self.square - float(self.step @ self.step))) / float(
            self.step.norm())


def hands(world, rows):
    """Every rollout of `rows` answers to one prompt, and how many orders it stands for."""
    for prompt in range(len(world.prompts)):
        for hand in itertools.combinations_with_replacement(range(world.count), rows):
            yield prompt, list(hand), math.factorial(rows) if len(set(hand)) == rows else 1


def enumerate_step(estimate, run, labels=(None,)):
    """The Mean of a method's step.  `labels`: the possible outcomes of a labeller, if there is one.

    The answers of a rollout are exchangeable, so each set of two is dealt once and counted twice.
    """
    found = None
    for label in labels:
        step = stepper(estimate, run, label)
        for prompt, rows, orders in hands(run.world, estimate.rows):
            run.deal_hand(prompt, rows)
            if estimate.loss == "maximum_likelihood" and not run.show(rows[0]):
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
    """Split a vector into `size` times a gradient and a rest.  -> size, the rest's share

    The share is the norm of the rest over the norm of the vector.  It is the sine of the angle
    between the vector and the gradient.
    """
    size = float(vector @ gradient / (gradient @ gradient))
    return size, float((vector - size * gradient).norm() / vector.norm())


def gradient_of(estimate, run):
    """The exact gradient of the loss that a method should descend, at this run's policy.  (W,)"""
    world, module = copy.copy(run.world), run.learners[estimate.learner].module
    world.policy = run.policy.module
    return world.slope(module, getattr(exact, estimate.loss)(Exact(world, module)))


def measure(estimate, world, samples):
    """All about a method's estimate, as plain data.

    size, off    the mean step is `size` times the gradient and a rest of share `off` (see `split`)
    off_answer   the share of the rest if the step divides by the answers, not by the tokens
    error        for a method with a factor: relative distance of that mean from factor x gradient
    noise        standard deviation of one step, as a share of the mean's norm
    sampled      `size` of the mean of `samples` steps on sampled answers, with its interval, and
                 `z`, the largest distance from the exact mean in five directions, in standard
                 errors
    """
    run = dealer(world)
    mean, gradient = enumerate_step(estimate, run), gradient_of(estimate, run)
    size, off = split(mean.step, gradient)
    found = {
        "name": estimate.name, "config": estimate.config, "answers": estimate.rows,
        "aim": estimate.aim, "factor": estimate.factor,
        "chance": mean.chance, "size": size, "off": off,
        "off_answer": split(mean.whole, gradient)[1], "noise": mean.noise,
        "sampled": against_samples(estimate, run, mean.step, gradient, samples),
    }
    if estimate.factor is not None:
        found["error"] = relative(mean.whole, estimate.factor * gradient)
    failing = estimate.failing(found)
    found["why"] = failing or estimate.reason
    found["holds"] = not failing and abs(mean.chance - 1) < EXACT and found["sampled"]["z"] < SURE
    return found


def against_samples(estimate, run, mean, gradient, samples):
    """Compare steps on sampled answers with the mean step over all answers."""
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
    """The effect on REINFORCE of dividing by a rollout's own tokens, for rollouts of B answers.

        mean step = sum over y of pi(y) (r - b) grad log pi(y) B E[ 1 / (|y| + the others' tokens) ]

    The others' tokens are distributed as the sum of B - 1 lengths.  -> [{"answers", "off"}]
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

CLIPS: Mapping[str, Mapping[str, float]] = {  # {method: what takes away its clip}
    "reinforce-pp": {"clip": 1e6}, "ppo": {"clip": 1e6}, "grpo": {"clip": 1e6},
    "grpo --correct none": {}, "dr-grpo": {"clip": 1e6}, "trpo": {}, "process-grpo": {"clip": 1e6},
    **{f"grpo --correct {way}": {"cap": 1e6} for way in ("truncated", "masked", "masked-answers")},
    "dapo": {"clip_low": 1e6, "clip_high": 1e6}, "gspo": {"clip_low": 1e6, "clip_high": 1e6},
    "cispo": {"clip_high": 1e6}, "sapo": {"tau_pos": 1e-6, "tau_neg": 1e-6},
}


def clipped(estimate, world, far=0.25):
    """How far a mean step is from the gradient if the policy has moved since it sampled.

    -> {"name", "kl": of the move, "off": with the clip, "off_free": without the clip}
    """
    found = {"name": estimate.name}
    for key, width in (("off", {}), ("off_free", CLIPS[estimate.name])):
        run, generator = dealer(world, sampler=world.policy), torch.Generator().manual_seed(2)
        move = torch.randn(run.policy.flat.shape, generator=generator, dtype=torch.float64)
        run.policy.assign(run.policy.flat + far * run.policy.flat.std() * move)
        mean = enumerate_step(replace(estimate, config={**estimate.config, **width}), run)
        found[key] = split(mean.step, gradient_of(estimate, run))[1]
        found["kl"] = float(divergence(*(world.log_chance(m).detach()
                                         for m in (world.policy, run.policy.module))))
    return found
