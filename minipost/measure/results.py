"""The results of measurements, and the measurement of a run's models.

    Result      a score with its interval, and the rewards and texts that it is made of
    Arm         one way to answer at test time: its Result, its tokens, its workings
    results     the answers of a policy to held-out problems, greedy and sampled
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minipost.errors import MinipostError
from minipost.measure.stats import Score, interval

TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}  # temperatures of the held-out answers


@dataclass(frozen=True)
class Result:
    """A score and its data: one reward and one text for each measured problem.

    rows: the indices of those problems in their split, or None if all were measured.
    """

    score: Score
    rewards: Sequence[float]
    texts: Sequence[str]
    rows: Sequence[int] | None = None

    @classmethod
    def of(cls, rewards, texts, rows=None, score=None):
        """A Result whose score is the mean of the rewards, unless another is given."""
        return cls(score or interval(rewards), rewards, texts, rows)

    def of_each(self, n):
        """The rewards in the order of a split's n problems, None for one that was not measured.

        n: 0 where it is not known how many there are; then the last one measured is the last.
        """
        if self.rows is None:
            return [*self.rewards]
        known = dict(zip(self.rows, self.rewards, strict=True))
        return [known.get(row) for row in range(max(n, 1 + max(known, default=-1)))]

    @classmethod
    def from_data(cls, data):
        """A Result from the data of `asdict`, after JSON; TypeError or ValueError if it is none."""
        found = cls(Score(**data["score"]), data["rewards"], data["texts"], data.get("rows"))
        numbers = [*asdict(found.score).values(), *found.rewards, *(found.rows or [])]
        if not all(type(n) in (int, float) for n in numbers) or len(found.texts) != len(
                found.rewards) or not all(isinstance(text, str) for text in found.texts):
            raise ValueError("a result holds other things than numbers and texts")
        return found


def on_both(one, other):
    """Two Results, each of the problems that both have measured; their scores stay those of all."""
    if one.rows == other.rows:
        return one, other
    places = [{row: k for k, row in enumerate(range(len(found.rewards)) if found.rows is None else
                                              found.rows)} for found in (one, other)]
    rows = sorted(places[0].keys() & places[1].keys())
    return tuple(Result(found.score, [found.rewards[at[row]] for row in rows],
                        [found.texts[at[row]] for row in rows], rows)
                 for found, at in zip((one, other), places, strict=True))


@dataclass(frozen=True)
class Arm:
    """One way to answer some problems at test time.

    tokens: the cost of all problems together.  workings: plain data on how each was answered.
    """

    name: str
    tokens: float
    result: Result
    workings: Sequence[Any]

    @classmethod
    def of(cls, name, tokens, rewards, answers, workings):
        return cls(name, tokens, Result.of(rewards, answers), workings)

    @property
    def each(self):
        """Tokens per problem."""
        return self.tokens / len(self.result.rewards)


# ---- measuring a policy

def splits(task, n):
    """The splits of a task to measure: {name: problems}, the headline first.

    MinipostError where they hold no problem, unless those of a file are too few (File.few).
    """
    found = {"held-out": task.heldout(n)} if task.splits is None else task.splits(n)
    found = {name: rows for name, rows in found.items() if rows}
    if not found and not getattr(task, "few", ""):
        raise no_held_out(task)
    return found


def no_held_out(task):
    """The MinipostError on a task without held-out problems."""
    return MinipostError(f"the task {task.name} holds out no problems, so nothing can be measured; "
                         "choose other knobs, let its heldout(n) return some, or train with "
                         "--eval-n 0")


def evaluate(run, problems, temperature, module=None, purpose="evaluation"):
    """Answer each problem once and grade the answers.  Temperature 0 is greedy.  -> Result

    It leaves out answers to which no reward function applies.
    """
    with run.aside():
        rollout = run.sample(problems, 1, temperature=temperature, module=module, purpose=purpose)
    return of_known(run, run.grade(problems, rollout, none=True).tolist(), run.texts(rollout))


def of_known(run, rewards, texts):
    """The Result of those answers that have a reward.  MinipostError where none has one."""
    rows = [row for row, reward in enumerate(rewards) if reward == reward]
    if not rows:
        raise MinipostError(f"the reward function {run.reward.__qualname__} applies to none of the "
                            f"{len(rewards)} held-out problems: it returned None for row 0 and for "
                            "all others")
    if len(rows) == len(rewards):
        return Result.of(rewards, texts)
    return Result.of([rewards[row] for row in rows], [texts[row] for row in rows], rows)


def forecast(run, splits, measure):
    """Seconds that measure(splits) takes if no answer ends before it must; None if unknown.

    It is timed on 1 and 4 problems of each split with answers of 2 and 10 tokens, and goes on from
    there bilinearly: c + p n + t m + s n m of n problems and m tokens.  No reward is asked for.
    """
    most, room, reward = max(map(len, splits.values())), run.max_new_tokens, run.reward
    if most <= 4:
        return None
    seconds, (few, some), (short, longer) = {}, (1, 4), (2, 10)
    run.reward = lambda prompts, completions, **columns: list(map(float, range(len(completions))))
    try:
        for n, m in [(few, short), (few, short), (few, longer), (some, short), (some, longer)]:
            run.max_new_tokens, start = m, time.perf_counter()
            measure({name: problems[:n] for name, problems in splits.items()})
            seconds[n, m] = time.perf_counter() - start  # of the first again: it warms up
    except MinipostError:  # such as of so few problems none that can be measured
        return None
    finally:
        run.reward, run.max_new_tokens = reward, room
    down, across = (most - few) / (some - few), (room - short) / (longer - short)
    few_, some_ = (max(0.0, seconds[n, longer] - seconds[n, short]) * across + seconds[n, short]
                   for n in (few, some))
    return max(some_, few_ + (some_ - few_) * down)


def results(run, splits, module=None):
    """{split: {"greedy" or "sampled": Result}} of the policy, or of another module."""
    return {split: {metric: evaluate(run, problems, temperature, module)
                    for metric, temperature in TEMPERATURES.items()}
            for split, problems in splits.items()}


def as_data(results):
    """Results by split and metric, as data for JSON."""
    return {split: {metric: asdict(result) for metric, result in found.items()}
            for split, found in results.items()}


def from_data(data):
    """The inverse of `as_data`."""
    return {split: {metric: Result.from_data(result) for metric, result in found.items()}
            for split, found in data.items()}
