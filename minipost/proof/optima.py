"""Optima: methods with a KL price, compared with the one best policy, ref exp(r/beta) / Z.

    AT_OPTIMUM  at the best policy nothing is left to learn: is a method's step zero there?
    LEADS       where does a method's mean step lead from the reference, if Adam follows it?
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.func import vmap
from torch.nn.functional import logsigmoid

from minipost import ops
from minipost.gpt import RewardModel
from minipost.methods import (
    dpo,
    grpo,
    ipo,
    kto,
    mdpo,
    oreo,
    ppo,
    prm,
    process_grpo,
    reinforce_pp,
    rloo,
    rpo,
)
from minipost.proof.estimates import EXACT, Estimate, dealer, enumerate_step
from minipost.proof.exact import BETA
from minipost.proof.oracle import (
    EOS,
    Known,
    divergence,
    mean_reward,
    optimum,
    regularised,
    weights_of,
)
from minipost.rollout import Rollout, distribution
from minipost.tasks.base import Problem

# ---- where nothing is left to learn


def bradley_terry_label(sign):
    """A labeller that prefers a prompt's first answer (sign 1) or its second (sign -1).

    It adds the log of the label's chance to run.log_chance.  An answer is preferred with chance
    sigmoid(its reward - the other's reward).
    """
    def label(run, problems, rollout):
        first, second = run.grade(problems, rollout).view(-1, 2).unbind(1)
        run.log_chance += float(logsigmoid(sign * (first - second)).sum())
        return torch.full_like(first, sign)
    return label


LABELS = (bradley_terry_label(1), bradley_terry_label(-1))


@dataclass(frozen=True)
class Stationary:
    """A method at the closed-form optimum, where each of its steps, or its mean step, is zero."""

    name: str
    config: dict
    rows: int
    zero: str               # "every step", "the mean step", or "" if it aims elsewhere
    why: str
    labels: tuple = (None,)


AT_OPTIMUM = [
    Stationary("rloo", dict(prompts=1, group_size=2, beta=BETA), 2, "every step",
               "reward less price is the same number for all answers"),
    Stationary("ppo", dict(prompts=2, minibatch_size=2, epochs=1, beta=BETA, missing_eos=0.0), 2,
               "every step", "the critic being V*, so that what is left to come is no surprise"),
    Stationary("reinforce-pp", dict(prompts=1, group_size=2, beta=BETA), 2, "",
               "one baseline for all states, and whitening makes small differences large"),
    Stationary("grpo", dict(prompts=1, group_size=2, beta=BETA), 2, "",
               "an answer counts by its place in the group, not by how much better it is"),
    Stationary("grpo --kl k3", dict(prompts=1, group_size=2, beta=BETA, kl="k3"), 2, "",
               "the same"),
    Stationary("process-grpo", dict(prompts=1, group_size=2, beta=BETA), 2, "",
               "right steps are paid for, whatever the answer is worth"),
    Stationary("dpo", dict(pairs=1, beta=BETA), 2, "the mean step",
               "labels being Bradley-Terry's, pi* is the model that made them", LABELS),
    Stationary("rpo", dict(pairs=1, beta=BETA, eta=1.0), 2, "every step",
               "the gap of implied rewards is that of rewards on every pair"),
    Stationary("ipo", dict(pairs=1, tau=BETA), 2, "",
               "its optimum is that of the chance to win, not of the reward", LABELS),
    Stationary("mdpo", dict(prompts=1, group_size=1, beta=BETA), 2, "",
               "the better always wins, where Bradley-Terry gives the worse a chance"),
    Stationary("kto", dict(batch_size=2, beta=BETA), 2, "",
               "an answer is good or bad, and by how much is not told"),
    *(Stationary(f"oreo, by {level}, alpha 0",
                 dict(prompts=1, group_size=1, batch_size=1, level=level, beta=BETA, alpha=0.0), 1,
                 "every step", "V being V*, soft Bellman holds on every answer")
      for level in ("token", "step", "response")),
    Stationary("oreo", dict(prompts=1, group_size=1, batch_size=1, beta=BETA), 1, "",
               "alpha = 0.1 pulls to the reference besides"),
]


def at_optimum(case, world):
    """The mean and the root mean square of a method's step at the policy ref exp(r/beta) / Z.

    No training brings a nano-GPT there to the last digit.  So the reward is made to fit the policy:
    r = beta log pi/ref plus a number per prompt.
    """
    log_p, log_ref = (world.log_chance(m).detach() for m in (world.policy, world.reference))
    fitting = world.with_reward(BETA * (log_p - log_ref) + torch.tensor([[0.4], [-0.2]]))
    run = dealer(fitting, critic=Known(fitting, fitting.soft_values(BETA)))
    estimate = Estimate(case.name, case.config, case.rows, "minus_regularised",
                        why="only where it stands still is asked")
    found = enumerate_step(estimate, run, case.labels)
    rms, mean = math.sqrt(found.square), float(found.step.norm())
    zero = {"every step": rms, "the mean step": mean, "": 0.0}[case.zero]
    return {"name": case.name, "config": case.config, "zero": case.zero, "why": case.why,
            "mean": mean, "rms": rms, "holds": zero < EXACT}


# ---- where it leads

class Ground:
    """The inputs of a mean step: all answers, and the current policy.

    A method's field (ground, critic) -> scalar weights the method's own loss with the chance of
    every answer, so its gradient is the gradient of the mean step.
    """

    def __init__(self, world):
        self.world, self.seqs, self.mask = world, world.seqs, world.seqs.mask
        self.reward = world.reward.flatten()                                # (M,)
        with torch.no_grad():
            self.ref_all = distribution(world.reference, self.seqs)         # (N, V)
            self.logp_ref = self.of_tokens(self.ref_all)                    # (M, T)
        self.ref = self.logp_ref.sum(1).exp() / 2                           # (M,) chances under ref
        run = dealer(world)
        ended = (self.seqs.targets.eq(EOS) & self.mask).any(1)
        answers = Rollout(self.seqs.tokens, self.mask, self.logp_ref,
                          torch.arange(2).repeat_interleave(world.count), ended)
        problems = [Problem(prompt) for prompt in world.prompts]
        self.ends = prm.marks(run, answers, False)                          # (M, T)
        self.steps = process_grpo.exact(run, problems, answers)             # (M, T) what they earn
        self.starts = {level: oreo.starts(run, self.seqs, level)
                       for level in ("token", "step", "response")}

    def of_tokens(self, logp_all):
        return ops.spread(ops.pick(logp_all, self.seqs.targets[self.mask]), self.mask)

    def look(self, policy):
        self.logp_all = distribution(policy, self.seqs)                     # (N, V), has a gradient
        self.logp = self.of_tokens(self.logp_all)                           # (M, T), has a gradient
        self.held = self.logp.detach()
        self.ratio = self.held - self.logp_ref
        self.chance = self.held.sum(1).exp() / 2                            # (M,) chances under pi

    def by_prompt(self, x):
        """The policy's mean of a value per answer, repeated in every row of its prompt."""
        mean = 2 * (self.chance * x).view(2, -1).sum(1, keepdim=True)
        return mean.expand(2, self.world.count).flatten()

    def whitened(self, x):
        """Scale x to mean 0 and variance 1 over the tokens that the policy samples."""
        weight = self.chance[:, None] * self.mask
        x = x - (weight * x).sum() / weight.sum()
        return x / ((weight * x.square()).sum() / weight.sum() + 1e-8).sqrt()

    def pairs(self):
        """Rows i and j of every two answers to a prompt, and the chance of both under ref."""
        count = self.world.count
        i, j = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
        i, j = torch.cat([i, i + count]), torch.cat([j, j + count])
        return i, j, (2 * self.ref[i] * self.ref[j]).where(i != j, 0.0)


def each(loss, *rows, **options):
    """The loss of each row by itself.  (n, ...) -> (n,)"""
    return vmap(lambda *xs: loss(*(x[None] for x in xs), **options, count=1)[0])(*rows)


def rloo_field(g, critic):
    net = g.reward - BETA * g.ratio.sum(1)
    return rloo.loss(g.logp, g.chance * (net - g.by_prompt(net)), g.mask, count=1)[0]


def reinforce_pp_field(g, critic):
    adv = g.whitened(reinforce_pp.returns(g.reward, g.ratio, g.mask, BETA))
    return reinforce_pp.loss(g.logp, g.held, g.chance[:, None] * adv, g.mask, clip=0.2,
                             count=1)[0]


def ppo_field(g, critic):
    """With a critic that knows the policy's expected return."""
    earned = ppo.token_rewards(g.reward, g.held, g.logp_ref, g.mask, BETA)
    ret = ops.gae(earned, torch.zeros_like(earned), g.mask, 1.0, 1.0)
    value = g.world.given(g.chance, ret)
    adv = g.chance[:, None] * g.whitened(ops.gae(earned, value, g.mask, 1.0, 0.95))
    return ppo.loss(g.logp, value, g.held, value, adv, ret, g.mask, clip=0.2, value_clip=0.2,
                    count=1)[0]


def grpo_field(g, critic, k3=False):
    """With groups of two.  The expectation is a sum over the sibling."""
    i, j, _ = g.pairs()
    both = ops.group_normalised(torch.stack([g.reward[i], g.reward[j]], 1).flatten(), 2)
    adv = torch.zeros_like(g.reward).index_add(0, i, 2 * g.chance[j] * both[::2])
    kl = ops.kl_k3(g.logp, g.logp_ref) if k3 else \
        ops.spread(ops.kl_exact(g.logp_all, g.ref_all), g.mask)
    return grpo.loss(g.logp, g.held, g.chance[:, None] * kl, g.chance * adv, g.mask, clip=0.2,
                     beta=BETA, count=1)[0]


def process_grpo_field(g, critic):
    """With groups of two, as grpo_field."""
    i, j, _ = g.pairs()
    both = torch.stack([i, j], 1).flatten()
    adv = process_grpo.advantages(g.steps[both], g.ends[both], g.mask[both], 2)[::2]
    adv = torch.zeros_like(g.held).index_add(0, i, 2 * g.chance[j, None] * adv)
    kl = ops.spread(ops.kl_exact(g.logp_all, g.ref_all), g.mask)
    chance = g.chance[:, None]
    return process_grpo.loss(g.logp, g.held, chance * kl, chance * adv, g.mask, clip=0.2,
                             beta=BETA, count=1)[0]


def pair_field(loss, weigh):
    """The mean of a loss over the pairs of ref, in both orders, by the chance of either label."""
    def field(g, critic):
        i, j, chance = g.pairs()
        values = each(loss, g.logp[i], g.logp[j], g.logp_ref[i], g.logp_ref[j], g.mask[i],
                      g.mask[j])
        return (chance * weigh(g.reward[i] - g.reward[j]) * values).sum() * 2
    return field


def certain(lead):
    return (lead > 0).double()


def rpo_field(g, critic):
    """The mean over the pairs of ref, whose rewards are known."""
    i, j, chance = g.pairs()
    values = each(rpo.loss, g.logp[i], g.logp[j], g.logp_ref[i], g.logp_ref[j], g.mask[i],
                  g.mask[j], g.reward[i] - g.reward[j], beta=BETA, eta=1.0)
    return (chance * values).sum()


def dpo_loss_of(*rows, count):
    return dpo.loss(*rows, beta=BETA, count=count)


def ipo_loss_of(*rows, count):
    return ipo.loss(*rows, tau=BETA, count=count)


def mdpo_field(g, critic):
    """With sets of one answer.  The better set always wins."""
    i, j, chance = g.pairs()
    both = torch.stack([i, j], 1)                           # (n, 2)
    values = vmap(lambda *xs: mdpo.loss(*xs, beta=BETA, group_size=1, count=1)[0])(
        g.logp[both], g.logp_ref[both], g.mask[both])
    return 2 * (chance * certain(g.reward[i] - g.reward[j]) * values).sum()


def kto_field(g, critic):
    """z0 is the policy's own KL.  Good answers are those above the mean reward under ref."""
    mean = 2 * (g.ref * g.reward).view(2, -1).sum(1).repeat_interleave(g.world.count)
    z0 = float((g.chance * g.ratio.sum(1)).sum())
    values = each(kto.loss, g.logp, g.logp_ref, g.mask, g.reward > mean, z0=z0, beta=BETA,
                  good_weight=1.0, bad_weight=1.0)
    return (g.ref * values).sum()


def oreo_field(level, alpha):
    """On answers of ref, with a value that learns together with the policy."""
    def field(g, critic):
        kl, value = ops.spread(ops.kl_exact(g.logp_all, g.ref_all), g.mask), critic(g.seqs.inputs)
        values = each(oreo.loss, g.logp, value, kl, g.held, value.detach(), g.logp_ref, g.reward,
                      g.mask, g.starts[level], beta=BETA, alpha=alpha)
        return (g.ref * values).sum()
    return field


def chance_to_win(world):
    """IPO's optimum: log of ref exp(w / tau) / Z, w the chance to be preferred to an answer of ref.

    Azar et al. 2023, arxiv.org/abs/2310.12036, sec. 4.2.
    """
    log_ref = world.log_chance(world.reference).detach()
    wins = torch.sigmoid(world.reward[:, :, None] - world.reward[:, None, :])
    return optimum(log_ref, (wins * log_ref.exp()[:, None, :]).sum(2), BETA)[0]


def best_of(world):
    """log of ref exp(r / beta) / Z."""
    return optimum(world.log_chance(world.reference).detach(), world.reward, BETA)[0]


@dataclass(frozen=True)
class Lead:
    """A method's mean step, the optimum that it provably leads to (or None), and the reason."""

    field: Callable
    end: Callable | None
    why: str
    steps: int = 800
    lr: float = 0.01            # initial learning rate; it falls to zero


ENDLESS = "the better always wins, so the lead grows without end"
LEADS = {
    "rloo": Lead(rloo_field, best_of, "a siblings' mean is a baseline"),
    "ppo": Lead(ppo_field, best_of, "with a critic that knows what the policy will get"),
    "reinforce-pp": Lead(reinforce_pp_field, best_of,
                         "whitening a large rollout only scales the step"),
    "grpo": Lead(grpo_field, None,
                 "groups of two: an answer counts by its place; KL in each state"),
    "grpo --kl k3": Lead(partial(grpo_field, k3=True), None, "the same with the other KL"),
    "process-grpo": Lead(process_grpo_field, None,
                         "groups of two: steps count by their place; KL in each state"),
    "dpo": Lead(pair_field(dpo_loss_of, torch.sigmoid), best_of, "labels are Bradley-Terry's"),
    "dpo, sure labels": Lead(pair_field(dpo_loss_of, certain), None, ENDLESS),
    "rpo": Lead(rpo_field, best_of, "it is told the gap of rewards, with eta = 1"),
    "mdpo": Lead(mdpo_field, None, ENDLESS),
    "ipo": Lead(pair_field(ipo_loss_of, torch.sigmoid), chance_to_win,
                "its own optimum has the chance to win in place of the reward"),
    "kto": Lead(kto_field, None, "good or bad in place of the reward"),
    **{f"oreo, by {level}, alpha 0": Lead(oreo_field(level, 0.0), best_of,
                                          "soft Bellman holds nowhere else", 1600, 0.005)
       for level in ("token", "step", "response")},
    "oreo": Lead(oreo_field("step", 0.1), None, "alpha = 0.1 pulls to the reference besides", 1600,
                 0.005),
}
NEAR = 0.01  # share of the way to a proved optimum that may be left at the end


def lead(name, world, steps=None):
    """Follow a method's mean step from the reference with Adam.  -> the end, as plain data

    kl, left   KL(pi || pi*) at the end, and its share of KL(ref || pi*), for the same pi* in all
               methods
    own        that share for the optimum that the method provably leads to
    """
    case, policy, ground = LEADS[name], copy.deepcopy(world.reference), Ground(world)
    steps = steps or case.steps
    critic = RewardModel(copy.deepcopy(world.reference))
    adam = torch.optim.Adam([*weights_of(policy), *weights_of(critic)])
    for step in range(steps):
        adam.param_groups[0]["lr"] = case.lr * (1 + math.cos(math.pi * step / steps)) / 2
        ground.look(policy)
        adam.zero_grad()
        case.field(ground, critic).backward()
        adam.step()
    log_ref, log_p = (world.log_chance(m).detach() for m in (world.reference, policy))

    def left(end):
        return max(0.0, float(divergence(log_p, end))) / float(divergence(log_ref, end))

    best, top = optimum(log_ref, world.reward, BETA)
    found = {"name": name, "why": case.why, "reward": float(mean_reward(log_p, world.reward)),
             "kl_ref": float(divergence(log_p, log_ref)),
             "objective": float(regularised(log_p, log_ref, world.reward, BETA)),
             "best": float(top.mean()), "kl": max(0.0, float(divergence(log_p, best))),
             "left": left(best), "own": left(case.end(world)) if case.end else None}
    found["holds"] = case.end is None or found["own"] < NEAR
    return found
