"""R1: reasoning in four stages (Guo et al. 2025, arxiv.org/abs/2501.12948, sec. 2.3).

    cold start           SFT on demonstrations of long thoughts                  (survey sec. 3.3.1)
    reasoning            GRPO on rules: right, in form, in one language          (sec. 3.3.3)
    rejection sampling   the policy answers; answers that keep every rule are learnt, each text
                         once, with demonstrations of other tasks, by the model that the run began
                         with                                                    (sec. 3.3.2)
    alignment            a reward model from labelled pairs of `wording`, then GRPO on both: rules
                         for problems that can be checked, the reward model for praise
                                                                                 (sec. 3.3.4)

Each stage has the loss and the gradient of its method: methods/sft.py, grpo.py, reward.py.  The
rules are those of methods/r1_zero.py.  After each stage that changes the policy all tasks are
measured, so that forgetting shows: sums in steps and wording, besides the task itself.
"""

import copy
from dataclasses import dataclass, replace

from minipost.datasets import preferences
from minipost.datasets.tools import refuse
from minipost.errors import MinipostError
from minipost.measure import scorers
from minipost.measure.results import results
from minipost.methods import grpo, r1_zero, reward, sft
from minipost.methods.r1_zero import Rules, weights
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem
from minipost.tasks.wording import Wording

TASK = "search"
MODEL = r1_zero.MODEL
DEMO = r1_zero.DEMO
METRIC = "sampled"
SCORED = False
READS = ("completion",)
TRACE = ("loss", "reward", "accuracy", "format", "language", "completions/mean_length",
         "backtracks", "gold")
PROOF = "takes the steps of sft, grpo and reward; only their order is its own"
OTHERS = {"arithmetic": Arithmetic(), "wording": Wording()}


@dataclass(frozen=True)
class Config(r1_zero.Config):
    """Cold start, reasoning, rejection sampling, alignment; of GRPO's settings both RL stages."""

    steps: int = 28             # rollouts of the reasoning stage
    prompts: int = 16           # of a rollout, in both RL stages
    language: float = 0.1       # weight of the share of its verdicts that are in English
    cold_start: int = 1600      # demonstrations of the cold start
    cold_steps: int = 20        # gradient steps of the cold start
    rejection_prompts: int = 256  # problems that the policy answers for rejection sampling
    rejection_steps: int = 50   # gradient steps on what is kept
    reward_steps: int = 60      # gradient steps of the reward model
    align_steps: int = 24       # rollouts of the alignment stage
    align_beta: float = 0.3     # weight of the KL in it to the policy with which it begins
    sft_lr: float = 5e-4        # peak learning rate of both stages of fine-tuning

    LIMITS = {**r1_zero.Config.LIMITS, "prompts": ">= 2"}


@dataclass(frozen=True)
class Owned(Problem):
    """A problem, and the name of the task that it is of."""

    owner: str = ""


class Both:
    """A task to draw problems from: those of two tasks in turn.  Each half has its own score.

    Prompts are read as those of the first.
    """

    hidden, training, reward, acts = False, None, None, False

    def __init__(self, first, second):
        self.tasks, self.name, self.data = (first, second), first.name, getattr(first, "data", "")

    def sample(self, n, rng):
        """n problems, Owned, half of each task."""
        found = [task.sample(-(-n // 2), rng) for task in self.tasks]
        return [Owned(p.prompt, p.columns, p.place, task.name)
                for pair in zip(*found) for p, task in zip(pair, self.tasks)][:n]


def stages(run, cfg):
    """{stage: the step at which it ends}, in their order."""
    found, end = {}, 0
    for name, steps in (("cold start", cfg.cold_steps), ("reasoning", cfg.steps),
                        ("rejection sampling", cfg.rejection_steps),
                        ("reward model", cfg.reward_steps), ("alignment", cfg.align_steps)):
        found[name] = end = end + steps
    return found


def milestones(run, cfg):
    """{step: stage} after which all tasks are measured; the end of the run is measured anyway."""
    ends = stages(run, cfg)
    return {ends[name]: name for name in ("cold start", "reasoning", "rejection sampling")}


def total(run, cfg):
    """Steps of all stages."""
    return stages(run, cfg)["alignment"]


def fixed(cfg):
    """Why a run cannot be made longer."""
    return "other stages come after its reasoning"


def check(run, cfg):
    """MinipostError where a rule is missing, or a demonstration."""
    refuse(run, "r1")
    r1_zero.check(run, cfg)
    sft.check(run, cfg)


def measure(run, splits, cfg):
    """The answers to the task's problems and, as splits of their names, to those of OTHERS."""
    found, n = results(run, splits), max(map(len, splits.values()))
    for name, task in OTHERS.items():
        with run.on(task):
            found |= results(run, {name: task.heldout(n)})
    return found


def train(run, cfg):
    """The stages in turn; run.step says which one it is.  Yields metrics per step."""
    base = run.frozen("base", lambda: copy.deepcopy(run.policy.module))
    rules, ends = Rules(run, weights(cfg)), stages(run, cfg)
    first = 0
    for name, work in (("cold start", cold_start), ("reasoning", reasoning),
                       ("rejection sampling", rejection), ("reward model", judging),
                       ("alignment", alignment)):
        if run.step < ends[name]:
            stage = work(run, cfg, rules, base, first)
            while run.step < ends[name]:
                yield next(stage)
        first = ends[name]


def cold_start(run, cfg, rules, base, first):
    """SFT on a fixed set of demonstrations."""
    yield from sft.cold_start(run, sft.Config(cfg.cold_steps, lr=cfg.sft_lr), cfg.cold_start, first)


def reasoning(run, cfg, rules, base, first):
    """GRPO on the rules."""
    if run.step == first:
        run.policy.reset_optimizer()
    for metrics in grpo.train(run, cfg, rules, first):
        yield {**metrics, **rules.seen}


def rejection(run, cfg, rules, base, first):
    """The base learns the policy's answers that keep every rule, and other tasks' answers."""
    teacher = run.frozen("teacher", lambda: copy.deepcopy(run.policy.module))
    with run.once(first):
        problems = run.problems(cfg.rejection_prompts)
        rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature, module=teacher,
                             purpose="rejection")
        rules(problems, rollout)
        kept = {(problems[i].prompt, text): (problems[i], text) for i, text, good in zip(
            rollout.prompt.tolist(), run.texts(rollout), rules.kept().tolist()) if good}
        if not kept:
            raise MinipostError(f"rejection sampling: none of {len(rollout)} answers keeps every "
                                "rule; train the reasoning stage for more --steps")
        rows, rng = list(kept.values()), run.rng("others")
        for task in OTHERS.values():
            rows += [(p, task.demonstrate(p, rng))
                     for p in task.sample(len(kept) // len(OTHERS), rng)]
    if run.step == first:
        run.policy.become(base)
    for metrics in sft.train(run, sft.Config(cfg.rejection_steps, lr=cfg.sft_lr), rows, first):
        yield {**metrics, "kept": len(kept), **rules.seen}


def judging(run, cfg, rules, base, first):
    """A reward model of praise, from pairs of the policy's answers that people would label."""
    judge = reward.Config(steps=cfg.reward_steps, prompts=64, group_size=2)
    stage = reward.train(run, judge, preferences.by_reward, first)
    while True:
        with run.on(OTHERS["wording"]):
            metrics = next(stage)
        yield metrics


def alignment(run, cfg, rules, base, first):
    """GRPO on both: half of the prompts are scored by rules, half by the reward model."""
    wording, reasoner = OTHERS["wording"], run.task
    with run.on(wording):
        run.score_by(scorers.scorer(run).module)
    seen = {}

    def score(problems, rollout):
        mine = [problems[i].owner == wording.name for i in rollout.prompt.tolist()]
        praise, thoughts = ([k for k, own in enumerate(mine) if own is side]
                            for side in (True, False))
        found = rollout.logp.new_zeros(len(rollout))
        found[thoughts] = rules(problems, rollout[thoughts])
        found[praise] = run.finite_scores(rollout[praise]).to(found)
        rows = [problems[i] for i in rollout.prompt[praise].tolist()]
        gold = run.grade_texts(rows, run.texts(rollout[praise]), wording.reward)
        seen.update(rules.seen, gold=float(gold.mean()), score=float(found[praise].mean()))
        return found

    if run.step == first:
        run.policy.reset_optimizer()
        run.forget("frozen/reference")
    stage = grpo.train(run, replace(cfg, steps=cfg.align_steps, beta=cfg.align_beta), score,
                       first)
    while True:
        with run.on(Both(reasoner, wording)):
            metrics = next(stage)
        yield {**metrics, **seen}
