"""GRPO with process supervision (Shao et al. 2024, arxiv.org/abs/2402.03300, sec. 4.1.3).

Every step of an answer earns a reward of its own, at the token with which it ends.  A step is
measured against all steps of all G answers to the prompt, whose rewards are R, and a token is
credited with the steps that end at it or later, since it has no part in those before:

    r~_k = (r_k - mean(R)) / (std(R) + 1e-4)            one number per step
    A_t  = sum of r~_k over the steps k that end at token t or later
    L    = -(1/N) sum_t min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t) + beta/N sum_t KL_t

    dL/dlogp_t = -rho_t A_t / N   where the clip is not active, else 0
    dL/dKL_t   =  beta / N

with rho_t = pi/old, N the answer tokens in the gradient step, KL_t exact over the vocabulary to the
starting policy.  The last token ends the answer, which is a step as well.  So where answers have no
other steps this is GRPO (methods/grpo.py).

A step's reward is the task's own label, 1 if it is right and 0 if not, and at the last token the
reward of the answer.  `--verifier DIR` puts a process reward model in their place, such as --algo
prm saves: its chance that the step, or the answer, is right.

mean(R) is one number, however many steps follow a token.  So it is a baseline only where answers
have equally many steps, as in sums.  Elsewhere a right step that adds nothing is a gain, since its
reward is above the mean.  A verifier that pays for such steps is soon gamed; the paper's KL holds
that up in some runs only (`make study-process-supervision`).

Where we differ from the paper: the mean is over the tokens of the gradient step, as in grpo.py, and
the paper's step rewards are all learnt.  Its authors have not published the code of its training.
"""

import math
from dataclasses import dataclass
from functools import partial

from minipost import checkpoint, ops
from minipost.errors import Descent, MinipostError
from minipost.measure.meter import Meter, averaged, describe
from minipost.methods import prm
from minipost.ops import masked_sum
from minipost.rollout import minibatches, readings, step_scores

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
SCORED = False
TRACE = ("loss", "reward", "step_reward", "kl", "entropy")
PROOF = [dict(config=dict(prompts=1, group_size=2, beta=0.3), rows=2, loss="minus_regularised",
              why="rewards of steps, which are not that of the answer", divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Group-relative policy optimisation against the rewards of single steps."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G), at least 2
    temperature: float = 1.0    # sampling temperature (tau)
    verifier: str = ""          # a process reward model's directory; without it the task's labels
    minibatch_size: int = 256   # answers per gradient step
    epochs: int = 1             # passes over each rollout (mu)
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    beta: float = 0.04          # weight of the KL to the starting policy (beta), the paper's
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2"}


# ---- the rewards of steps

def check(run, cfg):
    """MinipostError where nobody can say what steps are worth."""
    if cfg.verifier:
        checkpoint.read_config(checkpoint.base_of(cfg.verifier))
        return
    prm.check_task(run.task)
    if run.hidden:
        raise MinipostError(f"the reward of {run.task.name} is hidden from learners; name a "
                            "process reward model with --verifier")


def exact(run, problems, rollout):
    """The task's label of each step, and at the last token the answer's reward.  (B, T)"""
    return prm.placed(run, problems, rollout, run.grade(problems, rollout))


def learnt(run, model, problems, rollout):
    """A process reward model's chance that what ends at each token is right.  (B, T)"""
    chance, = run.for_all(lambda batch: [step_scores(model, batch).sigmoid()], rollout)
    if chance.isnan().any():
        raise MinipostError("the verifier's score of a step is not a number; its weights are "
                            "broken")
    return chance


def step_rewards(run, cfg):
    """rewards(problems, rollout) -> (B, T), which count where a step ends."""
    check(run, cfg)
    if not cfg.verifier:
        return partial(exact, run)
    model = checkpoint.load_reward_model(cfg.verifier, run.vocabulary, run.policy.module.device)
    return partial(learnt, run, model.requires_grad_(False))


def advantages(reward, ends, mask, group_size):
    """A_t, zero off the mask.  reward, ends (true where a step ends), mask (B, T) -> (B, T)"""
    only = reward.where(ends, math.nan).flatten()           # no reward where no step ends
    each = ops.group_normalised(only, group_size * reward.shape[1]).view_as(reward)
    return each.flip(1).cumsum(1).flip(1).where(mask, 0.0)


# ---- the loss

@ops.shapes(logp="B T", logp_old="B T", kl="B T", adv="B T", mask="B T")
def loss(logp, logp_old, kl, adv, mask, *, clip, beta, count):
    """All (B, T); count = N  ->  scalar loss, metrics that add up"""
    gain = ops.clipped_surrogate(logp, logp_old, adv, clip, clip)           # (B, T)
    value = masked_sum(beta * kl - gain, mask) / count
    clipped = ops.is_clipped(logp, logp_old, adv, clip, clip)
    return value, {
        "loss": value.detach(),
        "clip_ratio": masked_sum(clipped.to(logp), mask).detach() / count,
    }


def loss_grad(logp, logp_old, kl, adv, mask, *, clip, beta, count):
    """The derivative of `loss`: {"logp": (B, T), "kl": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv, clip, clip)
    return {"logp": -gain.where(mask, 0.0) / count, "kl": beta * mask.to(kl) / count}


def train(run, cfg, rewards=None):
    """prompts -> rollout -> step rewards -> advantages -> loss -> update.  Yields metrics per step.

    rewards(problems, rollout) -> (B, T): of steps, those that the Config names if None.
    """
    policy, rewards = run.policy, rewards or step_rewards(run, cfg)
    reference = run.reference() if cfg.beta else None
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        ends = prm.marks(run, rollout, False)                               # (B, T)
        earned = rewards(problems, rollout)                                 # (B, T)
        adv = advantages(earned, ends, rollout.mask, cfg.group_size)        # (B, T)
        reward = ops.row_sums(earned, prm.final(rollout.mask))              # (B,) of the answers
        run.keep(problems, rollout, reward, adv)

        meter, updates = Meter("loss", "kl", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(rollout.mask[rows].sum())
            live = rows if cfg.beta else [row for row in rows if adv[row].any()]
            for i in run.micro_batches(live, rollout):
                batch, gain = rollout.take(i, adv)
                seen = readings(policy.module, batch, cfg.temperature, reference)
                run.compare(seen.logp, batch)
                kl = seen.logp.new_zeros(seen.logp.shape) if seen.kl is None else seen.kl
                value, stats = loss(seen.logp, batch.logp, kl, gain, batch.mask, clip=cfg.clip,
                                    beta=cfg.beta, count=count)
                value.backward()
                meter.add(**stats, kl=masked_sum(kl, batch.mask).detach() / count)
            updates.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
        found = {"step_reward": float(earned[ends].mean())}
        if cfg.verifier:
            found |= averaged("gold", run.gold(problems, rollout))
        yield {**meter.means(len(updates)), **found, **describe(rollout, reward, cfg.group_size),
               "grad_norm": sum(updates) / len(updates), "learning_rate": rate}
