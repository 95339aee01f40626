"""RLAIF: reinforcement learning from the preferences of a model (survey sec. 3.2.4).

A judge, a language model of its own, reads a written principle, a prompt and two answers.  Its next
token says which answer is better (Bai et al. 2022, arxiv.org/abs/2212.08073, sec. 4; Lee et al.
2023, arxiv.org/abs/2309.00267, sec. 2.1).  It is asked in both orders: judges favour a place.

    lead = log P(" A")/P(" B") given (first, second)  +  log P(" B")/P(" A") given (second, first)

The first answer is labelled better where lead > 0.  The rest is RLHF with those labels in place of
a person's: a reward model (methods/reward.py has the loss and its gradient), then PPO on its score
(methods/ppo.py).  With `--learner dpo` DPO learns from the labels at once (methods/dpo.py).

The metric `agreement` is how often a label is the one that the exact reward would give.  Nothing
here learns from it.  Where we differ: Lee et al. average the chances of both orders, not their
log-odds, and teach the reward model that mean as a soft label; here a label is hard.

The default judge is the base model itself.  Its corpus taught it to compare
by three principles, and only the first is what the gold reward means.
"""

from dataclasses import dataclass, fields
from os.path import commonprefix
from typing import Literal

import torch

from minipost import checkpoint
from minipost.errors import MinipostError
from minipost.measure.meter import averaged
from minipost.methods import dpo, ppo, sft
from minipost.rollout import check_context, distribution, pack
from minipost.tasks.base import question

TASK = "wording"
METRIC = "sampled"
SCORED = False
READS = ("completion",)
EXPORTS = ppo.EXPORTS
TRACE = ("loss", "agreement", "accuracy", "reward", "gold", "kl_per_answer")
PROOF = "takes the steps of sft, reward and ppo, or of dpo; only the labels are its own"


@dataclass(frozen=True)
class Config(ppo.Config):
    """PPO, or DPO, on the labels of a judge that is a model.

    Of PPO's settings DPO uses only steps, the schedule, weight_decay, sft_steps, temperature and
    max_grad_norm.  It takes 64 pairs per step, as the reward model does.
    """

    sft_steps: int = 60         # steps of supervised fine-tuning first
    reward_steps: int = 150     # steps of the reward model, 64 pairs each; none with dpo
    judge: str = "checkpoints/base"  # model directory of the judge
    principle: str = "fitting"  # its principle: a name that the task knows, or your own text
    learner: Literal["ppo", "dpo"] = "ppo"  # what learns from the labels
    dpo_beta: float = 0.5       # with dpo: how close the policy stays to the reference
    dpo_lr: float = 5e-5        # with dpo: learning rate

    LIMITS = {"dpo_beta": "> 0"}

    def idle(self):
        """What the other learner heeds."""
        both = {"steps", "schedule", "warmup_steps", "weight_decay", "sft_steps", "temperature",
                "max_grad_norm"}
        ppos = {field.name for field in fields(ppo.Config)} - both
        return ppos if self.learner == "dpo" else {"dpo_beta", "dpo_lr"}

    def __post_init__(self):
        """Refuse what the other learner heeds: it would change nothing."""
        super().__post_init__()
        idle = self.idle()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in idle and value != field.default:
                other = "ppo" if self.learner == "dpo" else "dpo"
                raise MinipostError(f"{field.name} is {value}, which only --learner {other} heeds; "
                                    f"leave it out with --learner {self.learner}")


class Judge:
    """A labeller (datasets/preferences.py) that asks a model.  `seen` holds its latest metrics."""

    def __init__(self, run, directory, principle):
        self.model, self.vocabulary = checkpoint.load(directory, run.policy.module.device)
        self.model.requires_grad_(False)
        self.principle = run.task.principles.get(principle, principle)
        first, second = (self.vocabulary.response(text) for text in (" A", " B"))
        self.shared = commonprefix([first, second])
        self.sides = first[len(self.shared)], second[len(self.shared)]  # where they differ
        self.seen = {}

    def lead(self, run, prompts, firsts, seconds):
        """Log-odds that the first answer is better, with the answers in this order.  (n,)"""
        texts = [question(self.principle, *row) for row in zip(prompts, firsts, seconds)]
        asked = pack([self.vocabulary.prompt(text) + self.shared for text in texts],
                     [[self.sides[0]]] * len(texts), self.vocabulary.pad)
        asked = asked.to(run.policy.module.device)
        check_context(self.model, asked.inputs.shape[1], 1)

        def odds(batch):
            logp_all = distribution(self.model, batch)                      # (b, V)
            gap = logp_all[:, self.sides[0]] - logp_all[:, self.sides[1]]
            return [torch.zeros(batch.mask.shape).to(gap).masked_scatter(batch.mask, gap)]

        found, = run.for_all(odds, asked)
        return found.sum(1)

    def __call__(self, run, problems, rollout):
        """(P,) > 0 where the first of a prompt's two answers is better."""
        prompts, texts = [p.prompt for p in problems], run.texts(rollout)
        first, second = texts[::2], texts[1::2]
        forth = self.lead(run, prompts, first, second)
        back = self.lead(run, prompts, second, first)
        gold = run.gold(problems, rollout).view(-1, 2)
        gold = (gold[:, 0] - gold[:, 1]).nan_to_num(0.0)    # without a reward nothing is better
        clear = gold != 0
        lead = forth - back
        self.seen = {
            **averaged("agreement", ((lead > 0) == (gold > 0))[clear].double()),
            "position_bias": float(((forth > 0) == (back > 0)).double().mean()),
        }
        return lead


def total(run, cfg):
    """Steps of all stages."""
    return cfg.steps + cfg.sft_steps + (cfg.reward_steps if cfg.learner == "ppo" else 0)


def rows(run, cfg):
    """The rows of the data, and how many a step takes."""
    known = run.task.training() if run.task.training else ()
    return len(known), dpo.Config.pairs if cfg.learner == "dpo" else cfg.prompts


def check(run, cfg):
    """MinipostError where there is nothing for the judge to label, or for SFT to learn."""
    if "chosen" in run.problems(1)[0].columns:
        raise MinipostError("the rows are pairs of given answers with their order; in RLAIF the "
                            "judge orders answers of the policy, so it needs a task or rows with a "
                            "--reward; dpo and reward learn pairs of a file")
    checkpoint.read_config(checkpoint.base_of(cfg.judge))   # which is to be there
    if cfg.sft_steps:
        sft.check(run, cfg)


def train(run, cfg):
    """Fine-tune, let the judge label, learn from the labels.  Yields metrics per step."""
    judge = Judge(run, cfg.judge, cfg.principle)
    stages = ppo.rlhf(run, cfg, judge) if cfg.learner == "ppo" else preferred(run, cfg, judge)
    for metrics in stages:
        yield {**metrics, **judge.seen}
        judge.seen = {}


def preferred(run, cfg, judge):
    """Fine-tune, then DPO on the judge's labels."""
    if run.step < cfg.sft_steps:
        yield from sft.cold_start(run, sft.Config(steps=cfg.sft_steps, lr=5e-4, warmup_steps=5))
    if run.step == cfg.sft_steps:
        run.policy.reset_optimizer()
    yield from dpo.train(run, dpo.Config(
        steps=cfg.steps, schedule=cfg.schedule, warmup_steps=cfg.warmup_steps,
        weight_decay=cfg.weight_decay, temperature=cfg.temperature, beta=cfg.dpo_beta,
        lr=cfg.dpo_lr, max_grad_norm=cfg.max_grad_norm), judge, cfg.sft_steps)
