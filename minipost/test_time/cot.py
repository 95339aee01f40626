"""Chain of thought: worked steps against an answer at once (survey sec. 5.4; Wei et al. 2022,
arxiv.org/abs/2201.11903).

The same model answers the same problems in four ways.  A cue tells it to answer at once or to think
(zero-shot, Kojima et al. 2022, arxiv.org/abs/2205.11916).  Or it sees examples of either and no cue
(few-shot).  A cue names a mode that the model was trained in, and so does an example.  So this
measures what the steps are worth to the model, not whether thinking emerges.
"""

import random
from dataclasses import dataclass, replace

from minipost.errors import Bounded, MinipostError

TASK, KNOBS = "arithmetic", {"terms": 7, "largest": 60}
BEFORE, AFTER = "direct", "worked"


@dataclass(frozen=True)
class Config(Bounded):
    """Answer greedily, at once and in steps."""

    shots: int = 2              # examples in a few-shot prompt


def few_shot(task, problems, shots, rng):
    """A prompt for each problem: `shots` solved training problems, then this one without a cue.

    No example asks the same question.  MinipostError if the task has hardly another one.
    """
    prompts = []
    for problem in problems:
        asked, others = task.example(problem), []
        for _ in range(100):
            if len(others) < shots:
                others += [p for p in task.sample(shots - len(others), rng)
                           if task.example(p) != asked]
        if len(others) < shots:
            raise MinipostError(f"the task {task.name} has no examples for {asked.strip()!r} but "
                                "the problem itself; choose knobs that leave more problems")
        prompts.append("".join(task.example(p, task.demonstrate(p, rng)) for p in others) + asked)
    return prompts


def solve(problems, tools, cfg):
    """The likeliest worked answer to each problem: (answers, workings)."""
    answers = tools.greedy([p.prompt for p in problems])
    return answers, [{"steps": text.split("\n")} for text in answers]


def arms(problems, tools, cfg):
    """Yield the Arm of each way to answer."""
    task = tools.task
    if task.example is None or task.direct:
        raise MinipostError(f"the task {task.name} cannot be asked for an answer with and without "
                            "worked steps; arithmetic can, without --direct")
    direct = replace(task, direct=True, hurried=False)
    for name, way in (("direct", direct), ("worked", task)):
        asked = {name: [way.like(p).prompt for p in problems],
                 f"{name}, {cfg.shots} examples": few_shot(way, problems, cfg.shots,
                                                           random.Random(0))}
        for arm, prompts in asked.items():
            start, answers = tools.tokens, tools.greedy(prompts)
            workings = [{"steps": text.split("\n")} for text in answers]
            yield tools.arm(arm, problems, answers, workings, start)


def show(working):
    """The working as lines."""
    return working["steps"]
