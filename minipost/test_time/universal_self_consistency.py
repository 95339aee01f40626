"""Universal self-consistency: sample n answers, let the model itself say on which most agree
(survey sec. 5.5; Chen et al. 2023, arxiv.org/abs/2311.17311).

    y_i ~ pi(. | x),    k ~ pi(. | a prompt that lists y_1 ... y_n),    answer = y_k

A vote (self_consistency.py) needs to know which answers are the same.  Where one value has many
forms, as programs, summaries and expressions have, a vote by the letter finds hardly two alike.
Here nothing reads the answers but the model.  The vote by value, for which the task works every
answer out, is what the choice can reach; the paper has it for sums, and for programs, which it
runs.

We differ in four places.  The paper has 8 answers to a problem, we have 5.  Its prompt holds the
problem and whole responses; ours holds final answers and no problem, which fits a small context
(`task.choosing`).  Its reply begins with the choice; ours works the answers out first.  And a large
model chooses unprepared; a nano model is taught to, by SFT: checkpoints/chooser
(minipost/tasks/choose.py).  The choice is greedy.  A reply that names no answer counts as the
first.

The arms: one sample, the votes by text and by value, the choice, the choice from the list turned
round, and how often the two come to the same value.  A choice that goes by places does not; nor
does a perfect one where two values tie.  If the task's answers may take any form, all are measured
on plain answers too, where a vote is at home.
"""

from dataclasses import dataclass, replace

from minipost.errors import Bounded, MinipostError
from minipost.measure.results import Arm
from minipost.measure.stats import winner
from minipost.tasks import answers

TASK, KNOBS = "choose", {}
MODEL = "checkpoints/chooser"
BEFORE, AFTER = "vote by text", "universal"
PAIRS = (("1 sample", "universal"), ("vote by value", "universal"),
         ("universal", "universal, turned round"),
         ("vote by text, plain", "universal, plain"))


@dataclass(frozen=True)
class Config(Bounded):
    """Sampled answers, and the model's own choice of the most consistent."""

    group_size: int = 5         # answers to a problem (n)


def choose(problems, drawn, greedy, task):
    """The model's choice among each problem's answers: (indices from 0 on, replies).

    greedy(texts) -> a reply to each text.  A single answer is not asked about.
    """
    if task.choosing is None:
        raise MinipostError(f"the task {task.name} has no form for a list of answers (no "
                            "`choosing` and `chosen`); choose has one")
    asked = [k for k, texts in enumerate(drawn) if len(texts) > 1]
    found, replies = [0] * len(drawn), [""] * len(drawn)
    for k, reply in zip(asked, greedy([task.choosing(problems[k], drawn[k]) for k in asked]),
                        strict=True):
        number, replies[k] = task.chosen(reply), reply
        if number is not None and 1 <= number <= len(drawn[k]):
            found[k] = number - 1
    return found, replies


def picked(drawn, places, replies=None):
    """(answers, workings) of the answer at each problem's place."""
    return [texts[k] for texts, k in zip(drawn, places, strict=True)], [
        {"listed": texts, "chosen": k, "reply": replies[row] if replies else ""}
        for row, (texts, k) in enumerate(zip(drawn, places))]


def turned(drawn):
    """Each list of answers from its end."""
    return [texts[::-1] for texts in drawn]


def solve(problems, tools, cfg):
    """The answer of each problem that the model chooses: (answers, workings)."""
    drawn = tools.sample([p.prompt for p in problems], cfg.group_size)
    return picked(drawn, *choose(problems, drawn, tools.greedy, tools.task))


def by_text(text):
    """What a vote by the letter counts: the answer as it is written, None if there is none."""
    return answers.stated(text).replace(" ", "") or None


def arms(problems, tools, cfg):
    """Yield the Arm of each way to choose among the same samples."""
    yield from among(problems, tools, cfg)
    if tools.task.forms:
        plain = replace(tools.task, forms=False)
        yield from among([plain.like(p) for p in problems], tools, cfg, ", plain")


def among(problems, tools, cfg, mode=""):
    """Yield the Arms on problems of one mode, whose name ends theirs."""
    task, start = tools.task, tools.tokens
    drawn = tools.sample([p.prompt for p in problems], cfg.group_size)
    spent = tools.tokens - start

    def arm(name, cost, lists, *found):
        texts, workings = picked(lists, *found)
        return Arm.of(f"{name}{mode}", cost, tools.right(problems, texts), texts, workings)

    yield arm("1 sample", spent / cfg.group_size, drawn, [0] * len(drawn))
    for name, ballot in (("vote by text", by_text), ("vote by value", task.ballot)):
        yield arm(name, spent, drawn, [winner(list(map(ballot, texts)))[0] for texts in drawn])
    said = []
    for name, lists in (("universal", drawn), ("universal, turned round", turned(drawn))):
        start = tools.tokens
        places, replies = choose(problems, lists, tools.greedy, task)
        said.append([task.ballot(texts[k]) for texts, k in zip(lists, places)])
        found = arm(name, spent + tools.tokens - start, lists, places, replies)
        yield found
    same = [float(a == b) for a, b in zip(*said, strict=True)]
    yield Arm.of(f"the same turned round{mode}", found.tokens, same, found.result.texts,
                 found.workings)


def show(working):
    """The working as lines."""
    return [*(f"{'->' if k == working['chosen'] else '  '} {k + 1}: {text.strip()!r}"
              for k, text in enumerate(working["listed"])), *working["reply"].split("\n")]
