"""R1-Zero: reasoning by reinforcement learning alone (Guo et al. 2025, arxiv.org/abs/2501.12948).

A base model that sometimes thinks in its text is asked problems whose answers can be checked.  GRPO
(methods/grpo.py has the loss and its gradient) learns from rules, not from a reward model, and no
demonstration comes before (sec. 2.2; survey sec. 3.3):

    r = w_accuracy accuracy + w_format format + w_language language

`accuracy` is the task's reward or --reward, and the others are the task's `rules`.  Every rule is
logged apart.  So is what the thought consists of: attempts, backtracks, checks, their soundness.
The paper pays for what is right and for the form, not for the language: its R1-Zero mixes
languages.

The survey's question is whether thinking gets longer and better.  `length` and `backtracks` say how
long it is, `accuracy` how good.  That needs a base that sometimes thinks, and to some purpose: see
`make study-priming`.
"""

from dataclasses import dataclass

import torch

from minipost.errors import MinipostError
from minipost.methods import grpo

TASK = "search"
MODEL = "checkpoints/seeker"
DEMO = {"max_new_tokens": 224}
METRIC = "sampled"
SCORED = False
ON_POLICY = True
TRACE = ("reward", "accuracy", "format", "language", "completions/mean_length", "backtracks",
         "sound", "entropy")
PROOF = "takes the steps of grpo; only the reward is a sum of rules"


@dataclass(frozen=True)
class Config(grpo.Config):
    """GRPO without a KL, on rules with weights."""

    steps: int = 40             # rollouts to learn from
    beta: float = 0.0           # weight of the KL to the starting policy (beta)
    lr: float = 1e-4            # learning rate (eta)
    accuracy: float = 1.0       # weight of a right answer
    format: float = 0.1         # weight of a whole form: a thought and one answer
    language: float = 0.0       # weight of the share of its verdicts that are in English

    LIMITS = {**grpo.Config.LIMITS, "accuracy": ">= 0", "format": ">= 0", "language": ">= 0"}


class Rules:
    """The score of an answer: a weighted sum of rules.

    Of the latest call `found` has each rule's values, (B,), and `seen` their means.
    """

    def __init__(self, run, weights):
        if run.hidden:
            raise MinipostError(f"the reward of {run.task.name} is hidden from learners; give a "
                                "function with --reward")
        missing = [name for name, weight in weights.items()
                   if weight and name != "accuracy" and name not in run.task.rules]
        if missing:
            raise MinipostError(f"the task {run.task.name} has no rule {missing[0]!r}; give "
                                f"--{missing[0]} 0")
        self.run, self.weights, self.found, self.seen = run, weights, {}, {}
        self.rules = {"accuracy": run.reward, **run.task.rules}
        self.thinking = run.task.thinking

    def __call__(self, problems, rollout):
        """(B,)"""
        rows = [problems[i] for i in rollout.prompt.tolist()]
        texts = self.run.texts(rollout)
        found = self.found = {
            name: self.run.grade_texts(rows, texts, rule, rollout).to(rollout.logp)
            for name, rule in self.rules.items()}
        self.seen = {name: float(value.mean()) for name, value in found.items()}
        if self.thinking:
            self.seen |= thought(self.thinking, rows, texts)
        return sum(weight * found[name] for name, weight in self.weights.items() if weight)

    def kept(self):
        """Which answers of the latest call kept every rule that has a weight.  (B,)"""
        return torch.stack([self.found[name] >= 1
                            for name, weight in self.weights.items() if weight]).all(0)


def thought(thinking, problems, texts):
    """What thoughts consist of, means of an answer; `sound` is a share of the checks."""
    each = [thinking(problem, text) for problem, text in zip(problems, texts, strict=True)]
    total = {name: sum(one[name] for one in each) for name in each[0]}
    sound = total.pop("sound") / max(1, total["checks"])
    return {name: value / len(each) for name, value in total.items()} | {"sound": sound}


def weights(cfg):
    """{rule: weight} of a Config."""
    return {name: getattr(cfg, name) for name in ("accuracy", "format", "language")}


def check(run, cfg):
    """MinipostError where a rule is missing or nothing is paid for."""
    if not any(Rules(run, weights(cfg)).weights.values()):
        raise MinipostError("no rule has a weight; there is nothing to learn from")


def train(run, cfg):
    """GRPO on the rules.  Yields metrics per step."""
    rules = Rules(run, weights(cfg))
    for metrics in grpo.train(run, cfg, rules):
        yield {**metrics, **rules.seen}
