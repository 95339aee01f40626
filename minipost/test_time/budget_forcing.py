"""Budget forcing: the length of a thought is set from outside (s1, Muennighoff et al. 2025,
arxiv.org/abs/2501.19393; in no section of the survey).

A model that thinks in its text says by itself when the thought is over: by a line that begins with
`end`.  Two interventions set the length of the thought between two bounds:

    at least    where the model ends its thought, the end is taken away, `wait` is put in, and it
                goes on, `waits` times
    at most     after `budget` lines of thought `end` is put in, and it answers

The paper's `wait` is the word Wait, which lets its model doubt.  The texts of the task search know
no such word; what stands there when a line of thought was no good is the verdict "no", so that is
the default.  It is put in whether or not the thought was right: one wait makes a model search that
seldom does, and those after it deny what was found.

The control spends as many tokens on whole answers and lets them vote.  What was
sampled and taken away counts.
"""

from dataclasses import dataclass, replace

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import winner

TASK, KNOBS = "search", {}
MODEL = "checkpoints/seeker"
BEFORE, AFTER = "as it ends", "waits {waits}"
VOTE = "vote, tokens of waits {waits}"
PAIRS = ((VOTE, AFTER),)


@dataclass(frozen=True)
class Config(Bounded):
    """A thought that may not end too early, nor too late."""

    waits: int = 1              # how often the end of a thought is taken away
    budget: int = 16            # lines of thought, at most; then an answer is asked for
    wait: str = " no"           # what is put in at the end of the last line, in place of the end
    end: str = "Answer:"        # how the line begins that ends a thought
    curve: tuple[int, ...] = (0, 1, 2, 4)  # further numbers of waits to measure
    cuts: tuple[int, ...] = (1, 2, 4, 8)   # further budgets to measure, with as many waits

    LIMITS = {"waits": ">= 0, <= 10000", "budget": ">= 0, <= 10000"}

    def __post_init__(self):
        super().__post_init__()
        for name in ("curve", "cuts"):
            if not all(0 <= n <= 10_000 for n in getattr(self, name)):
                raise MinipostError(f"{name} is {getattr(self, name)}; expected numbers from 0 to "
                                    "10000")


def search(prompts, step, sample, *, heard, mark, waits, budget, wait, end):
    """[(answer, lines of thought, waits put in)] of each prompt.

    step(texts, n) -> n continuations by one line; one without `mark` ends the answer.
    sample(texts, n) -> n continuations to the end of the answer.
    heard(text, more, over) -> whether `more` fits behind a text, over its end `over`.  Where it
    does not, nothing is put in, and the answer ends.
    """
    found: list[list] = [["", 0, 0] for _ in prompts]       # answer so far, lines, waits
    going = list(range(len(prompts)))
    while going:
        cut = [k for k in going if found[k][1] >= budget
               and heard(prompts[k] + found[k][0], end, "")]
        for k, (more,) in zip(cut, sample([prompts[k] + found[k][0] + end for k in cut], 1)):
            found[k][0] += end + more
        going, still = [k for k in going if found[k][1] < budget], []
        for k, (more,) in zip(going, step([prompts[k] + found[k][0] for k in going], 1)):
            text, lines, put = found[k]
            ends = more.startswith(end) or mark not in more
            if not ends:
                found[k][:] = text + more, lines + 1, put
            elif put < waits and lines and heard(prompts[k] + text, wait + mark, mark):
                found[k][:] = text.removesuffix(mark) + wait + mark, lines, put + 1
            else:
                found[k][0] = text + more
                continue
            still.append(k)
        going = still
    return [tuple(each) for each in found]


def solve(problems, tools, cfg):
    """The answer after each forced thought: (answers, workings)."""
    found = search([p.prompt for p in problems], tools.step, tools.sample, heard=tools.heard,
                   mark=tools.mark, waits=cfg.waits, budget=cfg.budget, wait=cfg.wait, end=cfg.end)
    return [text for text, _, _ in found], [
        {"text": text, "lines of thought": lines, "waits": put} for text, lines, put in found]


def arms(problems, tools, cfg):
    """Yield the Arms: the thought as it ends, with waits, cut at budgets, and a vote."""
    spent = 0
    for waits in sorted({0, *cfg.curve, cfg.waits}):
        start = tools.tokens
        answers, workings = solve(problems, tools, replace(cfg, waits=waits))
        spent = tools.tokens - start if waits == cfg.waits else spent
        arm = tools.arm(BEFORE, problems, answers, workings, start)
        if not waits:
            yield arm
        if waits or not cfg.waits:  # with --waits 0 the two that are compared are one
            yield replace(arm, name=f"waits {waits}")
    for budget in sorted({*cfg.cuts} - {cfg.budget}):
        start = tools.tokens
        answers, workings = solve(problems, tools, replace(cfg, budget=budget))
        yield tools.arm(f"waits {cfg.waits}, cut at {budget}", problems, answers, workings, start)
    start, drawn = tools.tokens, [[] for _ in problems]
    while tools.tokens - start < spent:
        for mine, (text,) in zip(drawn, tools.sample([p.prompt for p in problems], 1)):
            mine.append(text)
    answers = [mine[winner([tools.task.ballot(text) for text in mine])[0]] for mine in drawn]
    yield tools.arm(VOTE.format(waits=cfg.waits), problems, answers,
                    [{"text": text, "lines of thought": text.count(tools.mark), "waits": 0}
                     for text in answers], start)


def show(working):
    """The text, line by line, and how much was forced."""
    return [*working["text"].strip().split("\n"), f"{working['lines of thought']} lines of "
            f"thought, {working['waits']} waits put in"]
