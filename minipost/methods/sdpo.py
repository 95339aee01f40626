"""SDPO: self-distillation from feedback (Hubotter et al. 2026, arxiv.org/abs/2601.20802).

A scalar says that an answer failed, feedback says where.  The policy answers, is told what is wrong
with its answer, and then judges that very answer anew: the same weights, with the feedback f in the
prompt, are the teacher.  Over the N tokens of the answers that were found fault with

    L = (1/N) sum_t KL(pi(. | x, y_<t) || q_t),   q_t = pi(. | x, y, f, y_<t)      held fixed

    dL/dz_t = p (log p/q - KL(p||q)) / N          (methods/distill.py, --mix 1)

Where teacher and policy agree nothing is learnt, so the credit falls on the tokens that the
feedback is about.  Nothing is sampled from the teacher, and there is no reward model and no group.
The feedback is the task's critic's: the first wrong step as it should be (`criticise`), in the
prompt in which the model was taught to revise (`revise`).

A teacher that moves with the policy goes astray with it.  So the paper lets it follow slowly, as a
moving average; here it is the policy as it began, the limit of that (`--teacher start`).
`--teacher policy` shows the other end: it learns as fast, and then loses all.

Where we differ from the paper besides: answers without a fault are left out, as there is no
feedback on them.  So is one that the context has no room for a second time, behind its fault: such
are counted as `too_long`.  A sibling that solved the problem is not shown.  The authors' code has
the Jensen-Shannon divergence by default (`alpha` 0.5; 1 is this KL, which its script for rich
feedback takes), over the policy's 100 likeliest tokens (20 in that script) and one tail for all
others.  It weighs a token by pi/old, at most 2, and after each rollout its teacher goes 0.05 of the
way to the policy (0.01 in that script).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure.meter import Meter, describe
from minipost.methods import distill
from minipost.rollout import distribution, fits, pack

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
SCORED = False
TRACE = ("reward", "faults", "loss", "entropy")
PROOF = "takes distill's step, towards itself with feedback in the prompt"


@dataclass(frozen=True)
class Config(Descent):
    """The policy learns what it would have said, had it known what is wrong with its answer."""

    steps: int = 20             # rollouts to learn from
    prompts: int = 128          # prompts per rollout (P)
    group_size: int = 1         # answers per prompt (G)
    teacher: Literal["start", "policy"] = "start"  # who is told: the starting policy, or itself
    temperature: float = 1.0    # sampling temperature (tau)
    lr: float = 2e-4            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "linear"  # of the learning rate after the warm-up
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm


def check(run, cfg):
    """MinipostError where the task has no critic."""
    if run.task.criticise is None or run.task.revise is None:
        raise MinipostError(f"the task {run.task.name} has no critic who says what is wrong with "
                            "an answer; use --task arithmetic")


def informed(run, problems, rollout):
    """The same answers behind prompts that tell their fault, of those rows that have one.

    -> rows, Sequences of as many, how many more do not fit the context with their fault
    """
    rows, prompts, answers, long = [], [], [], 0
    for row, (number, text) in enumerate(zip(rollout.prompt.tolist(), run.texts(rollout))):
        critique = run.task.criticise(problems[number], text)
        if not run.task.approves(critique):
            told = run.prompt_ids(run.task.revise(problems[number], text, critique))
            said = rollout.targets[row][rollout.mask[row]].tolist()
            if not fits(run.policy.module, len(told), len(said)):
                long += 1
                continue
            rows.append(row)
            prompts.append(told)
            answers.append(said)
    if not rows:
        return rows, None, long
    return rows, pack(prompts, answers, run.vocabulary.pad).to(rollout.tokens.device), long


def train(run, cfg):
    """prompts -> rollout -> feedback -> both distributions -> loss -> update.  Metrics per step."""
    policy = run.policy
    teacher = run.reference() if cfg.teacher == "start" else policy.module
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        problems = run.problems(cfg.prompts)
        rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature)
        reward = run.grade(problems, rollout, none=True)                    # learns nothing
        rows, told, long = informed(run, problems, rollout)
        run.keep(problems, rollout, reward, torch.zeros_like(reward))

        meter, norm = Meter("loss"), 0.0
        if rows:
            mine = rollout[rows]
            count = int(mine.mask.sum())
            for i in run.micro_batches(range(len(rows)), mine, told, whole=True):
                logp_all = distribution(policy.module, mine[i], cfg.temperature)    # (N, V)
                with torch.no_grad():
                    logq_all = distribution(teacher, told[i], cfg.temperature)
                value, stats = distill.loss(logp_all, logq_all, mix=1.0, count=count)
                value.backward()
                meter.add(**stats)
            norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), **describe(rollout, reward, cfg.group_size),
               "faults": (len(rows) + long) / len(rollout),
               **({"too_long": long / len(rollout)} if long else {}),
               "grad_norm": norm, "learning_rate": rate}
