"""GSPO: Group Sequence Policy Optimization (Zheng et al. 2025, arxiv.org/abs/2507.18071).

GRPO whose ratio is of the whole answer.  A reward is for an answer, so the answer is weighed and
clipped as one:

    s_i = (pi(y_i) / old(y_i))^(1/|y_i|) = exp( 1/|y_i| sum_t log pi/old )               (eq. 7)
    L   = -(1/B) sum_i min(s_i A_i, clip(s_i, 1-eps_low, 1+eps_high) A_i)                (eq. 5)

with A_i as in GRPO and no KL.  The root keeps ratios of long and short answers in one range, and
that range is narrow: it is of a mean over tokens.  By hand:

    dL/dlogp_t = -s_i A_i / (|y_i| B)   where the clip is not active, else 0

All tokens of an answer have the same weight, and a clipped answer has none.  With one token to an
answer this is GRPO.  Answers whose group ties are not trained on: their gradient is exactly zero.

The bounds are the paper's (sec. 5.1).  Here one step of the default rate moves s by more than that,
so with several minibatches or passes, or with `--lag`, wider ones let more than the first update
learn.
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward",
              why="reward over its group's deviation; an answer counts by its tokens' mean")]


@dataclass(frozen=True)
class Config(Descent):
    """Group-relative policy optimisation with one ratio per answer."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step (B)
    epochs: int = 1             # passes over each rollout (mu)
    clip_low: float = 3e-4      # how far an answer's ratio may fall below 1 (eps_low)
    clip_high: float = 4e-4     # how far an answer's ratio may rise above 1 (eps_high)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


def means(logp, logp_old, mask):
    """log pi(y)^(1/|y|) of the policy and of the one that sampled.  (B,), (B,)"""
    return ops.row_means(logp, mask), ops.row_means(logp_old, mask)


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    """logp, logp_old, mask (B, T); adv (B,); count = B  ->  scalar loss, metrics that add up"""
    edges = *means(logp, logp_old, mask), adv, clip_low, clip_high
    value = -ops.clipped_surrogate(*edges).sum() / count
    return value, {
        "loss": value.detach(),
        "clip_ratio": ops.is_clipped(*edges).to(logp).sum().detach() / count,
    }


def loss_grad(logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    edges = *means(logp, logp_old, mask), adv, clip_low, clip_high
    gain = ops.clipped_surrogate_grad(*edges) / mask.sum(1)                 # (B,)
    return {"logp": -gain[:, None] * mask / count}


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        adv = ops.group_normalised(reward, cfg.group_size)                  # (B,)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            live = [row for row in rows if adv[row] != 0]
            for i in run.micro_batches(live, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, clip_low=cfg.clip_low,
                                    clip_high=cfg.clip_high, count=len(rows))
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
