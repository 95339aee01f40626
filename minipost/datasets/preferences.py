"""Preference data: pairs of answers, from a file or sampled and labelled.

Pairs come from a file (rows with `chosen` and `rejected`) or are sampled.  Then the starting policy
gives two answers to each prompt and a labeller compares them.  A labeller is a function

    label(run, problems, rollout) -> (P,)    > 0 if a prompt's first answer is better, < 0 if its
                                             second is, 0 for a tie, which makes no pair
"""

import copy
import itertools
from dataclasses import replace

import torch

from minipost.ops import row_means
from minipost.rollout import Pairs


def turned(run, n):
    """-1 for a label that comes out wrong, as a share `noise` of the task's do, else 1.  (n,)"""
    rng = run.rng("noise")
    return torch.tensor([-1.0 if rng.random() < run.task.noise else 1.0 for _ in range(n)])


def by_reward(run, problems, rollout):
    """The labeller that uses the run's reward function.  It flips a share `noise` of the labels."""
    first, second = run.grade(problems, rollout).view(-1, 2).unbind(1)
    return (first - second) * turned(run, len(problems)).to(first)


# ---- pairs

class StepPairs:
    """The pairs of each step, and their log-probs under the starting policy.

    A file's pairs are read once.  Their log-probs are computed once, before the first step, if the
    run goes through them twice or more, or keeps the likeliest of all.  Else each step computes
    those of its own pairs, so that the first step need not wait.  Other pairs are sampled from the
    starting policy at every step and labelled.  cfg has pairs (B), temperature, and likeliest,
    the share of the pairs to keep.  Kept are the pairs with the least perplexity of the chosen
    answer under the starting policy.

    reference: whether the log-probs are wanted.  Without them and without a filter, no reference is
    made, and the starting policy is kept only if it must answer.
    """

    def __init__(self, run, cfg, label, reference=True):
        self.run, self.cfg, self.label, self.reference = run, cfg, label, reference
        self.model = run.reference() if reference else \
            starting_policy(run) if cfg.likeliest < 1 else None
        rows = run.task.training() if run.task.training else []
        self.whole = file_pairs(run, rows) if rows and "chosen" in rows[0].columns else None
        self.known = None
        if self.whole is not None and (
                cfg.likeliest < 1 or cfg.steps * cfg.pairs >= 2 * len(self.whole)):
            self.known = self.ask(self.whole)

    def ask(self, pairs):
        """Log-probs [chosen (P, T), rejected (P, T')], zero off the masks; which to keep (P,)."""
        if self.model is None:
            return None, torch.ones(len(pairs), dtype=torch.bool, device=pairs.chosen.mask.device)
        logps = [self.run.logprobs(self.model, side) for side in (pairs.chosen, pairs.rejected)]
        value = (-row_means(logps[0], pairs.chosen.mask)).exp()
        kept = value <= value.quantile(self.cfg.likeliest) if len(pairs) else value > 0
        return logps if self.reference else None, kept

    def draw(self):
        """This step's pairs, with their log-probs: a list of two, or None."""
        run, cfg = self.run, self.cfg
        if self.whole is not None:
            rows = torch.tensor(run.deal(range(len(self.whole)), cfg.pairs),
                                device=self.whole.chosen.mask.device)
            count_pairs(run, self.whole[rows])
            if self.known is None:
                return self.whole[rows], self.ask(self.whole[rows])[0]
            logps, kept = self.known
            return take_pairs(self.whole, rows[kept[rows]], logps)
        problems = run.problems(cfg.pairs)
        rollout = run.sample(problems, 2, temperature=cfg.temperature, purpose="pairs",
                             module=self.model or starting_policy(run))
        pairs = ranked_pairs(rollout, self.label(run, problems, rollout))
        logps, kept = self.ask(pairs)
        return take_pairs(pairs, kept.nonzero()[:, 0], logps)


def starting_policy(run):
    """A frozen copy of the policy at the start.  It answers and is no reference."""
    if "frozen/start" not in run.saved and "frozen/reference" in run.saved:
        run.saved["frozen/start"] = run.saved.pop("frozen/reference")  # as states once called it
    return run.frozen("start", lambda: copy.deepcopy(run.policy.module))


def take_pairs(pairs, rows, logps):
    """These pairs, with the same rows and columns of the log-probs."""
    if logps is None:
        return pairs[rows], None
    sides = [side.take(rows, logp) for side, logp in zip((pairs.chosen, pairs.rejected), logps)]
    return Pairs(sides[0][0], sides[1][0]), [logp for _, logp in sides]


def step_pairs(run, n):
    """This step's n problems, and their pairs if they are rows of pairs, else None.

    The tokens of the pairs are counted.
    """
    problems = run.problems(n)
    if "chosen" not in problems[0].columns:
        return problems, None
    pairs = file_pairs(run, problems)
    count_pairs(run, pairs)
    return problems, pairs


def count_pairs(run, pairs):
    run.tokens += int(pairs.chosen.mask.sum() + pairs.rejected.mask.sum())


def ranked_pairs(rollout, label):
    """Pairs of rows 2i and 2i+1 of a rollout, in the order given by label (P,), without ties.

    Two answers of the same words are a tie, whatever the label says.
    """
    same = torch.tensor([a == b for a, b in zip(*[iter(rollout.responses())] * 2)])
    first = torch.arange(0, len(rollout), 2, device=label.device)
    first, label = first[~same.to(label.device)], label[~same.to(label.device)]
    first, label = first[label != 0], label[label != 0]
    return Pairs(rollout[first + (label < 0)], rollout[first + (label > 0)])


def file_pairs(run, problems):
    """Pairs of rows with the columns `chosen` and `rejected`.

    MinipostError if an answer does not fit the model's context.
    """
    return Pairs(*(run.encode(problems, [p.columns[side] for p in problems])
                   for side in ("chosen", "rejected")))


# ---- comparisons of several answers

def draw_comparisons(run, prompts, group_size, label, temperature):
    """This step's answers, `group_size` (K) to each prompt, and which is better than which.

    -> K Sequences of P rows each, wins (P, K, K): true if a row's i-th is better than its j-th.
    If the problems are a file's pairs, the answers are those pairs (K = 2).  Otherwise the policy
    samples them, and the labeller compares every two in one call.  Two answers of the same words
    are a tie, whatever the labeller says.
    """
    problems, pairs = step_pairs(run, prompts)
    if pairs is not None:
        wins = torch.zeros(len(pairs), 2, 2, dtype=torch.bool, device=pairs.chosen.mask.device)
        wins[:, 0, 1] = True
        return [pairs.chosen, pairs.rejected], wins
    rollout = run.sample(problems, group_size, temperature=temperature, purpose="pairs")
    sides = list(itertools.combinations(range(group_size), 2))                 # C of them
    rows = torch.tensor([[p * group_size + k for k in side] for p in range(len(problems))
                         for side in sides]).flatten().to(rollout.prompt.device)
    asked = [problem for problem in problems for _ in sides]
    matches = replace(rollout[rows], prompt=torch.arange(len(asked)).repeat_interleave(2)
                      .to(rows.device))
    words = matches.responses()
    same = torch.tensor([a == b for a, b in zip(words[::2], words[1::2])])
    lead = label(run, asked, matches).where(~same.to(rollout.mask.device), 0.0)
    lead = lead.view(len(problems), len(sides))
    wins = torch.zeros(len(problems), group_size, group_size, dtype=torch.bool, device=lead.device)
    for c, (i, j) in enumerate(sides):
        wins[:, i, j], wins[:, j, i] = lead[:, c] > 0, lead[:, c] < 0
    return [rollout[k::group_size] for k in range(group_size)], wins
