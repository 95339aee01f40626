"""DAPO: Decoupled clip and dynamic sampling (Yu et al. 2025, arxiv.org/abs/2503.14476).

GRPO with four changes.  Each works against a way in which long runs stall:

    clip-higher        clip(rho, 1-eps_low, 1+eps_high) with eps_high > eps_low, so that unlikely
                       tokens can still gain                                          (sec. 3.1)
    dynamic sampling   groups whose answers are all right or all wrong teach nothing: they are
                       dropped, and further prompts are sampled in their place        (sec. 3.2)
    token-level loss   the mean is over the tokens of the whole gradient step         (sec. 3.3)
    soft overlong      a penalty that grows from 0 to -1 over the last L_c tokens before L_max:
                       R = (L_max - L_c - |y|) / L_c, within [-1, 0]                  (sec. 3.4)

    L = -(1/N) sum_t min(rho_t A, clip(rho_t, 1-eps_low, 1+eps_high) A),   A as in GRPO, no KL
    dL/dlogp_t = -rho_t A / N   where the clip is not active, else 0

Where we differ: after `rounds` rounds of sampling the step goes on with the groups that it has.
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.ops import masked_sum
from minipost.rollout import concat, logprobs, minibatches

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2, rounds=1, overlong=1), rows=2,
              loss="minus_reward",
              why="reward less a penalty of length, over its group's deviation", opposed=True,
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """GRPO with clip-higher, dynamic sampling, token-level loss and a soft length penalty."""

    steps: int = 20             # rollouts to learn from
    prompts: int = 32           # groups per rollout whose rewards differ (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    rounds: int = 2             # how often to sample P prompts before going on with fewer groups
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 256   # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    clip_low: float = 0.2       # how far a ratio may fall below 1 (eps_low)
    clip_high: float = 0.28     # how far a ratio may rise above 1 (eps_high)
    overlong: int = 8           # tokens before the length limit at which the penalty begins (L_c)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "overlong": ">= 0"}


def soft_overlong(lengths, longest, buffer):
    """Penalty for length, from 0 at longest - buffer to -1 at longest.  (B,) -> (B,)"""
    return ((longest - buffer - lengths) / max(1, buffer)).clamp(-1.0, 0.0)


@ops.shapes(logp="B T", logp_old="B T", adv="B", mask="B T")
def loss(logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    """logp, logp_old, mask (B, T); adv (B,); count = N  ->  scalar loss, metrics that add up"""
    adv = adv[:, None]
    gain = ops.clipped_surrogate(logp, logp_old, adv, clip_low, clip_high)  # (B, T)
    value = -masked_sum(gain, mask) / count
    clipped = ops.is_clipped(logp, logp_old, adv, clip_low, clip_high)
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(clipped.to(logp), mask).detach() / count,
    }


def loss_grad(logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv[:, None], clip_low, clip_high)
    return {"logp": -gain * mask / count}


def mixed_groups(run, cfg):
    """Sample until P groups have unequal rewards, or the rounds are used up.

    -> the problems, the Rollout of those groups, their rewards with the length penalty, and
    metrics.  The metrics are of the first round: only that one is a fair sample of the prompts.
    """
    parts, rewards, groups, first, asked = [], [], 0, {}, []
    for k in range(cfg.rounds):
        problems = run.problems(cfg.prompts, again=k)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature,
                              purpose=f"rollout {k}")
        reward = run.score(problems, rollout, none=True)                    # (B,)
        first = first or describe(rollout, reward, cfg.group_size)
        mixed = ops.group_centred(reward, cfg.group_size).any(1)            # (P,)
        rows = mixed.repeat_interleave(cfg.group_size).nonzero()[
            : (cfg.prompts - groups) * cfg.group_size, 0]
        penalty = soft_overlong(rollout.lengths, run.max_new_tokens, cfg.overlong)
        parts.append(rollout[rows])
        kept = int(parts[-1].prompt.max()) + 1 if len(rows) else 0  # as `concat` counts prompts
        asked += problems[:kept]
        rewards += (reward + penalty)[rows].tolist()
        groups += len(rows) // cfg.group_size
        if groups == cfg.prompts:
            break
    return (asked, concat(parts, run.vocabulary.pad), reward.new_tensor(rewards),
            {**first, "rounds": k + 1})


def train(run, cfg):
    """prompts -> mixed groups -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems, rollout, reward, metrics = mixed_groups(run, cfg)
        adv = ops.group_normalised(reward, cfg.group_size)                  # (B,)
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            for i in run.micro_batches(rows, rollout):
                batch, gain = rollout.take(i, adv)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                value, stats = loss(logp, batch.logp, gain, batch.mask, clip_low=cfg.clip_low,
                                    clip_high=cfg.clip_high, count=count)
                value.backward()
                meter.add(**stats)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        yield {**meter.means(len(updates)), **metrics,
               "grad_norm": sum(updates) / max(1, len(updates)), "learning_rate": rate}
