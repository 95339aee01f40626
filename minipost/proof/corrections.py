"""Answers that somebody else sampled: what each correction makes of the policy gradient, exactly.

The policy pi learns from answers of a sampler mu.  With a fixed baseline b, the mean reward of the
prompt under pi, the exact gradient is E_pi[(r - b) grad log pi(y)].  A correction weighs tokens:

    step of an answer   (r - b) sum_t w_t grad log pi(y_t)
    bias                | E_mu[step] - exact | / | exact |
    noise               standard deviation of one step, as a share of | exact |

All answers are listed, so both are sums.  The weights are those of the methods' own `loss_grad`.
Only the ratio of the whole answer has no bias, if its bounds drop nothing, and if mu can give every
answer: a product of T ratios, whose noise grows with T.  A token's own ratio leaves out that mu
reached its state more or less often than pi does.
"""

import copy
import math

import torch

from minipost.methods import cispo, grpo, gspo, sapo
from minipost.optim import Learner
from minipost.parts import rounded
from minipost.proof.oracle import divergence, weights_of
from minipost.rollout import chosen_logprobs, distribution

FREE = 1e9      # a bound that nothing reaches
BITS, TOP, FAR = 3, 2, 0.25  # of the samplers below
STEPS, LR = 100, 0.01        # of Adam on the same answers


def samplers(world):
    """{name: log mu of every token (M, T)} of three samplers that are not the policy."""
    def of(module):
        with torch.no_grad():
            return world.token_logp(module).flatten(0, 1)

    with torch.no_grad():
        all_ = distribution(world.policy, world.seqs)                       # (N, V)
        least = all_.topk(TOP, -1).values[:, -1:]
        top = all_.where(all_ >= least, -math.inf).log_softmax(-1)
    older, generator = copy.deepcopy(world.policy), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in older.parameters():
            p.add_(FAR * p.std() * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return {f"weights of {BITS} bits": of(rounded(world.policy, BITS)),
            "an older policy": of(older),
            f"the {TOP} likeliest tokens": chosen_logprobs(top, world.seqs)}


def by_grpo(correct, cap=2.0):
    """`loss_grad` of GRPO with this correction, divided by answers."""
    def slope(logp, old, adv, mask):
        return grpo.loss_grad(logp, old, torch.zeros_like(logp), adv, mask, clip=0.2, beta=0.0,
                              count=1, correct=correct, cap=cap)["logp"]
    return slope


def by_answers(loss_grad, **options):
    """A `loss_grad` that takes the mean over an answer's tokens, here made a sum as the others."""
    def slope(logp, old, adv, mask):
        return loss_grad(logp, old, adv * mask.sum(1), mask, count=1, **options)["logp"]
    return slope


def by_tokens(logp, old, adv, mask):
    return cispo.loss_grad(logp, old, adv, mask, count=1, clip_low=1.0, clip_high=4.0)["logp"]


WAYS = {
    "none": by_grpo("none"), "clip 0.2": by_grpo("clip"),
    "a token's ratio, no bound": by_grpo("truncated", FREE),
    "truncated at 2 (TIS)": by_grpo("truncated"), "masked 1/2 .. 2 (MIS)": by_grpo("masked"),
    "an answer's ratio, no bound": by_grpo("masked-answers", FREE),
    "answers masked 1/2 .. 2": by_grpo("masked-answers"),
    "gspo, clip 0.2": by_answers(gspo.loss_grad, clip_low=0.2, clip_high=0.2),
    "cispo, at most 5": by_tokens,
    "sapo": by_answers(sapo.loss_grad, tau_pos=1.0, tau_neg=1.05),
}


def scores(world):
    """grad log pi of every token of every answer, zero off the mask.  (M, T, W)"""
    logp = world.token_logp(world.policy).flatten(0, 1)                     # (M, T)
    rows = []
    for x, chosen in zip(logp.flatten(), world.seqs.mask.flatten()):
        found = torch.autograd.grad(x, weights_of(world.policy), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]) * chosen)
    return torch.stack(rows).view(*logp.shape, -1)


def corrections(world):
    """[{"sampler", "kl" of mu to pi, "name", "bias", "noise"}] of every sampler and correction."""
    mask, each, found = world.seqs.mask, scores(world), []
    with torch.no_grad():
        logp = world.token_logp(world.policy).flatten(0, 1)
    chance = logp.sum(1).exp() / 2                                          # (M,) under pi
    base = 2 * (chance * world.reward.flatten()).view(2, -1).sum(1).repeat_interleave(world.count)
    adv = world.reward.flatten() - base
    exact = torch.einsum("m,mtw->w", chance * adv, each)
    for sampler, old in samplers(world).items():
        mu = old.sum(1).exp() / 2
        seen = mu > 0
        kl = float((mu * (old.sum(1) - logp.sum(1)))[seen].sum())
        for name, slope in WAYS.items():
            weight = -slope(logp[seen], old[seen], adv[seen], mask[seen])   # (m, T)
            steps = torch.einsum("mt,mtw->mw", weight, each[seen])
            mean = mu[seen] @ steps
            spread = mu[seen] @ steps.square().sum(1) - mean @ mean
            found.append({"sampler": sampler, "kl": kl, "name": name,
                          "bias": float((mean - exact).norm() / exact.norm()),
                          "noise": math.sqrt(float(spread)) / float(exact.norm())})
    return found


def passes(world, steps=STEPS):
    """Follow each mean step on the same answers, of the policy as it was before the first.

    -> [{"name", "reward", "most", "kl"}]: J at the end, the highest on the way, KL(mu || pi) at the
    end.  The rewards less their prompt's mean are the advantages, which stay as they are.
    """
    mask, found = world.seqs.mask, []
    with torch.no_grad():
        old = world.token_logp(world.policy).flatten(0, 1)
    mu = old.sum(1).exp() / 2
    base = 2 * (mu * world.reward.flatten()).view(2, -1).sum(1).repeat_interleave(world.count)
    adv = mu * (world.reward.flatten() - base)
    for name, slope in WAYS.items():
        policy, rewards = Learner(copy.deepcopy(world.policy)), []
        for _ in range(steps):
            logp = world.token_logp(policy.module).flatten(0, 1)            # (M, T)
            rewards.append(float(logp.detach().sum(1).exp() / 2 @ world.reward.flatten()))
            (logp * slope(logp.detach(), old, adv, mask)).sum().backward()
            policy.step(LR, max_grad_norm=math.inf)
        kl = float(divergence(*(x.sum(1).view(2, -1) for x in (old, logp.detach()))))
        found.append({"name": name, "reward": rewards[-1], "most": max(rewards), "kl": kl})
    return found
