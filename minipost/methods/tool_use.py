"""Tool use: ReAct taught by a few demonstrations and by RL (survey fig. 2; Yao et al. 2022,
arxiv.org/abs/2210.03629; in RL as in Search-R1, Jin et al. 2025, arxiv.org/abs/2503.09516).

An answer is thoughts and calls of a tool in turn.  What the tool writes, the observation, stands in
the answer and is no choice of the policy.  With O the places of observations

    cold start   L = -(1/N) sum_{t not in O} log pi(y_t | x, y_<t)       the form of a call (sft.py)
    RL           L = -(1/N) sum_{t not in O} min(rho_t A, clip(rho_t, 1-eps, 1+eps) A)    (grpo.py)

    dL/dlogp_t = what those files say at t not in O, N counting these alone;   0 at t in O

The probability of an answer is a product of the policy's choices and of the tool's.  The tool's
factors do not depend on the weights, so grad log p(y) has no term at O; Search-R1 masks them too.
An observation that is learnt gets the advantage of an answer in which it was a fact.

The paper prompts a large model with a few examples, and fine-tunes smaller ones on answers that
were right (sec. 3.2).  A nano model reads no examples, so a cold start teaches it the form.  An
action is a call of a calculator here, a thought a line of the working.  The reward is the answer's
alone.
"""

from dataclasses import dataclass

from minipost.datasets.tools import observations
from minipost.errors import MinipostError
from minipost.methods import grpo, sft

TASK = "calculator"
DEMO = {"max_new_tokens": 72}
METRIC = "greedy"
TRACE = ("loss", "reward", "observations", "completions/mean_length", "entropy")
PROOF = "takes the steps of sft and grpo; the mask alone leaves out what a tool wrote"


@dataclass(frozen=True)
class Config(grpo.Config):
    """A cold start on demonstrations that call a tool, then GRPO with the tool."""

    steps: int = 40             # rollouts to learn from
    beta: float = 0.0           # weight of the KL to the policy after the cold start (beta)
    cold_start: int = 2000      # demonstrations of the cold start
    cold_steps: int = 150       # gradient steps of the cold start
    sft_lr: float = 1e-3        # peak learning rate of the cold start


def total(run, cfg):
    """Steps of both stages."""
    return cfg.cold_steps + cfg.steps


def milestones(run, cfg):
    """{step: stage} after which the policy is measured; the end of the run is measured anyway."""
    return {cfg.cold_steps: "cold start"}


def check(run, cfg):
    """MinipostError where the task has no tool."""
    if not run.task.acts:
        raise MinipostError(f"the answers to the task {run.task.name} call no tool; calculator's "
                            "do, and minipost/tasks/base.py says what a task with a tool has "
                            "(call_end, tool, acts)")
    sft.check(run, cfg)


def train(run, cfg):
    """Demonstrations first, then rollouts with the tool.  Yields metrics per step."""
    if run.step < cfg.cold_steps:
        yield from sft.cold_start(run, sft.Config(cfg.cold_steps, lr=cfg.sft_lr), cfg.cold_start)
    if run.step == cfg.cold_steps:
        run.policy.reset_optimizer()
    seen = {}

    def score(problems, rollout):
        seen["observations"] = float(observations(rollout).float().mean())
        return run.score(problems, rollout, none=True)

    for metrics in grpo.train(run, cfg, score, cfg.cold_steps):
        yield {**metrics, **seen}
