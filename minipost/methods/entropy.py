"""Entropy held: GRPO's loss on a choice of tokens, and a bonus for entropy.

RL spends a policy's entropy, and when that is gone nothing new is found.  Three remedies, a number
each; 1, 0 and 0 make none of them:

    --share 0.2       only that share of the tokens, those with the most entropy, has a gradient:
                      where the text forks (Wang et al. 2025, arxiv.org/abs/2506.01939)
    --cov-share 2e-4  Clip-Cov: that share of the tokens, drawn from those whose covariance of
                      log-prob and advantage is within 1 .. 5, has none (Cui et al. 2025,
                      arxiv.org/abs/2505.22617): likely ones that are made likelier, and
                      unlikely ones that are made unlikelier
    --entropy-weight  the oldest remedy: entropy itself is a gain

    L = -(1/N) [ sum_t k_t min(rho_t A, clip(rho_t, 1-eps_low, 1+eps_high) A) + c_e sum_t H_t ]

with k_t whether a token is kept, rho_t = pi/old, A as in GRPO, H_t the entropy of pi at t, N the
answer tokens of the gradient step, and no KL.  By hand:

    dL/dlogp_t = -k_t rho_t A / N   where the clip is not active, else 0,    dL/dH_t = -c_e / N

    Cov_t = (logp_t - mean logp) (A - mean A)     over the tokens to choose from

Tokens are chosen anew before every gradient step, among answers whose group does not tie, by the
policy as it is then.  Where we differ: 20% is of these tokens, without the first paper's dynamic
sampling.  The second paper's equation has no clip, and its script sets the bounds to 1; we keep
PPO's.  Its code never draws a token that a clip stops, and draws at least one; we draw the rounded
share of all.
"""

from dataclasses import dataclass

import torch

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import minibatches, readings

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2, share=0.5), rows=2, loss="minus_reward",
              why="reward over its group's deviation, at half of the tokens", divisor="tokens"),
         dict(variant="--share 1 --entropy-weight 0.1", rows=2, loss="minus_reward",
              config=dict(prompts=1, group_size=2, share=1.0, entropy_weight=0.1),
              why="reward over its group's deviation, and entropy in each state", divisor="tokens")]
LEAST, MOST = 1.0, 5.0  # covariances between which Clip-Cov draws


@dataclass(frozen=True)
class Config(Descent):
    """GRPO on tokens that fork, or without those that spend entropy, or with a bonus for it."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    share: float = 0.2          # of the tokens, those with the most entropy, that learn; 1: all
    cov_share: float = 0.0      # of the tokens, drawn from those of high covariance, that do not
    entropy_weight: float = 0.0  # weight of the entropy bonus (c_e)
    clip_low: float = 0.2       # how far a ratio may fall below 1 (eps_low)
    clip_high: float = 0.28     # how far a ratio may rise above 1 (eps_high)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "share": "> 0, <= 1", "cov_share": ">= 0, <= 1"}


def forks(entropy, mask, share):
    """That share of the chosen tokens, those with the most entropy.  (B, T) -> (B, T) bool

    At least one, and at the edge all of equal entropy: the same state in another row may round off.
    """
    some = entropy[mask].sort(descending=True).values
    if share == 1 or not len(some):
        return mask
    return mask & (entropy >= (1 - 1e-5) * some[max(1, round(share * len(some))) - 1])


def covariances(logp, adv, mask):
    """(logp - its mean) (A - its mean) of each chosen token, zero elsewhere.  (B, T), (B,)"""
    count, adv = mask.sum(), adv[:, None].expand_as(logp)
    return ((logp - masked_sum(logp, mask) / count) * (adv - masked_sum(adv, mask) / count)).where(
        mask, 0.0)


def drawn(cov, mask, share, rng):
    """That share of the chosen tokens, drawn from those within LEAST .. MOST.  (B, T) bool"""
    found = torch.zeros_like(mask)
    places = (mask & (cov > LEAST) & (cov < MOST)).nonzero().tolist()
    for row, t in rng.sample(places, min(len(places), round(share * int(mask.sum())))):
        found[row, t] = True
    return found


@ops.shapes(logp="B T", logp_old="B T", entropy="B T", adv="B", kept="B T", mask="B T")
def loss(logp, logp_old, entropy, adv, kept, mask, *, clip_low, clip_high, entropy_weight, count):
    """logp, logp_old, entropy, kept, mask (B, T); adv (B,); count = N  ->  scalar loss, metrics"""
    edges = logp, logp_old, adv[:, None], clip_low, clip_high
    bonus = masked_sum(entropy, mask) / count
    value = -masked_sum(ops.clipped_surrogate(*edges), kept) / count - entropy_weight * bonus
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(ops.is_clipped(*edges).to(logp), kept).detach() / count,
        "kept": masked_sum(torch.ones_like(logp), kept) / count,
    }


def loss_grad(logp, logp_old, entropy, adv, kept, mask, *, clip_low, clip_high, entropy_weight,
              count):
    """The derivative of `loss`: {"logp": (B, T), "entropy": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv[:, None], clip_low, clip_high)
    return {"logp": -gain * kept / count, "entropy": -entropy_weight * mask.to(entropy) / count}


def choose(run, cfg, rollout, adv, rng):
    """Which tokens of these answers learn, by the policy as it is now.  (B, T) bool"""
    mask = rollout.mask
    if not len(rollout) or cfg.share == 1 and not cfg.cov_share:
        return mask

    def look(batch):
        seen = readings(run.policy.module, batch, cfg.temperature, entropy=True)
        return [seen.logp, seen.entropy]

    logp, entropy = run.for_all(look, rollout, 2)
    kept = forks(entropy, mask, cfg.share)
    return kept & ~drawn(covariances(logp, adv, mask), mask, cfg.cov_share, rng)


def train(run, cfg):
    """prompts -> rollout -> advantages -> tokens -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        adv = ops.group_normalised(reward, cfg.group_size)                  # (B,)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio", "kept"), []
        rng = run.rng("covariance")
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            learn = [row for row in rows if adv[row] != 0]
            kept = torch.zeros_like(rollout.mask)
            part, gain = rollout.take(learn, adv)
            kept[learn, : part.mask.shape[1]] = choose(run, cfg, part, gain, rng)
            for i in run.micro_batches(rows if cfg.entropy_weight else learn, rollout):
                batch, gain, some = rollout.take(i, adv, kept)
                seen = readings(policy.module, batch, cfg.temperature, entropy=True)
                run.compare(seen.logp, batch)
                value, stats = loss(seen.logp, batch.logp, seen.entropy, gain, some, batch.mask,
                                    clip_low=cfg.clip_low, clip_high=cfg.clip_high,
                                    entropy_weight=cfg.entropy_weight, count=count)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
