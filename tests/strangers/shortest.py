"""The shortest of several answers: a way to answer in one file."""

from dataclasses import dataclass

from minipost.errors import Bounded

TASK, KNOBS = "arithmetic", {"terms": 3}
BEFORE, AFTER = "1 sample", "shortest of {group_size}"


@dataclass(frozen=True)
class Config(Bounded):
    """Sample and keep the shortest."""

    group_size: int = 3  # answers to a problem (G)


def solve(problems, tools, cfg):
    """The shortest sample of each problem: (answers, workings)."""
    drawn = tools.sample([p.prompt for p in problems], cfg.group_size)
    return [min(texts, key=len) for texts in drawn], [{"samples": texts} for texts in drawn]


def arms(problems, tools, cfg):
    """Yield the Arms of one sample and of the shortest of several."""
    for name, n in ((BEFORE, 1), (AFTER.format(**vars(cfg)), cfg.group_size)):
        start = tools.tokens
        yield tools.arm(name, problems, *solve(problems, tools, Config(n)), start)


def show(working):
    """The samples as lines."""
    return [repr(text) for text in working["samples"]]
