"""Dr. GRPO: GRPO done right (Liu et al. 2025, arxiv.org/abs/2503.20783).

Two divisions bias GRPO's gradient.  Division by the group's standard deviation gives very easy and
very hard prompts more weight.  Division by the answer's length favours long wrong answers.  Without
both

    A_i = r_i - mean(r)                                                       (sec. 3.2)
    L   = -1/(B L_max) sum_i sum_t min(rho_t A_i, clip(rho_t, 1-eps, 1+eps) A_i)

    dL/dlogp_t = -rho_t A / (B L_max)   where the clip is not active, else 0

At rho = 1 this is the policy gradient of the mean reward with a group-mean baseline, times the
constants (G-1)/G (the mean includes the answer itself) and 1/L_max.  No KL, as in the paper.
Answers whose group ties are not trained on: their gradient is exactly zero.
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import logprobs, minibatches

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward", factor=0.5,
              divisor="longest")]


@dataclass(frozen=True)
class Config(Descent):
    """GRPO without its two biased normalisers."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step (B)
    epochs: int = 1             # passes over each rollout (mu)
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip, rows, longest):
    """logp, logp_old, mask (B, T); adv (B,); rows = B and longest = L_max of the gradient step"""
    adv, scale = adv[:, None], rows * longest
    gain = ops.clipped_surrogate(logp, logp_old, adv, clip, clip)           # (B, T)
    value = -masked_sum(gain, mask) / scale
    clipped = ops.is_clipped(logp, logp_old, adv, clip, clip)
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(clipped.to(logp), mask).detach() / scale,
    }


def loss_grad(logp, logp_old, adv, mask, *, clip, rows, longest):
    """The derivative of `loss`: {"logp": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv[:, None], clip, clip)
    return {"logp": -gain * mask / (rows * longest)}


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        adv = ops.group_centred(reward, cfg.group_size).flatten()           # (B,)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            live = [row for row in rows if adv[row] != 0]
            for i in run.micro_batches(live, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, clip=cfg.clip,
                                    rows=len(rows), longest=run.max_new_tokens)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
