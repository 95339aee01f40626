"""Math-Shepherd: a process reward model whose steps nobody labels (survey sec. 3.1.4).

A step is good if a right answer can follow.  So the policy completes the answer from the end of
each step, N times (Wang et al. 2023, arxiv.org/abs/2312.08935, sec. 3.3).  With r_j the task's
reward of the answer that the j-th completion makes

    hard    y = max_j r_j        one completion is right                                  (eq. 3)
    soft    y = mean_j r_j       the share that is right, an estimate of the state's value (eq. 4)

The rest is methods/prm.py: at the end of each step, and at the last token, whose label is the
answer's own reward, the cross-entropy of sigmoid(s_t) with

    dL/ds_t = (sigmoid(s_t) - y_t) / (number of labels)

It is linear in y.  So soft labels make, in the mean, the step that the exact value of each state
would make, for every N.  Hard labels do not: if a completion is right with chance q, their mean is
1 - (1 - q)^N.  It calls a right step wrong where N is small, and a wrong one right where N is
large and a second mistake may undo the first.

As in the paper the answers are labelled once, before the first step, and gone through in epochs.
Half of them are sampled hot, since few steps of a good policy are wrong (prm.py says more).

Where we differ: the completer is the policy itself, the paper's is a model of its own.  Where the
task can check steps, `label_error` is how many labels are on the wrong side, and `--estimation
exact` learns from the truth instead: a step is right if it and all before it are.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from minipost.datasets.tools import GOES_ON, refuse
from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.methods import prm
from minipost.rollout import concat, step_scores
from minipost.run import REWARD_MODEL
from minipost.sampler import together

TASK = "arithmetic"
KNOBS = {"terms": 4}      # short answers, since each is completed from every step
METRIC = "pair accuracy"
LARGE_LR = 1e-5
SCORED = False
EXPORTS = {REWARD_MODEL: "model"}
TRACE = ("loss", "accuracy", "label_error")
PROOF = [dict(config=dict(prompts=1, group_size=1, batch_size=1, rollouts=2, hot=1.0,
                          estimation="soft"), rows=1,
              loss="value_entropy", factor=1.0,
              why="exact but for the division by the number of steps", divisor="marks",
              learner=REWARD_MODEL)]


@dataclass(frozen=True)
class Config(Descent):
    """A verifier of steps, from what becomes of answers that are completed from each of them."""

    steps: int = 160            # gradient steps
    prompts: int = 1024         # prompts whose answers are labelled
    group_size: int = 2         # answers to each prompt
    batch_size: int = 128       # answers per gradient step
    rollouts: int = 4           # completions from the end of each step (N)
    estimation: Literal["hard", "soft", "exact"] = "hard"  # one is right, their share, or the truth
    hot: float = 1.6            # sampling temperature of half of the answers
    temperature: float = 1.0    # of the others, and of the completions (tau)
    aggregate: Literal["min", "last", "product"] = "min"  # a solution's chance from its steps'
    lr: float = 1e-3            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"hot": "> 0"}


def check(run, cfg):
    """MinipostError where a tool has a say in answers, or nobody knows the exact labels."""
    refuse(run, "math-shepherd", GOES_ON)
    if cfg.estimation == "exact" and run.task.check_steps is None:
        raise MinipostError(f"the task {run.task.name} cannot check steps (it has no check_steps), "
                            "so --estimation exact has no labels; take hard or soft")


def rows(run, cfg):
    """The answers that are labelled, and how many a step takes."""
    return cfg.prompts * cfg.group_size, cfg.batch_size


def step_ends(run, rollout):
    """True at every token in which a step ends, but at an answer's last.  (B, T)"""
    mask = torch.zeros_like(rollout.mask)
    for row, columns in enumerate(prm.step_columns(run, rollout)):
        mask[row, columns] = True
    return mask & ~prm.final(rollout.mask)


def roll_out(run, problems, rollout, places, cfg):
    """The rewards of the answers that are completed from each place, (row, column).  (M, N)"""
    n, starts, tokens = cfg.rollouts, rollout.mask.int().argmax(1).tolist(), rollout.tokens.tolist()
    begun = [tokens[row][: column + 2] for row, column in places]
    said = [ids[starts[row] + 1 :] for ids, (row, _) in zip(begun, places)]
    left, texts = [run.max_new_tokens - len(ids) for ids in said], [[] for _ in places]
    for most, group in together(begun, left, run.policy.module.context).items():
        found = run.complete([begun[k] for k in group], n, temperature=cfg.temperature,
                             purpose="roll-outs", max_new_tokens=most)
        for place, ids in enumerate(found.responses()):
            k = group[place // n]
            texts[k].append(run.vocabulary.decode([*said[k], *ids[: left[k]]]))
    asked = [problems[int(rollout.prompt[row])] for row, _ in places for _ in range(n)]
    return run.grade_texts(asked, [text for each in texts for text in each]).view(-1, n)


def labels(run, problems, rollout, steps, cfg, complete=roll_out):
    """What each step and, at its last token, each answer is worth.  (B, T)"""
    if cfg.estimation == "exact":
        return truth(run, problems, rollout)
    right, places = prm.labels(run, problems, rollout, True), steps.nonzero().tolist()
    if places:
        reward = complete(run, problems, rollout, places, cfg)              # (M, N)
        each = reward.amax(1) if cfg.estimation == "hard" else reward.mean(1)
        right[steps] = each.to(right)
    return right


def truth(run, problems, rollout):
    """1 where a step and all before it are right, else 0; at the last token the reward.  (B, T)"""
    right, last = prm.labels(run, problems, rollout, False), prm.final(rollout.mask)
    return right.where(~last, 1.0).cumprod(1).where(~last, right)


def measure(run, splits, cfg):
    """As of prm.py, with steps held to `truth` where the task can check them."""
    return prm.report(
        run, splits, cfg.aggregate,
        lambda rollout: step_ends(run, rollout) | prm.final(rollout.mask),
        None if run.task.check_steps is None else lambda problems, rollout: truth(
            run, problems, rollout))


def annotated(run, cfg, complete):
    """The answers, where a score counts, the labels, and what is known of these as metrics."""
    problems, parts = run.problems(cfg.prompts), []
    middle = cfg.prompts // 2
    for some, heat in ((problems[:middle], cfg.hot), (problems[middle:], cfg.temperature)):
        if some:
            parts.append(run.sample(some, cfg.group_size, temperature=heat,
                                    purpose=f"answers at {heat}"))
    rollout = concat(parts, run.vocabulary.pad)
    steps = step_ends(run, rollout)                                         # (B, T)
    right = labels(run, problems, rollout, steps, cfg, complete)            # (B, T)
    mask = steps | prm.final(rollout.mask)
    known = {"right": float(right[mask].mean())}
    if run.task.check_steps is not None and steps.any():
        hit = prm.hits(right - 0.5, truth(run, problems, rollout))[steps]
        known["label_error"] = 1 - float(hit.double().mean())
    return rollout, mask, right, known


def train(run, cfg, complete=roll_out):
    """answers -> completions from each step -> labels; then scores -> loss -> update."""
    model = scorers.scorer(run)
    with run.once(0):
        rollout, mask, right, known = annotated(run, cfg, complete)
    while True:
        rows = run.deal(range(len(rollout)), cfg.batch_size)
        count, meter = int(mask[rows].sum()), Meter("loss", "accuracy")
        for i in run.micro_batches(rows, rollout):
            batch, *labelled = rollout.take(i, right, mask)
            value, stats = prm.loss(step_scores(model.module, batch), *labelled, count=count)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step)
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), **known, "grad_norm": norm, "learning_rate": rate}
