"""A fixed set of answers with their rewards: what is learnt from without sampling on the way.

They come from a file, rows with `completion` and a `reward` within 0..1 (or a `label`, true or false),
or are sampled once: `group_size` answers to each of `prompts` problems, by a frozen copy of the policy.
With `iterations` the run is cut into as many parts, as equal as whole steps can be; at the start of each
the frozen copy becomes what the policy has become, and answers anew.  A resumed run draws the same
answers again, so no state holds them.  What a file states is learnt from, whatever --reward says of it.
"""

import copy
from bisect import bisect_right

import torch

from minipost.errors import MinipostError


class Trajectories:
    """The answers of a run.  cfg has steps, prompts, group_size, temperature and iterations.

    After `refresh` they are: problems, the N answers' own; seqs, N Sequences; reward (N,).  This part
    of the run began at step `since` and has `length` steps.
    """

    def __init__(self, run, cfg):
        self.run, self.cfg, self.since = run, cfg, -1           # no part has begun
        if cfg.iterations > cfg.steps:
            raise MinipostError(f"iterations is {cfg.iterations}; expected at most one per step, of "
                                f"which there are {cfg.steps}")
        rows = run.task.training() if run.task.training else []
        self.given = [row for row in rows if stated(row)]
        if self.given and cfg.iterations > 1:
            raise MinipostError(f"iterations is {cfg.iterations}, which asks the policy for answers "
                                "again and again; the answers of a file are given once")

    def check(self):
        """MinipostError where a file's answers do not fit the model; for before a run begins."""
        if self.given:
            self.load()

    def refresh(self):
        """Make, at the start of a part or after a resume, the set that this step learns from.

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
        """This step's n of the rows of a set, in epochs."""
        return self.run.deal(rows, n, self.since)

    def count(self, batch):
        """Count a file's answers as they are learnt from; others were when they were sampled."""
        if self.given:
            self.run.tokens += int(batch.mask.sum())

    def load(self):
        """The file's answers."""
        self.problems, run = self.given, self.run
        self.seqs = run.encode([p.prompt for p in self.given],
                                 [p.columns["completion"] for p in self.given])
        self.reward = torch.tensor([reward_of(p) for p in self.given],
                                   device=run.policy.module.device)

    def sample(self):
        """The frozen copy's answers to this part's problems."""
        run = self.run
        self.sampler = run.frozen("sampler", lambda: copy.deepcopy(run.policy.module))
        if run.step == self.since > 0:
            self.sampler.load_state_dict(run.policy.module.state_dict())
        with run.at(self.since):
            asked = run.problems(self.cfg.prompts)
        self.seqs, self.reward = self.answers(asked, "trajectories")
        self.problems = [asked[i] for i in self.seqs.prompt.tolist()]

    def answers(self, problems, purpose):
        """The frozen copy's answers to any problems: a Rollout, (N,) rewards.

        Their tokens count once, however often a run is resumed.
        """
        run, cfg, counted = self.run, self.cfg, self.run.tokens
        with run.at(self.since):
            rollout = run.sample(problems, cfg.group_size, temperature=cfg.temperature,
                                 module=self.sampler, purpose=purpose)
        if run.step != self.since:
            run.tokens = counted
        return rollout, run.score(problems, rollout)


def stated(problem):
    """Whether a row of a file comes with a completion and what that is worth."""
    columns = set(problem.columns)
    return "completion" in columns and bool({"reward", "label"} & columns)


def reward_of(problem):
    """The reward that a row of a file states."""
    return float(problem.columns.get("reward", problem.columns.get("label")))
