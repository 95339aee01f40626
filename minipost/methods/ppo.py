"""PPO: Proximal Policy Optimization (Schulman et al. 2017, arxiv.org/abs/1707.06347), and RLHF.

One answer is an episode, one token is an action.  The score s comes at the last token, and every
token pays for leaving the reference (Ziegler et al. 2019, arxiv.org/abs/1909.08593, eq. 2):

    r_t = -beta (logp_t - logp_ref_t) + [t last] s
    A   = GAE(r, V; gamma, lam),    R = A + V,    then A is whitened over the rollout (R never is)

    L_pi = -(1/N) sum_t min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t)                  (eq. 7)
    L_V  = 1/(2N) sum_t max((V_t - R_t)^2, (V_old_t + clip(V_t - V_old_t, +-c) - R_t)^2)

    dL/dlogp_t = -rho_t A_t / N   where the clip is not active, else 0
    dL/dV_t    = (V_t - R_t) / N  where the clip is not active or changes nothing, else 0

The critic V is a nano-GPT of its own that starts as the policy with a head of zeros.  beta is
fixed, or with `--control adaptive` it moves so that the KL per answer meets a target (Ziegler et
al. sec. 2.2, in the form of their code):

    beta <- beta (1 + clip(KL / target - 1, +-0.2) n / horizon)                     n answers

On a task with a hidden reward, such as `wording`, all of RLHF runs (Ouyang et al. 2022,
arxiv.org/abs/2203.02155; survey sec. 3.2.3): supervised fine-tuning on demonstrations, a reward
model from labelled pairs, then PPO against its score.  That is why this file may call those two
methods.  An answer that was cut off scores `missing_eos` less, as in TRL, where it is off unless
asked for.  On any other task, with --reward or with --reward-model, PPO starts at once.  The metric
`kl` is exact over the vocabulary.  `gold` is the hidden reward; nothing here learns from it.
"""

import copy
from dataclasses import dataclass
from typing import Literal

from minipost import ops
from minipost.datasets import preferences
from minipost.errors import Descent
from minipost.gpt import ValueHead
from minipost.measure import scorers
from minipost.measure.meter import Meter, averaged, describe
from minipost.methods import reward, sft
from minipost.ops import masked_sum
from minipost.rollout import logprobs, minibatches, readings, values
from minipost.run import REWARD_MODEL

TASK = "wording"
METRIC = "sampled"
ON_POLICY = True
EXPORTS = {"policy": "model", REWARD_MODEL: "reward_model"}
TRACE = ("loss", "accuracy", "reward", "gold", "kl_per_answer", "beta")
PROOF = [dict(config=dict(prompts=2, minibatch_size=2, epochs=1, beta=0.3, missing_eos=0.0), rows=2,
              loss="minus_regularised",
              why="whitened, and lambda 0.95 trusts a critic that knows nothing yet",
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """PPO against a reward; where the task hides it, after SFT and a reward model."""

    steps: int = 40             # rollouts to learn from
    prompts: int = 128          # prompts per rollout, one answer each (B)
    temperature: float = 1.0    # sampling temperature (tau)
    minibatch_size: int = 64    # answers per gradient step
    epochs: int = 2             # passes over each rollout
    clip: float = 0.2           # how far a ratio may go from 1 before its gain stops (eps)
    value_clip: float = 0.2     # how far a value may move before its gradient stops (c)
    gamma: float = 1.0          # discount (gamma)
    lam: float = 0.95           # GAE: 0 trusts the critic, 1 the rewards (lambda)
    beta: float = 0.05          # price of a nat of KL to the reference, at first (beta)
    control: Literal["fixed", "adaptive"] = "fixed"  # whether beta moves
    kl_target: float = 6.0      # KL per answer in nats that an adaptive beta steers to
    horizon: int = 10_000       # answers over which an adaptive beta moves by its whole error
    missing_eos: float = 1.0    # penalty on the score of an answer that was cut off
    lr: float = 1e-4            # learning rate of the policy (eta)
    critic_lr: float = 5e-4     # learning rate of the critic
    max_grad_norm: float = 1.0  # both gradients are clipped to this norm
    sft_steps: int = 60         # with a hidden reward: steps of supervised fine-tuning first
    reward_steps: int = 150     # with a hidden reward: steps of the reward model, 64 pairs each

    LIMITS = {"gamma": ">= 0, <= 1", "lam": ">= 0, <= 1",
              "kl_target": "> 0", "horizon": "> 0", "sft_steps": ">= 0"}


def clipped_value(value, value_old, clip):
    """The value, held within `clip` of the old one."""
    return value_old + (value - value_old).clamp(-clip, clip)


@ops.shapes(logp="B T", value="B T", logp_old="B T", value_old="B T", adv="B T", ret="B T",
            mask="B T")
def loss(logp, value, logp_old, value_old, adv, ret, mask, *, clip, value_clip, count):
    """All (B, T); count = N  ->  scalar loss of policy and critic, metrics that add up"""
    gain = masked_sum(ops.clipped_surrogate(logp, logp_old, adv, clip, clip), mask)
    held = clipped_value(value, value_old, value_clip)
    error = masked_sum((value - ret).square().maximum((held - ret).square()), mask)
    clipped = ops.is_clipped(logp, logp_old, adv, clip, clip)
    return (error / 2 - gain) / count, {
        "loss": (-gain / count).detach(), "value_loss": (error / 2 / count).detach(),
        "clip_ratio": masked_sum(clipped.to(logp), mask).detach() / count,
    }


def loss_grad(logp, value, logp_old, value_old, adv, ret, mask, *, clip, value_clip, count):
    """The derivative of `loss`: {"logp": (B, T), "value": (B, T)}."""
    gain = ops.clipped_surrogate_grad(logp, logp_old, adv, clip, clip)
    held = clipped_value(value, value_old, value_clip)
    inside = (value - value_old).abs() <= value_clip
    pulls = inside | ((value - ret).square() > (held - ret).square())
    return {"logp": -gain.where(mask, 0.0) / count,
            "value": (value - ret).where(pulls & mask, 0.0) / count}


def token_rewards(score, logp, logp_ref, mask, beta):
    """The score at each answer's last token less the price of KL at every token.  (B,) -> (B, T)"""
    return (ops.at_last(score, mask) - beta * (logp - logp_ref)).where(mask, 0.0)


def adapted(beta, kl, answers, cfg):
    """beta after a rollout of `answers` answers with this KL per answer."""
    error = min(0.2, max(-0.2, kl / cfg.kl_target - 1))
    return beta * (1 + error * answers / cfg.horizon)


def total(run, cfg):
    """Steps of all stages."""
    return cfg.steps + (cfg.sft_steps + cfg.reward_steps if learns_reward(run) else 0)


def learns_reward(run):
    """Whether the reward is hidden and no reward model was given."""
    return run.hidden and run.reward_model is None


def train(run, cfg):
    """All of RLHF where the reward is hidden, PPO alone elsewhere.  Yields metrics per step."""
    return rlhf(run, cfg, preferences.by_reward) if learns_reward(run) else optimise(run, cfg)


def rlhf(run, cfg, label):
    """Fine-tune, learn a reward from labels, optimise it.  run.step says which stage it is."""
    tuned, judged = cfg.sft_steps, cfg.sft_steps + cfg.reward_steps
    if run.step < tuned:
        yield from sft.cold_start(run, sft.Config(steps=cfg.sft_steps, lr=5e-4, warmup_steps=5))
    if run.step < judged:
        stage = reward.train(run, reward.Config(
            steps=cfg.reward_steps, prompts=64, group_size=2, temperature=cfg.temperature),
            label, tuned)
        while run.step < judged:
            yield next(stage)
    if run.step == judged:
        run.policy.reset_optimizer()  # Adam's moments are about another loss
    run.score_by(scorers.scorer(run).module)
    yield from optimise(run, cfg, judged)


def optimise(run, cfg, first=0):
    """prompts -> rollout -> scores -> token rewards -> advantages -> loss -> update.

    first: the step of the run at which this begins, where other stages come before.
    """
    policy, reference = run.policy, run.reference()
    critic = run.learner("critic", lambda: ValueHead(copy.deepcopy(policy.module)))
    beta = run.carried.setdefault("beta", cfg.beta)

    def references(batch):
        """Reference log-prob, exact KL to the reference, value, each (b, T)."""
        seen = readings(policy.module, batch, cfg.temperature, reference)
        return seen.logp_ref, seen.kl, values(critic.module, batch)

    while True:
        rate = cfg.rate(cfg.lr, run.step - first)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, 1, temperature=cfg.temperature)
        score, mask = run.score(problems, rollout), rollout.mask            # (B,)
        logp_ref, kl, value_old = run.for_all(references, rollout, outputs=3)  # (B, T)
        charged = score - cfg.missing_eos * (~rollout.finished).to(score)
        earned = token_rewards(charged, rollout.logp, logp_ref, mask, beta)
        adv = ops.gae(earned, value_old, mask, cfg.gamma, cfg.lam)
        ret = adv + value_old
        adv = ops.whiten(adv, mask)
        run.keep(problems, rollout, score, adv, value_old)

        meter, norms = Meter("loss", "value_loss", "clip_ratio"), []
        for rows in minibatches(range(len(rollout)), cfg.minibatch_size, cfg.epochs,
                                run.rng("order")):
            count = int(mask[rows].sum())
            for i in run.micro_batches(rows, rollout):
                batch, gain, target, before = rollout.take(i, adv, ret, value_old)
                logp = logprobs(policy.module, batch, cfg.temperature)
                run.compare(logp, batch)
                objective, stats = loss(
                    logp, values(critic.module, batch), batch.logp, before, gain, target,
                    batch.mask, clip=cfg.clip, value_clip=cfg.value_clip, count=count)
                objective.backward()
                meter.add(**stats)
            norms.append(policy.step(rate, cfg.max_grad_norm, cfg.weight_decay))
            critic.step(cfg.rate(cfg.critic_lr, run.step - first), cfg.max_grad_norm,
                        cfg.weight_decay)

        per_answer = float(masked_sum(kl, mask) / len(rollout))
        metrics = {"beta": beta, "kl": float(masked_sum(kl, mask) / mask.sum()),
                   "kl_per_answer": per_answer}
        if run.reward_model is not None:
            metrics |= averaged("gold", run.gold(problems, rollout))
        if cfg.control == "adaptive":
            beta = run.carried["beta"] = adapted(beta, per_answer, len(rollout), cfg)
        yield {**meter.means(len(norms)), **metrics, **describe(rollout, score, 1),
               "explained_variance": ops.explained_variance(value_old, ret, mask),
               "grad_norm": sum(norms) / len(norms), "learning_rate": rate}
