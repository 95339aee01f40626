"""What one and the same answer to every problem earns: the shortcut that a policy finds first.

Where most rows say "yes", or the right one of a list mostly stands in one place, learning ends in
naming that.
"""

from collections import Counter
from statistics import fmean

from minipost.checks.data import reference
from minipost.checks.finding import OK, WARNING, Finding
from minipost.datasets.rewards import ask
from minipost.errors import MinipostError
from minipost.tasks import answers

MOST = 4    # answers that are tried
ROWS = 64   # problems that they are tried on
NAME = "one answer to all"


def common(task, problems, rng):
    """The answers that several of these problems have, at most MOST, the most frequent first.

    Of a file they are what its rows give, and what they give as `solution` or `answer`.
    """
    count: Counter[str] = Counter()
    for problem in problems:
        text, known = reference(task, problem, rng), problem.columns
        if task.name == "file":
            right = known.get("answer") if known.get("solution") is None else known["solution"]
            count.update([*dict.fromkeys(str(each) for each in (text, right)
                                         if isinstance(each, str | int | float))])
        else:
            count[f"Answer: {answers.stated(text)}" if answers.marked(text) else text] += 1
    return [text for text, n in count.most_common(MOST) if n > 1]


def try_all(texts, problems, reward, limit=0.0, tell=lambda texts: None):
    """({text: what it earns on each problem}, ""); ({}, error) on failure.  As `ask_often`."""
    try:
        return {text: ask(reward, problems, same, limit, tell(same))
                for text in texts for same in [[text] * len(problems)]}, ""
    except MinipostError as error:
        return {}, str(error)


def one_answer_to_all(values, earned, error=""):
    """No answer to every problem earns half of what reference answers do, and more than the policy.

    Where no answers are known to be good, the most that any answer earned stands for them.
    values: of `data.ask_often`.  earned: {answer: what it earns on each problem}.
    """
    if error:
        return Finding(NAME, WARNING, error, "a run would end where its policy says that",
                       "let it return a number for every answer that a row has")
    if not earned:
        return Finding(NAME, OK, "hardly two problems have the same answer")
    pays = {text: fmean(found) for text, found in earned.items()}
    text = max(pays, key=pays.__getitem__)
    every = [*values["once"], *values["empty"], *values["reference"],
             *(value for found in earned.values() for value in found)]
    sampled, low = fmean(values["once"]), min(every)
    known = fmean(values["reference"]) if values["reference"] else max(every)
    what = (f"{text[:40]!r} to every problem earns {pays[text]:.3f} on average, sampled answers "
            f"{sampled:.3f}")
    if pays[text] > sampled and 2 * (pays[text] - low) >= known - low:
        good = "reference answers" if values["reference"] else "the best answers"
        return Finding(
            NAME, WARNING, f"{what} and {good} {known:.3f}",
            "a policy can earn that without reading a problem",
            "add problems with other answers, or hold what is learnt against this figure")
    return Finding(NAME, OK, what)
