"""The exercises of docs/learn.md: what each asks for, its oracle, and arguments to try it on.

The learner's file is a copy of docs/exercises/NAME.py.  The oracle is the real function, or a sum
over everything that can happen.  Bugs to find are those of the museum (tests/museum).  Where a
method states what its mean step is (PROOF), the learner's function also makes that step, on every
rollout of a small world (minipost/proof).
"""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch

from minipost import ops
from minipost.methods import dpo, reinforce, reward
from minipost.proof import estimates
from minipost.proof.exact import BETA
from minipost.proof.oracle import World
from scripts.learn.differences import Case, difference, spoilt, stopped

CASES = 8
SIZE = (4, 2)   # ids and longest answer of the world in which everything is counted


@dataclass(frozen=True)
class Exercise:
    """A function that a learner writes or mends.

    solution  where the real one stands, "module:name"
    draw      draw(generator, k) -> the Case number k
    returns   what the function returns, in words; keys where it returns a dict
    learnt    arguments by which its gradient is compared too
    measure   measure(theirs) -> what it does in a small world, a sentence, or ""
    oracle    what it is compared with, the real function if None
    bug       the museum's name of the planted bug; "" where the learner writes the function
    """

    name: str
    solution: str
    draw: Callable
    returns: tuple = ("the loss",)
    learnt: tuple = ()
    measure: Callable = lambda theirs: ""
    oracle: Callable | None = None
    bug: str = ""

    @property
    def function(self):
        """The name of the function in the exercise's file."""
        return self.solution.partition(":")[2]

    @property
    def real(self):
        module, _, name = self.solution.partition(":")
        return getattr(importlib.import_module(module), name)

    def cases(self):
        generator = torch.Generator().manual_seed(0)
        return [self.draw(generator, k) for k in range(CASES)]


# ---- drawing

def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def logps(generator, *shape):
    """Log-probs: numbers below zero."""
    return -normal(generator, *shape).abs() - 0.05


def answers(k, rows=3, width=6):
    """A mask of answers with a prompt before and padding behind, of other lengths in each row."""
    column = torch.arange(width)
    start = torch.tensor([1 + (k + row) % 2 for row in range(rows)])[:, None]
    length = torch.tensor([1 + (k + 2 * row) % 4 for row in range(rows)])[:, None]
    return (column >= start) & (column < start + length)


def parts(mask):
    """Regions of an answer."""
    last = ops.at_last(torch.ones(len(mask)), mask) > 0
    first = mask & (mask.cumsum(1) == 1)
    return {"off the mask, that is on the prompt and on padding": ~mask,
            "on each answer's last token": last,
            "on tokens that are not the last of their answer": ~last,
            "on each answer's first token": first,
            "on tokens that are not the first of their answer": ~first}


def lengths(mask):
    return {"the number of rows": len(mask), "the number of answer tokens in these rows":
            int(mask.sum()), "each answer's length": mask.sum(1, keepdim=True),
            "the width of the rows": mask.shape[1]}


def of_sft(g, k):
    mask = answers(k)
    given = {"logp": logps(g, *mask.shape), "mask": mask, "count": int(mask.sum()) + 2 + k}
    return Case(given, parts(mask), {"`count`": given["count"], **lengths(mask)})


def of_reinforce(g, k):
    case = of_sft(g, k)
    rest = dict(case.given)
    given = {"logp": rest.pop("logp"), "adv": normal(g, 3), **rest}
    up = (given["adv"] > 0)[:, None].expand(given["mask"].shape)
    return Case(given, {**case.regions, "on answers with A above 0": up,
                        "on answers with A below 0": ~up}, case.sizes)


def of_rloo(g, k):
    size = 2 + k % 3
    given = {"reward": normal(g, 3 * size), "group_size": size}
    tie = torch.arange(3 * size) < size
    given["reward"][tie] = given["reward"][0]               # the first group ties
    return Case(given, {"where all rewards of a group are equal": tie,
                        "where the rewards of a group differ": ~tie},
                {"G": size, "G - 1": size - 1, "the number of all answers": 3 * size})


def of_kl(g, k):
    given = {"logp": logps(g, 5), "logp_ref": logps(g, 5)}
    above = given["logp"] > given["logp_ref"]
    return Case(given, {"where pi > ref": above, "where pi < ref": ~above})


def of_clip(g, k):
    old, gap = logps(g, 12), 0.6 * normal(g, 12)
    given = {"logp": old + gap, "logp_old": old, "adv": normal(g, 12), "low": 0.2,
             "high": 0.2 + 0.01 * k}
    ratio, adv = gap.exp(), given["adv"]
    over, under = ratio > 1 + given["high"], ratio < 1 - given["low"]
    stop = over & (adv > 0) | under & (adv < 0)
    return Case(given, {
        "where the clip must stop the gain (A > 0 and rho > 1 + high, or A < 0 and rho < 1 - low)":
            stop,
        "where rho is outside the clip but moving back would be a gain (A > 0 and rho < 1 - low, "
        "or A < 0 and rho > 1 + high)": (over | under) & ~stop,
        "where rho is outside [1 - low, 1 + high]": over | under,
        "where rho > 1 + high": over, "where rho < 1 - low": under,
        "where A < 0": adv < 0, "where A > 0": adv > 0})


def of_gae(g, k):
    mask = answers(k)
    given = {"reward": normal(g, *mask.shape), "value": normal(g, *mask.shape), "mask": mask,
             "gamma": 0.9, "lam": 0.7 + 0.02 * k}
    return Case(given, parts(mask))


def of_trust(g, k):
    """Searches in which a KL, a gain, neither or both keep the first tries from being good.

    Along the step the gain is a parabola, and the KL grows with the square.
    """
    old, step, delta = normal(g, 4), normal(g, 4), 0.05
    bend, steep = [(0.3, 0.5), (0.3, 3.0), (1.4, 0.4), (9.0, 0.2), (0.3, 900.0)][k % 5]

    def evaluate(weights):
        along = float((weights - old) @ step / (step @ step))   # 1 for the whole step
        return along - bend * along**2, delta * steep * along**2

    return Case({"evaluate": evaluate, "old": old, "step": step, "delta": delta, "shrink": 0.6,
                 "tries": 4})


def of_preference(g, k):
    given = {"score_w": normal(g, 4), "score_l": normal(g, 4), "margin": 0.3 + 0.1 * k,
             "center": 0.01 * (k + 1), "count": 4 + k}
    return Case(given, {}, {"`count`": given["count"], "the number of rows": 4, "2": 2})


def of_dpo(g, k):
    w, other = answers(k), answers(k + 1, width=7)
    given = {"logp_w": logps(g, *w.shape), "logp_l": logps(g, *other.shape),
             "ref_w": logps(g, *w.shape), "ref_l": logps(g, *other.shape),
             "mask_w": w, "mask_l": other, "beta": 0.1 + 0.1 * k, "count": 3 + k}
    return Case(given, {"off the mask, that is on the prompt and on padding": ~w},
                {"`count`": given["count"], "`beta`": given["beta"], "the number of rows": 3})


def of_oreo(g, k):
    mask = answers(k)
    starts = mask & ((mask.cumsum(1) == 1) | (normal(g, *mask.shape) > 0))
    logp, value = logps(g, *mask.shape), normal(g, *mask.shape)
    given = {"logp": logp, "value": value, "logp_held": logp.clone(), "value_held": value.clone(),
             "logp_ref": logps(g, *mask.shape), "reward": normal(g, 3), "mask": mask,
             "starts": starts, "beta": 0.2 + 0.1 * k}
    last = starts & (starts.flip(1).cumsum(1) == 1).flip(1)
    return Case(given, {"where the last action of an answer starts": last,
                        "where an action starts that another one follows": starts & ~last,
                        "where no action starts": ~starts})


def of_pass_at_k(g, k):
    n = 4 + k % 4
    return Case({"n": n, "c": 1 + k % 3, "k": 1 + (2 * k) % 3})


# ---- what it does where everything can be counted

def mean_step(name, attribute, adapt):
    """measure: a method's own step with the learner's function in the place of `attribute`.

    adapt(theirs) -> the function as the method calls it.
    """
    def measure(theirs):
        estimate, world = estimates.stated(name)[0], World(*SIZE)
        run = estimates.dealer(world)
        with patch.object(estimate.module, attribute, adapt(theirs)):
            mean = estimates.enumerate_step(estimate, run)
        gradient = estimates.gradient_of(estimate, run)
        if not mean.whole.any():
            return f"Over all rollouts of a world of {world.count} answers its mean step is zero."
        size, off = estimates.split(mean.whole, gradient)
        beside = "to rounding" if off < estimates.EXACT else \
            f"and {off:.0%} of it points elsewhere"
        return (f"Over all rollouts of a world of {world.count} answers the mean step of "
                f"{name} with it is {size:.3f} times the exact gradient, {beside}; it should be "
                f"{estimate.factor:.3f} times, to rounding.")
    return measure


def as_loss(real):
    """A loss without metrics, with those of the real one."""
    def adapt(theirs):
        def loss(*tensors, label_smoothing=0.0, robust=False, **options):
            value = theirs(*tensors, **options)
            value = value[0] if isinstance(value, tuple) else value
            return value, real(*tensors, **options)[1]
        return loss
    return adapt


def cut_in_two(theirs):
    """What the loss of a step is whole, and as a sum of two pieces."""
    given = of_sft(torch.Generator().manual_seed(1), 1).given
    count = int(given["mask"].sum())

    def of(rows):
        found = theirs(given["logp"][rows], given["mask"][rows], count=count)
        return float(found[0] if isinstance(found, tuple) else found)

    whole, pieces = of(slice(0, 3)), of(slice(0, 1)) + of(slice(1, 3))
    return f"A step of {count} answer tokens has the loss {whole:.4f} whole, and {pieces:.4f} " \
           "as the sum of two micro-batches."


def over_the_vocabulary(theirs):
    """The mean of an estimate, and of its gradient, over all tokens that a policy may sample."""
    g = torch.Generator().manual_seed(2)
    logits = normal(g, 6).requires_grad_()
    logp, logp_ref = logits.log_softmax(0), normal(g, 6).log_softmax(0)
    p, found = logp.detach().exp(), theirs(logp, logp_ref)
    slope = torch.autograd.grad((p * found).sum(), logits)[0]
    toward = logp.detach().exp() - logp_ref.exp()           # the gradient of KL(ref || pi)
    kl = float(ops.kl_exact(logp.detach()[None], logp_ref[None]))
    mean, held = float((p * found.detach()).sum()), float(slope @ toward / (toward @ toward))
    return (f"Over all 6 tokens of a vocabulary its mean is {mean:.4f}, where KL(pi || ref) is "
            f"{kl:.4f}; the mean of its gradient is {held:.3f} times that of KL(ref || pi).")


def beyond_the_bound(theirs):
    """How often a step that is taken is beyond delta."""
    cases = [of_trust(torch.Generator().manual_seed(k), k).given for k in range(CASES)]
    found = [(float(theirs(**given)[3]), given["delta"]) for given in cases]
    over = [kl / delta for kl, delta in found if kl > delta]
    most = f"; the longest has {max(over):.1f} times delta" if over else ""
    return f"In {len(over)} of {CASES} searches it takes a step whose KL is over delta{most}."


def at_the_best_policy(theirs):
    """The largest residual at the best policy and value, over every answer of a world."""
    world = World(*SIZE)
    log_p, log_ref = (world.log_chance(m).detach() for m in (world.policy, world.reference))
    fitting = world.with_reward(BETA * (log_p - log_ref))   # so that the policy is the best one
    logp, logp_ref = (world.token_logp(m).detach().flatten(0, 1)
                      for m in (world.policy, world.reference))
    value, mask = fitting.soft_values(BETA), world.seqs.mask
    both = theirs(logp, value, logp, value, logp_ref, fitting.reward.flatten(), mask, mask, BETA)
    worst = [float(d.abs().max()) for d in both]
    return ("At the best policy and value of a small world the largest residual is "
            f"{worst[0]:.1e} for the policy and {worst[1]:.1e} for the value.")


def by_counting(n, c, k):
    """pass@k as a share of all ways to pick k of n answers, of which the first c are right."""
    ways = list(itertools.combinations(range(n), k))
    return sum(min(way) < c for way in ways) / len(ways)


def slopes_of_reward(**given):
    """The gradient of the real loss by autograd."""
    leaves = {name: given[name].clone().requires_grad_() for name in ("score_w", "score_l")}
    value = reward.loss(**{**given, **leaves})[0]
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()))))


EXERCISES = {e.name: e for e in (
    Exercise("cut", "minipost.methods.sft:loss", of_sft, learnt=("logp",), measure=cut_in_two,
             bug="mean per micro-batch of SFT"),
    Exercise("reinforce", "minipost.methods.reinforce:loss", of_reinforce, learnt=("logp",),
             measure=mean_step("reinforce", "loss", as_loss(reinforce.loss))),
    Exercise("rloo", "minipost.ops:leave_one_out", of_rloo, ("the advantage",),
             measure=mean_step("rloo", "leave_one_out", lambda theirs: theirs)),
    Exercise("kl", "minipost.ops:kl_k3", of_kl, ("the estimate",), ("logp",),
             over_the_vocabulary, bug="k1 as a loss"),
    Exercise("clip", "minipost.ops:clipped_surrogate", of_clip, ("the gain",), ("logp",),
             bug="optimistic clip"),
    Exercise("gae", "minipost.ops:gae", of_gae, ("the advantage",)),
    Exercise("trust", "minipost.methods.trpo:line_search", of_trust,
             ("the vector of new weights", "the number of tries", "the gain", "the KL"),
             measure=beyond_the_bound, bug="constraint not checked"),
    Exercise("preference", "minipost.methods.reward:loss_grad", of_preference,
             ("score_w", "score_l"), oracle=slopes_of_reward),
    Exercise("dpo", "minipost.methods.dpo:loss", of_dpo, learnt=("logp_w", "logp_l"),
             measure=mean_step("dpo", "loss", as_loss(dpo.loss))),
    Exercise("oreo", "minipost.methods.oreo:residuals", of_oreo,
             ("the policy's residual", "the value's residual"), measure=at_the_best_policy,
             bug="OREO without what follows"),
    Exercise("pass-at-k", "minipost.measure.stats:pass_at_k", of_pass_at_k, ("the chance",),
             oracle=by_counting),
)}


# ---- the verdict

def check(exercise, theirs):
    """(whether a function is right, what is to be said of it, a sentence each)."""
    said = difference(theirs, exercise.oracle or exercise.real, exercise.cases(),
                      exercise.returns, exercise.learnt)
    if said.startswith("Nothing to check"):
        return False, [said]
    try:
        seen = exercise.measure(theirs)
    except Exception as error:              # what has no result here has been told of above
        seen = stopped(error, theirs)
    remark = "" if said else spoilt(theirs, exercise.cases(), exercise.returns)
    return not said, [each for each in (said, seen, remark) if each]
