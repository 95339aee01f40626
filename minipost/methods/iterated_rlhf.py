"""Iterated RLHF: the reward model is told of the answers that the policy gives now.

A reward model knows answers like those that it was taught on.  PPO leads away from these, so the
score (the proxy) goes on rising where the reward that it stands for (gold) no longer does (Gao et
al. 2022, arxiv.org/abs/2210.10760).  So RLHF goes in rounds (Bai et al. 2022,
arxiv.org/abs/2204.05862, sec. 4.5; survey sec. 3.1.5, adaptive reward models):

    label       pairs of answers of the policy as it is now
    fit         the reward model to them, from where it was            (methods/reward.py)
    optimise    the policy against it, from where it was               (methods/ppo.py)

Losses and gradients are those of the two methods.  The rounds share their steps: K rounds have as
many labels, rollouts and updates as RLHF with a reward model that is taught once, which is
`--rounds 1`, step for step.  In every round the score is normalised on answers of the reference, so
a nat of KL has the same price in all of them.

Rounds pay where the policy runs away from what its reward model knows, as without a price on KL;
with the default price they add nothing that three seeds show (`make ablations`).

`gap` is how much more the policy has gained in the proxy than in gold, each in deviations of the
reference's answers.  `pair accuracy` is that of the reward model on the policy's own answers.

Where we differ: Bai et al. begin each round anew, the reward model with all labels so far and the
policy from its start, and they mix several policies' answers.
"""

import copy
from dataclasses import dataclass

import torch

from minipost.datasets import preferences
from minipost.errors import MinipostError
from minipost.measure import scorers
from minipost.measure.results import results
from minipost.methods import ppo, reward, sft
from minipost.run import REWARD_MODEL

TASK = "wording"
METRIC = "sampled"
COMPARES = True
SCORED = False
READS = ("completion",)
EXPORTS = ppo.EXPORTS
TRACE = ("accuracy", "reward", "gold", "gap", "kl_per_answer")
PROOF = "takes the steps of sft, reward and ppo; only their order is its own"


@dataclass(frozen=True)
class Config(ppo.Config):
    """RLHF in rounds, each with labels of the policy's answers of the time."""

    sft_steps: int = 60         # steps of supervised fine-tuning first
    reward_steps: int = 100     # steps of the reward model, 64 pairs each
    rounds: int = 4             # rounds that share reward_steps and steps (K)

    def __post_init__(self):
        """Refuse a round in which there is nothing to do."""
        super().__post_init__()
        for name in ("steps", "reward_steps"):
            if getattr(self, name) < self.rounds:
                raise MinipostError(f"{name} is {getattr(self, name)}, fewer than the "
                                    f"{self.rounds} --rounds that share them")


def shares(steps, rounds):
    """Where each round's share of the steps begins, and where the last one's ends."""
    return [k * steps // rounds for k in range(rounds + 1)]


def total(run, cfg):
    """Steps of all stages."""
    return cfg.sft_steps + cfg.reward_steps + cfg.steps


def fixed(cfg):
    """Why a run cannot be made longer."""
    return "its rounds are shares of its steps" if cfg.rounds > 1 else ""


def check(run, cfg):
    """MinipostError where the answers to label would not be the policy's."""
    if "chosen" in run.problems(1)[0].columns:
        raise MinipostError("the rows are pairs of given answers; iterated RLHF labels answers of "
                            "the policy, so it needs a task or rows with a --reward")
    if cfg.sft_steps:
        sft.check(run, cfg)


def measure(run, splits, cfg):
    """The policy's answers, and how the reward model orders them, if it has learnt anything yet."""
    model, found = None, results(run, splits)
    if run.knows(f"frozen/{REWARD_MODEL}"):     # run.reward_model is not set yet after a resume
        model = run.frozen(REWARD_MODEL, lambda: copy.deepcopy(scorers.scorer(run).module))

    def score(rollout):
        return torch.zeros(len(rollout)) if model is None else run.final_scores(model, rollout)

    for split, values in scorers.report(run, splits, score).items():
        found[split]["pair accuracy"] = values["pair accuracy"]
    return found


def train(run, cfg, label=preferences.by_reward):
    """Fine-tune; then rounds of labels, reward model, PPO.  Yields metrics per step."""
    if run.step < cfg.sft_steps:
        yield from sft.cold_start(run, sft.Config(steps=cfg.sft_steps, lr=5e-4, warmup_steps=5))
    judging, acting = shares(cfg.reward_steps, cfg.rounds), shares(cfg.steps, cfg.rounds)
    begin = cfg.sft_steps
    for k in range(cfg.rounds):
        fits = judging[k + 1] - judging[k]
        judged = begin + fits
        end = judged + acting[k + 1] - acting[k]
        if run.step < judged:
            stage = reward.train(run, reward.Config(
                steps=fits, prompts=64, group_size=2, temperature=cfg.temperature,
                warmup_steps=20 // cfg.rounds), label, begin)
            while run.step < judged:
                yield next(stage)
        if run.step < end:
            if run.step == judged:
                renew(run, first=k == 0)
            run.score_by(scorers.scorer(run).module, run.reference())
            stage = ppo.optimise(run, cfg, judged - acting[k])  # so that rates go by PPO's steps
            while run.step < end:
                metrics = next(stage)
                yield {**metrics, "gap": gap(run, metrics)}
        begin = end


def renew(run, first):
    """Begin to optimise: drop the score of before, and at first note what the reference earns."""
    run.forget(f"frozen/{REWARD_MODEL}")
    if not first:
        return
    run.policy.reset_optimizer()    # Adam's moments are about another loss
    with run.aside():               # which only measures
        problems = run.problems(128, again=1)
        rollout = run.sample(problems, 2, temperature=1.0, purpose="gold", module=run.reference())
    gold = run.grade(problems, rollout)
    run.carried |= {"gold/mean": float(gold.mean()), "gold/std": float(gold.std())}


def gap(run, metrics):
    """The proxy's gain less gold's, in deviations of the reference's answers; 0 if none."""
    mean, std = run.carried["gold/mean"], run.carried["gold/std"]
    known = std > 0 and "gold" in metrics  # which is not there where no reward function applies
    return metrics["reward"] - (metrics["gold"] - mean) / std if known else 0.0
