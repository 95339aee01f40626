"""Iterative GRPO: the reward model and the reference follow the policy (Shao et al. 2024,
arxiv.org/abs/2402.03300, sec. 4.1.4 and algorithm 1).

A reward model that was taught on the answers of an early policy knows little of a later one's, and
a policy that is held to where it began cannot go far.  So both are renewed, I times:

    reward model    goes on learning, from labelled pairs of fresh answers of the policy as it is;
                    a tenth of each step's pairs are replayed from earlier rounds
    reference       becomes the policy as it is
    policy          GRPO against the score, with the KL to that reference

Loss and gradient are those of methods/reward.py and methods/grpo.py.  All steps and all labels are
divided among the rounds.  So `--iterations 1`, RLHF with GRPO in place of PPO, is the control at as
many labels and as many answers.

Where we differ from the paper: its reward model exists before the first round, so it is renewed at
the end of a round, and here at the start.  Labels are those of the task's reward, by pairs, and the
replay is of pairs.  Before the first round the policy is fine-tuned on demonstrations, as in
methods/ppo.py.  `gold` is the hidden reward; nothing here learns from it.
"""

from dataclasses import dataclass, replace

import torch

from minipost.datasets import preferences
from minipost.errors import MinipostError
from minipost.measure import scorers
from minipost.measure.meter import averaged
from minipost.methods import grpo, reward, sft
from minipost.rollout import Sequences, stacked
from minipost.run import REWARD_MODEL

TASK = "wording"
METRIC = "sampled"
COMPARES = True
SCORED = False
READS = ("completion",)
EXPORTS = {"policy": "model", REWARD_MODEL: "reward_model"}
TRACE = ("loss", "accuracy", "reward", "gold", "kl")
PROOF = "takes the steps of sft, reward and grpo; only their order is its own"
PAIRS = 64      # in a step of the reward model, with those that are replayed


@dataclass(frozen=True)
class Config(grpo.Config):
    """Rounds of a reward model on fresh labels and GRPO on its score, and how they are divided."""

    steps: int = 42             # rollouts to learn from, in all rounds
    prompts: int = 16           # prompts per rollout (P)
    beta: float = 0.1           # weight of the KL to the policy as the round began (beta)
    iterations: int = 3         # rounds, each with a renewed reward model and reference (I)
    reward_steps: int = 150     # gradient steps of the reward model, in all rounds
    replay_share: float = 0.1   # share of its pairs that are from earlier rounds
    sft_steps: int = 60         # steps of supervised fine-tuning before the first round

    LIMITS = {**grpo.Config.LIMITS, "replay_share": ">= 0, <= 0.5", "sft_steps": ">= 0"}


def rounds(cfg):
    """Of each round the steps at which it begins, its GRPO begins, and it ends."""
    found, start, i = [], cfg.sft_steps, cfg.iterations
    for k in range(i):
        labelled, learnt = (n // i + (k < n % i) for n in (cfg.reward_steps, cfg.steps))
        found.append((start, start + labelled, start + labelled + learnt))
        start = found[-1][-1]
    return found


def total(run, cfg):
    """Steps of all stages."""
    return rounds(cfg)[-1][-1]


def milestones(run, cfg):
    """{step: stage} after which the run is measured too."""
    tuned = {cfg.sft_steps: "fine-tuning"} if cfg.sft_steps else {}
    return tuned | {end: f"round {k}" for k, (*_, end) in enumerate(rounds(cfg)[:-1], 1)}


def fixed(cfg):
    """Why a run cannot be made longer, if it cannot."""
    return "its iterations divide the steps" if cfg.iterations > 1 else ""


def check(run, cfg):
    """MinipostError where the answers to label would not be the policy's, or SFT finds none."""
    if "chosen" in run.problems(1)[0].columns:
        raise MinipostError("the rows are pairs of given answers; iterative GRPO labels answers of "
                            "the policy, so it needs a task or rows with a --reward")
    if cfg.sft_steps:
        sft.check(run, cfg)


# ---- the pairs of earlier rounds

class History:
    """The labelled pairs of all rounds, as a part of a run: better, worse, and each pair's step."""

    def __init__(self):
        none = Sequences(torch.zeros(0, 2).long(), torch.zeros(0, 1).bool())
        self.better, self.worse, self.step = none, none, torch.zeros(0).long()

    def add(self, step, sides, wins):
        """Keep the pairs of a step: two Sequences of P rows each, wins (P, 2, 2).

        Those that it has of this step are replaced: the step failed and is made again.
        """
        earlier = (self.step < step).nonzero()[:, 0]
        both, many = stacked([side.to("cpu") for side in sides]), len(wins)
        first, second = (wins[:, i, 1 - i].cpu().nonzero()[:, 0] for i in (0, 1))
        ahead, behind = torch.cat([first, many + second]), torch.cat([many + first, second])
        self.better = stacked([self.better[earlier], both[ahead]])
        self.worse = stacked([self.worse[earlier], both[behind]])
        self.step = torch.cat([self.step[earlier], torch.full((len(ahead),), step)])

    def draw(self, n, before, rng):
        """n pairs of the steps before this one, fewer if there are fewer: better, worse."""
        known = (self.step < before).nonzero()[:, 0].tolist()
        rows = torch.tensor(rng.sample(known, min(n, len(known)))).long()
        return self.better[rows], self.worse[rows]

    def state(self):
        return {"step": self.step, **{
            f"{side}/{name}": getattr(getattr(self, side), name)
            for side in ("better", "worse") for name in ("tokens", "mask")}}, []

    def restore(self, tensors, numbers):
        self.step = tensors["step"]
        self.better, self.worse = (Sequences(tensors[f"{side}/tokens"], tensors[f"{side}/mask"])
                                   for side in ("better", "worse"))


# ---- the stages of a round

def judging(run, cfg, first, steps):
    """The reward model goes on learning, from fresh pairs and some of those before the round."""
    history = run.part("frozen/history", History)
    many = round(cfg.replay_share * PAIRS) if first > cfg.sft_steps else 0

    def mix(sides, wins):
        history.add(run.step, sides, wins)
        if not many:
            return sides, wins
        old = [side.to(wins.device) for side in history.draw(many, first, run.rng("replay"))]
        won = wins.new_zeros(len(old[0]), 2, 2)
        won[:, 0, 1] = True
        return [stacked(pair) for pair in zip(sides, old)], torch.cat([wins, won])

    yield from reward.train(run, reward.Config(
        steps=steps, prompts=PAIRS - many, group_size=2, temperature=cfg.temperature,
        warmup_steps=min(reward.Config.warmup_steps, steps // 2)),
        preferences.by_reward, first, mix)


def learning(run, cfg, first, steps):
    """GRPO against the score of the reward model as it is now."""
    if run.step == first:
        run.forget("frozen/reference")
        run.forget(f"frozen/{REWARD_MODEL}")
    run.score_by(scorers.scorer(run).module)
    seen = {}

    def score(problems, rollout):
        seen.clear()
        seen.update(averaged("gold", run.gold(problems, rollout)))
        return run.score(problems, rollout)

    for metrics in grpo.train(run, replace(cfg, steps=steps), score, first):
        yield {**metrics, **seen}


def train(run, cfg):
    """Fine-tune; then in each round renew reward model and reference, and learn.  Yields metrics.

    run.step says which stage it is.
    """
    if run.step < cfg.sft_steps:
        yield from sft.cold_start(run, sft.Config(steps=cfg.sft_steps, lr=5e-4, warmup_steps=5))
    for k, (start, judged, end) in enumerate(rounds(cfg)):
        if run.step < judged:
            stage = judging(run, cfg, start, judged - start)
            while run.step < judged:
                yield {**next(stage), "round": k + 1}
        if run.step == judged and not k:
            run.policy.reset_optimizer()  # Adam's moments are about another loss
        if run.step < end:
            stage = learning(run, cfg, judged, end - judged)
            while run.step < end:
                yield {**next(stage), "round": k + 1}
