"""Self-critical sequence training (Rennie et al. 2017, arxiv.org/abs/1612.00563).

REINFORCE with the score of the policy's own greedy answer to the same prompt as its baseline.  An
answer becomes likelier when it beats the greedy one:

    A_i = R_i - R(greedy answer to the prompt of i)
    L   = -(1/N) sum_i sum_t A_i logp_t                        N answer tokens in the gradient step

    dL/dlogp_t = -A_i / N on answer tokens, 0 elsewhere

The greedy answer depends on the prompt and the policy but not on the sample, so the baseline adds
no bias.  It is not averaged over time, so it is as new as the policy.  ReMax (Li et al. 2023,
arxiv.org/abs/2310.10505) is the same for language models.  Greedy decoding costs one more answer
per prompt.

Where we differ from the papers: G samples share a greedy answer.  Their sum is divided by their
tokens N, not by their number B.  There is no KL.  Answers that score the same as the greedy one are
left out: their gradient is zero.
"""

from dataclasses import dataclass

from minipost import ops
from minipost.errors import Descent
from minipost.measure.meter import Meter, describe
from minipost.rollout import logprobs

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
ON_POLICY = True
PROOF = [dict(config=dict(prompts=1, group_size=2), rows=2, loss="minus_reward", factor=1.0,
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Policy gradient with the reward of the greedy answer as its baseline (also: ReMax)."""

    steps: int = 28             # rollouts to learn from
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 8         # answers per prompt (G)
    temperature: float = 1.0    # sampling temperature (tau)
    lr: float = 2e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm


loss, loss_grad = ops.policy_gradient, ops.policy_gradient_grad


def train(run, cfg):
    """prompts -> rollout -> rewards -> advantages -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.rollout(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.score(problems, rollout, none=True)                    # (B,)
        greedy = run.sample(problems, 1, temperature=0, purpose="greedy")
        baseline = run.score(problems, greedy, none=True)                   # (P,)
        adv = (reward - baseline[rollout.prompt]).nan_to_num(0.0)           # (B,)  NaN: no reward
        run.keep(problems, rollout, reward, adv)

        meter, count = Meter("loss"), int(rollout.mask.sum())
        live = [row for row in range(len(rollout)) if adv[row] != 0]
        for i in run.micro_batches(live, rollout):
            batch, gain = rollout.take(i, adv)
            logp = logprobs(policy.module, batch, cfg.temperature)
            run.compare(logp, batch)
            value, stats = loss(logp, gain, batch.mask, count=count)
            value.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), **describe(rollout, reward, cfg.group_size),
               "baseline": float(baseline.nanmean().nan_to_num(0.0)), "grad_norm": norm,
               "learning_rate": rate}
