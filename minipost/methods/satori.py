"""Satori: chain of action-thought, learnt from restarts (Shen et al. 2025,
arxiv.org/abs/2502.02508; survey sec. 5.12).

A thought is a chain of actions: go on, reflect on what stands there, explore another way.  A policy
that knows the form of such a chain seldom reflects to any purpose, so RL does not begin at the
problem alone.

    format tuning   SFT on a few demonstrations of the form                             (sec. 4.1)
    restarts        the tuned policy answers; of a problem with right and wrong answers one of each
                    is taken without its last t steps, t = 0 .. T at random: the states z+ and z-
                    from which it is to reflect                                   (algorithm 1)
    RL              begins at problems x, at z+ and at z-, each as often, and is paid   (sec. 4.2)

    r = [right] from x,     [right] + b [right] from z-,     [right] - b [not right] from z+

Losses and gradients are those of methods/sft.py and grpo.py.  What stands in front of a restart is
prompt: no token of it is in L.  The advantage is A = r - mean(r) over the answers from one state.
In the mean this is the step of PPO with an exact critic and gamma = lambda = 1.  PPO takes away
what the state at each token is worth; here it is the state where the answer began.  From a restart
the two values of r are 1 + b apart, from x they are 1 apart: b weighs what is learnt at restarts.
Over the deviation of its group, as GRPO has it, it would cancel.

The actions here are those of the task's own text (`reflections` in minipost/tasks/base.py).  In
search a verdict is a reflection, and the attempt behind a "no" explores.  A restart ends where a
verdict may stand, so the policy first chooses whether to reflect.

Where we differ: the paper has a token for each action, and ends a restart with <|reflect|>, so its
policy has to reflect.  Its r is one less everywhere, which A does not see.  It adds the score of a
reward model, and after RL another round from the base.  Its x are those problems alone that had
right and wrong answers.  A restart never holds an answer that was stated, since that ends the text
here.  Only beginnings are used that are the ids that were sampled when they are encoded anew.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from minipost import ops
from minipost.datasets.tools import GOES_ON, refuse
from minipost.errors import MinipostError
from minipost.methods import grpo, sft
from minipost.rollout import fits
from minipost.tasks.base import Problem

TASK = "search"
MODEL = "checkpoints/seeker"
DEMO = {"max_new_tokens": 224}
METRIC = "sampled"
SCORED = False
READS = ("completion",)
TRACE = ("loss", "reward", "accuracy", "mended", "kept", "completions/mean_length", "entropy")
PROOF = "takes the steps of sft and grpo; only the states that it begins at and the bonus are new"


@dataclass(frozen=True)
class Config(grpo.Config):
    """Format tuning, then GRPO without a KL from problems and from the middle of answers."""

    steps: int = 24             # rollouts to learn from
    beta: float = 0.0           # weight of the KL to the policy after format tuning (beta)
    lr: float = 1e-4            # learning rate (eta)
    share: float = 0.667        # share of the prompts that are restarts, half of them z-; 0: none
    bonus: float = 0.5          # for what is mended from z-, against what is spoiled from z+ (b)
    backtrack: int = 2          # steps that are taken off the end of an answer, at most (T)
    restarts: int = 128         # problems whose answers are looked at for restarts
    tries: int = 8              # answers to each of them
    cold_start: int = 200       # demonstrations of format tuning
    cold_steps: int = 8         # gradient steps of format tuning
    sft_lr: float = 5e-4        # learning rate of format tuning; it climbs over 20 steps

    LIMITS = {"share": ">= 0, <= 1", "backtrack": ">= 0", "tries": ">= 2, <= 10000"}


@dataclass(frozen=True)
class Restart(Problem):
    """A problem whose prompt ends with the beginning of an answer."""

    of: Any = None              # the Problem itself
    begun: str = ""             # the beginning
    right: bool = False         # whether the answer that began so was right


def total(run, cfg):
    """Steps of both stages."""
    return cfg.cold_steps + cfg.steps


def milestones(run, cfg):
    """{step: stage} after which the policy is measured; the end of the run is measured anyway."""
    return {cfg.cold_steps: "format tuning"}


def check(run, cfg):
    """MinipostError where answers have no place to reflect, or their reward may not be learnt."""
    refuse(run, "satori", GOES_ON)
    if run.task.reflections is None:
        raise MinipostError(f"nothing says where an answer to the task {run.task.name} may be "
                            "reflected on; search does, and minipost/tasks/base.py says how "
                            "(reflections)")
    if run.hidden:
        raise MinipostError(f"the reward of {run.task.name} is hidden from learners; give a "
                            "function with --reward")
    sft.check(run, cfg)


def beginnings(run, problem, ids):
    """What an answer of these ids says up to each reflection: [text].

    Only what leaves room for an answer, and is encoded as it was sampled.
    """
    asked, text, found = run.prompt_ids(problem.prompt), run.vocabulary.decode(ids), []
    for place in run.task.reflections(text):
        whole = run.prompt_ids(problem.prompt + text[:place])
        if whole == (asked + ids)[: len(whole)] and fits(run.policy.module, len(whole),
                                                         run.max_new_tokens):
            found.append(text[:place])
    return found


def restart(run, problem, answers, right, most, rng):
    """A Restart of one of these answers, lists of ids, without its last 0 .. `most` steps.

    None if no answer has a step.
    """
    begun = list(filter(None, (beginnings(run, problem, ids) for ids in answers)))
    if not begun:
        return None
    found = rng.choice(begun)
    text = found[-1 - rng.randint(0, min(most, len(found) - 1))]
    return Restart(problem.prompt + text, problem.columns, problem.place, problem, text, right)


def pairs(run, cfg, module):
    """The restarts of this step, (z-, z+) of a problem each, from answers of `module`."""
    problems = run.problems(cfg.restarts, again=1)
    rollout = run.sample(problems, cfg.tries, temperature=cfg.temperature, module=module,
                         purpose="restarts")
    right = (run.grade(problems, rollout) >= 1).tolist()
    answers: list[dict[bool, list]] = [{False: [], True: []} for _ in problems]
    for k, mark, ids in zip(rollout.prompt.tolist(), right, rollout.responses()):
        answers[k][mark].append(ids)
    rng = run.rng("restarts")
    each = [[restart(run, problem, said[mark], mark, cfg.backtrack, rng)
             for mark in (False, True)] for problem, said in zip(problems, answers)]
    found = [both for both in each if None not in both]
    if not found:
        raise MinipostError(f"restarts: no problem of {len(problems)} has a right and a wrong "
                            "answer to restart from; raise --restarts, --tries or --cold-steps, or "
                            "give --share 0")
    return found


def collected(run, cfg, first):
    """The pairs of the policy as it is at step `first`, the first of RL."""
    tuned = run.frozen("tuned", lambda: copy.deepcopy(run.policy.module))
    with run.once(first):
        return pairs(run, cfg, tuned)


class Starts:
    """A task to draw from: `share` of the problems are restarts, of z- and z+ in turn."""

    name, training, acts = "starts", None, False

    def __init__(self, run, pairs, share):
        self.task, self.reward, self.hidden = run.task, run.reward, run.hidden
        self.pairs, self.share = pairs, share

    def sample(self, n, rng):
        """n problems, restarts at the end."""
        again = round(self.share * n)
        return [*self.task.sample(n - again, rng),
                *(rng.choice(self.pairs)[k % 2] for k in range(again))]


def bonus(right, began, size):
    """size for a right answer from z-, -size for a wrong one from z+, else 0.  -> (B,)

    right (B,) bool; began (B,): -1 from z-, 1 from z+, 0 from a problem
    """
    return size * (((began < 0) & right).double() - ((began > 0) & ~right).double())


class Score:
    """The reward of whole answers, and the bonus.  Of the latest call `seen` has shares of right
    answers: to problems, from z- (mended) and from z+ (kept)."""

    def __init__(self, run, size):
        self.run, self.size, self.seen = run, size, {}

    def __call__(self, problems, rollout):
        """(B,)"""
        asked, texts, sides = [], [], []
        for i, text in zip(rollout.prompt.tolist(), self.run.texts(rollout), strict=True):
            problem, side = problems[i], 0
            if isinstance(problem, Restart):
                text, side = problem.begun + text, 1 if problem.right else -1
                problem = problem.of
            asked.append(problem)
            texts.append(text)
            sides.append(side)
        reward, began = self.run.grade_texts(asked, texts), torch.tensor(sides)
        right = torch.ge(reward, 1)
        self.seen = {name: float(right[began == which].double().mean())
                     for name, which in (("accuracy", 0), ("mended", -1), ("kept", 1))
                     if (began == which).any()}
        return (reward + bonus(right, began, self.size)).to(rollout.logp)


def advantages(reward, group_size):
    """r less its mean over the answers from one state.  (B,)"""
    return ops.group_centred(reward, group_size).flatten()


def train(run, cfg):
    """Demonstrations -> restarts -> rollouts from problems and restarts.  Yields metrics."""
    if run.step < cfg.cold_steps:
        yield from sft.cold_start(run, sft.Config(cfg.cold_steps, lr=cfg.sft_lr), cfg.cold_start)
    if run.step == cfg.cold_steps:
        run.policy.reset_optimizer()
    score = Score(run, cfg.bonus)
    starts = Starts(run, collected(run, cfg, cfg.cold_steps), cfg.share) if cfg.share else None
    stage = grpo.train(run, cfg, score, cfg.cold_steps, advantages)
    while True:
        with run.on(starts) if starts else nullcontext():
            metrics = next(stage)
        yield {**metrics, **score.seen}
