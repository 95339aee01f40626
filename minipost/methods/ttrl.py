"""TTRL: reinforcement from a majority, without labels (Zuo et al. 2025, arxiv.org/abs/2504.16084).

The policy answers a prompt G times.  What most of its answers state counts as right:

    y*  = the answer that most of the G state          r_i = 1 if answer i states y*, else 0

GRPO (methods/grpo.py has the loss and its gradient) learns from r.  Nobody's label is asked for, so
problems that are to be answered may be learnt from.  An answer that states nothing has no vote and
no reward, and of a tie the answer that came first wins.

It can teach no more than a vote already says.  Where a model errs at random its votes are right,
and it learns to answer at once as it would vote.  Where it errs always the same way it votes for
the error, and learns to be sure of it: `make study-label-free`.  At GRPO's usual rate it goes
astray once the votes are unanimous, so the rate is lower and ends at zero.  `accuracy` (of
answers) and `label_accuracy` (of votes) are logged by the task's reward, and nothing learns from
them.

Where we differ from the paper: the answers that vote are those that learn; the paper lets 64 vote
and learns from 32 of them.  The KL's weight is 0 by default.
"""

from dataclasses import dataclass

from minipost.errors import Schedule
from minipost.measure.meter import averaged
from minipost.measure.stats import winner
from minipost.methods import grpo

TASK = "arithmetic"
METRIC = "sampled"
SCORED = False
ON_POLICY = True
TRACE = ("reward", "accuracy", "label_accuracy", "entropy")
PROOF = "takes the steps of grpo; only the reward is a vote"


@dataclass(frozen=True)
class Config(grpo.Config):
    """GRPO on agreement with the majority of the group."""

    steps: int = 16             # rollouts to learn from
    group_size: int = 16        # answers per prompt, which vote and learn (G)
    prompts: int = 16           # prompts per rollout (P)
    beta: float = 0.0           # weight of the KL to the starting policy (beta)
    lr: float = 5e-5            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "linear"  # of the learning rate after the warm-up


class Majority:
    """The score of an answer: whether its group's majority states the same.

    `seen`: of the latest call, the mean true reward of all answers and of the winners.
    """

    def __init__(self, run, group_size):
        self.run, self.group_size, self.seen = run, group_size, {}

    def __call__(self, problems, rollout):
        """(B,)"""
        ballots = [self.run.task.ballot(text) for text in self.run.texts(rollout)]
        score, first = rollout.logp.new_zeros(len(ballots)), []
        for start in range(0, len(ballots), self.group_size):
            group = ballots[start : start + self.group_size]
            best, votes = winner(group)
            first.append(start + best)
            for k, ballot in enumerate(group):
                score[start + k] = float(bool(votes) and ballot == group[best])
        true = self.run.gold(problems, rollout)                             # learns nothing
        self.seen = averaged("accuracy", true) | averaged("label_accuracy", true[first])
        return score


def train(run, cfg):
    """GRPO on the votes.  Yields metrics per step."""
    score = Majority(run, cfg.group_size)
    for metrics in grpo.train(run, cfg, score):
        yield {**metrics, **score.seen}
