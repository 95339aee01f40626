"""Direct RLAIF: what a judge says of an answer is its reward; there is no reward model.

RLAIF (methods/rlaif.py) teaches a reward model a judge's labels, which grow stale as the policy
moves.  d-RLAIF (Lee et al. 2023, arxiv.org/abs/2309.00267, sec. 2.2.2; survey sec. 3.2.4) asks the
judge about every answer that the policy learns from.  An answer is compared with each of its G - 1
siblings, in both orders, and its reward is the judge's mean log-odds that it is the better one:

    r_i = 1/(G - 1) sum_(j != i) lead(i, j),        lead(j, i) = -lead(i, j)

`lead` is that of methods/rlaif.py.  The rest is methods/grpo.py, which has the loss and its
gradient.  A group's rewards add up to 0, so they say which answer is better and never whether all
got better; `gold` says that, and nothing here learns from it.

Where we differ: the paper's judge grades one answer from 1 to 10, and the reward is the mean of the
grades by their chances.  Ours was taught to compare two.  The paper's learner has a critic.
"""

from dataclasses import dataclass

import torch

from minipost import checkpoint
from minipost.measure.meter import averaged
from minipost.methods import grpo, rlaif, sft

TASK = "wording"
METRIC = "sampled"
SCORED = False
READS = ("completion",)
TRACE = ("loss", "gold", "agreement", "kl", "entropy")
PROOF = "takes the steps of sft and grpo; only the reward is a judge's"


@dataclass(frozen=True)
class Config(grpo.Config):
    """GRPO on the log-odds of a judge that is a model."""

    steps: int = 40             # rollouts to learn from; after more the judge may be fooled
    prompts: int = 32           # prompts per rollout (P)
    group_size: int = 4         # answers per prompt, each compared with all others (G)
    beta: float = 0.05          # weight of the KL to the fine-tuned policy (beta)
    lr: float = 1e-4            # learning rate (eta); at twice as much the judge may be fooled
    judge: str = "checkpoints/base"  # model directory of the judge
    principle: str = "fitting"  # its principle: a name that the task knows, or your own text
    sft_steps: int = 60         # steps of supervised fine-tuning first

    LIMITS = {**grpo.Config.LIMITS, "sft_steps": ">= 0"}


def total(run, cfg):
    """Steps of both stages."""
    return cfg.sft_steps + cfg.steps


def check(run, cfg):
    """MinipostError where there is no judge, or SFT finds no answer to learn."""
    checkpoint.read_config(checkpoint.base_of(cfg.judge))
    if cfg.sft_steps:
        sft.check(run, cfg)


def mean_lead(lead, group_size):
    """Each answer's mean lead over its siblings.  lead (P, G, G) -> (P*G,)"""
    both = lead - lead.transpose(1, 2)      # the judge is asked about (i, j) and about (j, i)
    return both.sum(2).flatten() / (group_size - 1)


class Verdicts:
    """The score that a judge gives.  Of the latest call `seen` has the metrics."""

    def __init__(self, run, judge, group_size):
        self.run, self.judge, self.group_size, self.seen = run, judge, group_size, {}

    def __call__(self, problems, rollout):
        """(B,)"""
        size, texts = self.group_size, self.run.texts(rollout)
        rows = [(p, i, j) for p in range(len(problems)) for i in range(size) for j in range(size)
                if i != j]
        asked = [(problems[p].prompt, texts[p * size + i], texts[p * size + j])
                 for p, i, j in rows]
        distinct = {row: k for k, row in enumerate(dict.fromkeys(asked))}
        said = self.judge.lead(self.run, *zip(*distinct))
        lead = said.new_zeros(len(problems), size, size)
        at = torch.tensor(rows, device=lead.device).unbind(1)
        lead[at] = said[[distinct[row] for row in asked]]
        found = mean_lead(lead, size).to(rollout.logp)
        self.watch(lead, self.run.gold(problems, rollout).view(-1, size))
        return found

    def watch(self, lead, gold):
        """Note how often the judge orders two answers as gold does, and says the first."""
        both, apart = lead - lead.transpose(1, 2), gold[:, :, None] - gold[:, None, :]
        clear = apart.nan_to_num(0.0) != 0
        others = ~torch.eye(lead.shape[1], dtype=torch.bool, device=lead.device)
        agreed = (both > 0) == (apart > 0)
        self.seen = {**averaged("gold", gold), **averaged("agreement", agreed[clear].double()),
                     "position_bias": float((lead > 0)[:, others].double().mean())}


def train(run, cfg):
    """Fine-tune, then GRPO on the judge's verdicts.  Yields metrics per step."""
    verdicts = Verdicts(run, rlaif.Judge(run, cfg.judge, cfg.principle), cfg.group_size)
    if run.step < cfg.sft_steps:
        yield from sft.cold_start(run, sft.Config(steps=cfg.sft_steps, lr=5e-4, warmup_steps=5))
    if run.step == cfg.sft_steps:
        run.policy.reset_optimizer()    # Adam's moments are about another loss
    for metrics in grpo.train(run, cfg, verdicts, cfg.sft_steps):
        yield {**metrics, **verdicts.seen}
