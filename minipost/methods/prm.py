"""PRM: a process reward model, which says of each step how likely it is right (survey sec. 3.1.4).

A score s_t is read at every token in which a step ends and at the last real token.  sigmoid(s_t) is
the chance that the step is right, or at the last token that the answer is right (Uesato et al.
2022, arxiv.org/abs/2211.14275; Lightman et al. 2023, arxiv.org/abs/2305.20050, sec. 2.6).  Over the
N such tokens of a gradient step

    L = (1/N) sum_t [ log(1 + exp s_t) - y_t s_t ]

    dL/ds_t = (sigmoid(s_t) - y_t) / N   at those tokens, else 0

y_t comes from the task: check_steps for a step, the reward for the answer.  `--last-only True`
leaves the steps out, which makes an outcome reward model (methods/orm.py).  `aggregate` turns the
chances of the steps into a solution's chance.  The saved model is a reward model like any other.
Others, such as PPO or transformers, read it at the last token only, as an outcome reward model.

Few steps of a good policy are wrong.  From few wrong steps a scorer learns at first only to call
every step right.  So the first half of the run samples answers at a high temperature, where
about half of the steps are wrong.  In the second half the temperature falls linearly to the one at
which the scorer will be used, so its chances become those of the policy's own answers.

Where we differ from Lightman et al.: their labels end at the first wrong step.  check_steps holds a
step against the one before it, so a right step after a wrong one is a right step.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.measure.results import Result
from minipost.measure.stats import share
from minipost.ops import at_last, masked_sum, shapes
from minipost.rollout import step_scores
from minipost.run import REWARD_MODEL
from minipost.sampler import ends

TASK = "arithmetic"
METRIC = "pair accuracy"
LARGE_LR = 1e-5
SCORED = False
EXPORTS = {REWARD_MODEL: "model"}
PROOF = [dict(config=dict(prompts=1, group_size=1), rows=1, loss="step_entropy", factor=1.0,
              why="exact but for the division by the number of steps", divisor="marks",
              learner=REWARD_MODEL)]


@dataclass(frozen=True)
class Config(Descent):
    """A verifier of steps, from samples whose steps a task can check."""

    steps: int = 110            # gradient steps
    prompts: int = 32           # prompts per step
    group_size: int = 4         # answers to each prompt
    hot: float = 1.6            # sampling temperature of the answers in the first half
    temperature: float = 1.0    # sampling temperature that the second half goes down to (tau)
    last_only: bool = False     # label the last token alone: an outcome reward model
    aggregate: Literal["min", "last", "product"] = "min"  # a solution's chance from its steps'
    lr: float = 4e-4            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"hot": "> 0"}


@shapes(score="B T", right="B T", mask="B T")
def loss(score, right, mask, *, count):
    """All (b, T), right within 0..1; count = N  ->  scalar loss, metrics that add up"""
    value = -masked_sum(torch.nn.functional.logsigmoid(-score) + right * score, mask) / count
    return value, {"loss": value.detach(), "accuracy": masked_sum(hits(score, right), mask) / count}


def loss_grad(score, right, mask, *, count):
    """The derivative of `loss`: {"score": (b, T)}."""
    return {"score": (torch.sigmoid(score) - right).where(mask, 0.0) / count}


def hits(score, right):
    """1 where a score is on the right side of zero, 0 on the wrong one, 0.5 at zero itself."""
    return ((score > 0) == (right > 0.5)).to(score).where(score != 0, 0.5)


def final(mask):
    """True at each row's last marked token.  (B, T) -> (B, T)"""
    return at_last(torch.ones(len(mask), device=mask.device), mask) > 0


def aggregate(chances, mask, how):
    """A solution's chance from those of its steps.  (B, T), (B, T) -> (B,)"""
    steps = chances.where(final(mask) if how == "last" else mask, 1.0)
    return steps.amin(1) if how == "min" else steps.prod(1)


# ---- where the steps end, and which are right

def step_columns(run, rollout):
    """The columns in which each row's steps end: B lists.  Text after the last step has none."""
    starts, task = rollout.mask.int().argmax(1).tolist(), run.task
    found = [[start + k for k in ends(run.vocabulary, ids, task.step_end)]
             for start, ids in zip(starts, rollout.responses())]
    if task.steps is None:
        return found
    return [columns[: len(task.steps(text))] for columns, text in zip(found, run.texts(rollout))]


def check_task(task):
    """MinipostError where the task cannot check steps."""
    if task.check_steps is None:
        raise MinipostError(f"the task {task.name} cannot check steps (it has no check_steps); a "
                            "process reward model needs one that can, such as arithmetic, or "
                            "labels from roll-outs (--algo math-shepherd)")


def check(run, cfg):
    """MinipostError where nobody can label the steps."""
    if not cfg.last_only:
        check_task(run.task)


def marks(run, rollout, last_only):
    """True where a score is read: at each row's last token and where its steps end.  (B, T)"""
    mask = final(rollout.mask)
    if not last_only:
        for row, columns in enumerate(step_columns(run, rollout)):
            mask[row, columns] = True
    return mask


def labels(run, problems, rollout, last_only):
    """Whether what ends at each marked token is right.  (B, T)"""
    outcome = run.grade(problems, rollout)                                  # (B,)
    odd = outcome[(outcome < 0) | (outcome > 1)]
    if len(odd):
        raise MinipostError(f"the reward of an answer is {float(odd[0]):g}; a process reward "
                            "model needs rewards within 0..1, wrong to right")
    return placed(run, problems, rollout, outcome, last_only)


def placed(run, problems, rollout, outcome, last_only=False):
    """Whether each step is right, where it ends, and the outcome at the last token.  (B,) -> (B, T)

    A token that ends two steps is right if both are.  At the last token only the answer counts.
    """
    right = torch.ones_like(rollout.logp)
    if not last_only:
        check_task(run.task)
        texts = run.texts(rollout)
        for row, columns in enumerate(step_columns(run, rollout)):
            problem = problems[int(rollout.prompt[row])]
            for column, good in zip(columns, run.task.check_steps(problem, texts[row])):
                right[row, column] *= good
    return outcome[:, None].where(final(rollout.mask), right)


# ---- the model

def measure(run, splits, cfg):
    """scorers.report on the log-odds of whole solutions, and how well steps are told apart."""
    return report(run, splits, cfg.aggregate, lambda rollout: marks(run, rollout, cfg.last_only),
                  None if cfg.last_only else lambda problems, rollout: labels(
                      run, problems, rollout, False))


def report(run, splits, how, marked, truth):
    """What `measure` says, with the chances of a solution's steps put together in the way `how`.

    marked(rollout) -> (B, T), true where a score counts.  truth(problems, rollout) -> (B, T), 1
    where a step is right, or None where nobody can say.
    """
    model = scorers.scorer(run).module

    def scores_of(rollout):
        return run.for_all(lambda batch: [step_scores(model, batch)], rollout)[0]

    def odds(rollout):
        return aggregate(scores_of(rollout).sigmoid(), marked(rollout), how).logit(1e-6)

    found = scorers.report(run, splits, odds)
    if truth is not None:
        for split, problems in splits.items():
            with run.aside():
                rollout = run.sample(problems, 1, temperature=1.0, purpose="evaluation")
            steps = marked(rollout) & ~final(rollout.mask)
            found[split] |= on_steps(run, rollout, steps, truth(problems, rollout),
                                     scores_of(rollout))
    return found


def on_steps(run, rollout, steps, right, score):
    """Which share of an answer's steps, and of its wrong steps, has a score on the right side."""
    hit, texts, found = hits(score, right), run.texts(rollout), {}
    for name, where in (("step accuracy", steps), ("wrong steps found", steps & (right < 0.5))):
        rows = where.any(1).nonzero()[:, 0].tolist()
        values = [float(hit[row][where[row]].mean()) for row in rows]
        if rows:
            found[name] = Result.of(values, [texts[row] for row in rows], rows,
                                    share(values))
    return found


def cooled(cfg, step):
    """The sampling temperature of a step."""
    past = max(0.0, 2 * step / cfg.steps - 1)                               # 0 .. 1
    return cfg.hot + past * (cfg.temperature - cfg.hot)


def train(run, cfg):
    """answers -> labels of their steps -> scores -> loss -> update.  Yields metrics per step."""
    model = scorers.scorer(run)
    while True:
        problems = run.problems(cfg.prompts)
        rollout = run.sample(problems, cfg.group_size, temperature=cooled(cfg, run.step))
        mask = marks(run, rollout, cfg.last_only)                           # (B, T)
        right = labels(run, problems, rollout, cfg.last_only)               # (B, T)
        count, meter = int(mask.sum()), Meter("loss", "accuracy")
        for i in run.micro_batches(range(len(rollout)), rollout):
            batch, *labelled = rollout.take(i, right, mask)
            value, stats = loss(step_scores(model.module, batch), *labelled, count=count)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step)
        norm = model.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), "right": float(right[mask].mean()),
               "temperature": cooled(cfg, run.step), "grad_norm": norm,
               "learning_rate": rate}
