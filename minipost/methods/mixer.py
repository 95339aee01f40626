"""MIXER: likelihood that gives way to REINFORCE (Ranzato et al. 2016, arxiv.org/abs/1511.06732).

At first a known answer y* is learnt by likelihood alone.  Then the policy writes the last k tokens
itself, G times from the same beginning, and these are learnt from the reward of the whole answer.
Every few steps k grows by Delta, until the policy writes all.  With s = |y*| - k known tokens

    A_i = G/(G-1) (R_i - mean(R))                                   among the G ends of a beginning
    L   = -(1/N) sum_i [ sum over t <= s of logp(y*_t) + A_i sum over t > s of logp(y_it) ]

    dL/dlogp_t = -1/N on known tokens, -A_i/N on the policy's own, 0 elsewhere

N counts both kinds.  So RL never starts from a policy that finds nothing: with a short end to
write, the reward is near.  The survey (sec. 2.2) writes the mixture as lambda(t) MLE +
(1 - lambda(t)) RL; here lambda is the share of known tokens, `known`, and a token has one loss or
the other.

Where we differ from the paper: the end is counted from the end of each answer, whose lengths differ
here, not from the longest.  The baseline is the mean of the siblings, not a regression on the
hidden state.  Stages are counted in steps, not epochs.  All log-probs, of known tokens too, are at
the sampling temperature.
"""

from dataclasses import dataclass, replace

import torch

from minipost.chat import Messages, Turns
from minipost.datasets.tools import GOES_ON, observations, refuse
from minipost.errors import Descent, MinipostError
from minipost.measure.meter import Meter, describe
from minipost.ops import leave_one_out, masked_sum, shapes
from minipost.rollout import concat, logprobs
from minipost.sampler import together

TASK = "countdown"
METRIC = "sampled"
MODEL = "checkpoints/student"
READS = ("completion",)
PROOF = [
    dict(variant="--start 1", config=dict(prompts=1, start=1), rows=1, loss="maximum_likelihood",
         factor=1.0, divisor="tokens"),
    dict(variant="--start 0", config=dict(prompts=1, group_size=2, start=0, delta=9),
         rows=2, loss="minus_reward", factor=1.0, divisor="tokens"),
]


@dataclass(frozen=True)
class Config(Descent):
    """Likelihood of known answers, whose ends give way to REINFORCE."""

    steps: int = 100            # gradient steps
    prompts: int = 64           # known answers per step (P)
    group_size: int = 8         # ends that the policy writes to each of them (G), at least 2
    start: int = 20             # steps by likelihood alone
    delta: int = 3              # tokens by which the end that the policy writes grows (Delta)
    every: int = 8              # steps between two growths
    temperature: float = 1.0    # sampling temperature (tau)
    lr: float = 3e-4            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"group_size": ">= 2", "start": ">= 0"}


@shapes(logp="B T", adv="B", given="B T", mask="B T")
def loss(logp, adv, given, mask, *, count):
    """logp, given, mask (B, T), adv (B,); given: which tokens are known; count = N

    ->  scalar loss, metrics that add up
    """
    value = -masked_sum(adv[:, None].where(~given, 1.0) * logp, mask) / count
    return value, {"loss": value.detach()}


def loss_grad(logp, adv, given, mask, *, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    return {"logp": -adv[:, None].where(~given, 1.0) * mask / count}


def end(cfg, step):
    """How many tokens of an answer the policy writes at this step (k)."""
    return 0 if step < cfg.start else cfg.delta * (1 + (step - cfg.start) // cfg.every)


def check(run, cfg):
    """MinipostError where a problem has no answer to learn, or somebody else has a say in it."""
    refuse(run, "mixer", GOES_ON)
    rng = run.rng("demonstrations")
    for problem in run.task.training() if run.task.training else run.problems(16):
        answer = run.task.demonstrate(problem, rng)
        if isinstance(answer, Turns | Messages) and observations(run.encode([problem], [answer])):
            raise MinipostError(f"{problem.place and problem.place + ': '}mixer goes on from the "
                                "middle of known answers, and in this one somebody else has turns "
                                f"({answer[:40]!r}); choose sft, or leave such rows out")


def beginnings(run, shown, k):
    """The ids of each known answer without its last k, counted within --max-new-tokens."""
    known = [ids[mask].tolist()[: run.max_new_tokens]
             for ids, mask in zip(shown.targets, shown.mask)]
    return [ids[: max(0, len(ids) - k)] for ids in known]


def continued(run, cfg, problems, begun):
    """What the policy writes behind these ids, until EOS or --max-new-tokens with them.  -> Rollout
    """
    left = [run.max_new_tokens - len(ids) for ids in begun]
    asked = [run.prompt_ids(problem.prompt) + ids for problem, ids in zip(problems, begun)]
    parts, order = [], []
    for most, group in together(asked, left, run.policy.module.context).items():
        parts.append(run.sample([problems[i] for i in group], cfg.group_size,
                                temperature=cfg.temperature, begun=[begun[i] for i in group],
                                max_new_tokens=most))
        order += group
    found = concat(parts, run.vocabulary.pad)
    rows = torch.tensor(order).argsort()[:, None] * cfg.group_size + torch.arange(cfg.group_size)
    found = found[rows.flatten()]
    prompt = torch.arange(len(problems), device=found.prompt.device)
    prompt = prompt.repeat_interleave(cfg.group_size)
    mask = found.mask & (found.mask.cumsum(1) <= torch.tensor(left).to(prompt)[prompt, None])
    return replace(found, mask=mask, logp=found.logp.where(mask, 0.0), prompt=prompt,
                   finished=found.finished & (mask.sum(1) == found.lengths))[range(len(prompt))]


def written(run, cfg, problems, shown, k):
    """The policy's own ends of the answers shown: whole answers, which tokens are known, rewards.

    -> Rollout of P*G rows with the known tokens in its mask, (P*G, T) bool, (P*G,), metrics
    """
    begun = beginnings(run, shown, k)
    own = continued(run, cfg, problems, begun)
    column = torch.arange(own.mask.shape[1], device=own.mask.device)
    first = own.mask.int().argmax(1)                                        # (B,)
    size = torch.tensor([len(ids) for ids in begun], device=first.device)[own.prompt]
    given = (column < first[:, None]) & (column >= (first - size)[:, None])
    whole = replace(own, mask=own.mask | given)
    reward = run.score(problems, whole, none=True)
    return whole, given, reward, describe(own, reward, cfg.group_size)


def train(run, cfg):
    """known answers -> beginnings -> own ends -> rewards -> loss -> update.  Metrics per step."""
    policy = run.policy
    while True:
        rate, k = cfg.rate(cfg.lr, run.step), end(cfg, run.step)
        problems, rng = run.problems(cfg.prompts), run.rng("demonstrations")
        batch = run.encode(problems, [run.task.demonstrate(p, rng) for p in problems])
        given, adv, seen = batch.mask, torch.zeros(len(batch), device=batch.mask.device), {}
        if k:
            batch, given, reward, seen = written(run, cfg, problems, batch, k)
            adv = leave_one_out(reward, cfg.group_size)                     # (B,)
            run.keep(problems, batch, reward, adv)
        else:
            run.tokens += int(batch.mask.sum())

        meter, count = Meter("loss"), int(batch.mask.sum())
        live = [row for row in range(len(batch)) if adv[row] != 0 or given[row].any()]
        for i in run.micro_batches(live, batch):
            part, gain, told = batch.take(i, adv, given)
            value, stats = loss(logprobs(policy.module, part, cfg.temperature), gain, told,
                                part.mask, count=count)
            value.backward()
            meter.add(**stats)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), **seen, "end": k, "known": float(given.sum()) / count,
               "grad_norm": norm, "learning_rate": rate}
