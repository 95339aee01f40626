"""A fixed set of answers with their rewards, for methods that do not sample at every step.

The answers come from a file: rows with `completion` and a `reward` within 0..1 (or a `label`, true
or false).  Or a frozen copy of the policy samples them once, `group_size` answers to each of
`prompts` problems.  `iterations` is the number of parts of the run, as equal as whole steps allow.
At the start of each part the frozen copy takes the policy's current weights and answers anew.  A
resumed run draws the same answers again, so no saved state holds them.  A run uses the rewards that
a file states, whatever --reward says.
"""

import copy
from bisect import bisect_right

import torch

from minipost.engine.lora import fill, own
from minipost.errors import MinipostError


class Trajectories:
    """The answers of a run.  cfg has steps, prompts, group_size, temperature and iterations.

    After `refresh` there are N answers: problems, the problem of each; seqs, N Sequences; reward
    (N,).  The current part of the run began at step `since` and has `length` steps.
    """

    def __init__(self, run, cfg):
        self.run, self.cfg, self.since = run, cfg, -1           # no part has begun
        if cfg.iterations > cfg.steps:
            raise MinipostError(f"iterations is {cfg.iterations}; expected at most one per step, "
                                f"of which there are {cfg.steps}")
        self.given = given_answers(run)
        if self.given and cfg.iterations > 1:
            raise MinipostError(f"iterations is {cfg.iterations}, which asks the policy for "
                                "answers again and again; the answers of a file are given once")

    def refresh(self):
        """Make the set that this step learns from, at the start of a part or after a resume.

        -> whether it is a new one.
        """
        steps, parts = self.cfg.steps, self.cfg.iterations
        starts = [k * steps // parts for k in range(parts + 1)]
        k = bisect_right(starts, min(self.run.step, steps - 1)) - 1
        if starts[k] == self.since:
            return False
        self.since, self.length = starts[k], starts[k + 1] - starts[k]
        self.load() if self.given else self.sample()
        return True

    def deal(self, rows, n):
        """This step's n of these rows, in epochs."""
        return self.run.deal(rows, n, self.since)

    def count(self, batch):
        """Count the tokens of a file's answers.  Sampled ones were counted when sampled."""
        if self.given:
            self.run.tokens += int(batch.mask.sum())

    def load(self):
        """The file's answers."""
        self.problems, run = self.given, self.run
        self.seqs = run.encode(self.given, [p.columns["completion"] for p in self.given])
        self.reward = torch.tensor([reward_of(p) for p in self.given],
                                   device=run.policy.module.device)

    def sample(self):
        """The frozen copy's answers to this part's problems."""
        run = self.run
        self.sampler = run.frozen("sampler", lambda: copy.deepcopy(run.policy.module))
        if run.step == self.since > 0:
            fill(self.sampler, own(run.policy.module))
        with run.at(self.since):
            asked = run.problems(self.cfg.prompts)
        self.seqs, self.reward = self.answers(asked, "trajectories")
        self.problems = [asked[i] for i in self.seqs.prompt.tolist()]

    def answers(self, problems, purpose):
        """The frozen copy's answers to any problems: a Rollout and rewards (N,).

        Their tokens count once, however often a run is resumed.
        """
        run, cfg = self.run, self.cfg
        with run.once(self.since):
            rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature,
                                 module=self.sampler, purpose=purpose)
            return rollout, run.score(problems, rollout)


def stated(problem):
    """Whether a row of a file has a completion and its reward or label."""
    return isinstance(problem.columns.get("completion"), str) and reward_of(problem) is not None


def given_answers(run):
    """The training rows that state an answer and what it is worth."""
    return [row for row in (run.task.training() if run.task.training else ()) if stated(row)]


def reward_of(problem):
    """The reward within 0..1 or the label, true or false, that a row of a file states, or None."""
    reward, label = problem.columns.get("reward"), problem.columns.get("label")
    if isinstance(reward, int | float) and not isinstance(reward, bool) and 0 <= reward <= 1:
        return float(reward)
    return float(label) if isinstance(label, bool) else None
