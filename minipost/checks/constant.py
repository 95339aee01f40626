"""What one and the same answer to every problem earns: the shortcut that a policy finds first.

Where most rows say "yes", or the right one of a list mostly stands in one place, learning ends in
naming that.
"""

from collections import Counter

from minipost.checks.data import reference
from minipost.checks.finding import NONE, OK, WARNING, Finding
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
            count.update({str(each): 0 for each in (text, right)
                          if isinstance(each, str | int | float)}.keys())
        else:
            count[f"Answer: {answers.stated(text)}" if answers.marked(text) else text] += 1
    return [text for text, n in count.most_common(MOST) if n > 1]


def try_all(texts, problems, reward, limit=0.0, tell=lambda texts: None):
    """({text: what it earns on average}, ""); ({}, error) on failure.  As `data.ask_often`."""
    try:
        return {text: mean(ask(reward, problems, same, limit, tell(same)))
                for text in texts for same in [[text] * len(problems)]}, ""
    except MinipostError as error:
        return {}, str(error)


def one_answer_to_all(values, earned, error=""):
    """No answer to every problem earns half of what reference answers do, and more than the policy.

    values: of `data.ask_often`.  earned: {answer: what it earns on average}.
    """
    if error:
        return Finding(NAME, NONE, error)
    if not values["reference"]:
        return Finding(NAME, NONE, "there are no answers that are known to be good")
    if not earned:
        return Finding(NAME, OK, "hardly two problems have the same answer")
    text = max(earned, key=earned.__getitem__)
    sampled, known = mean(values["once"]), mean(values["reference"])
    low = min(*values["once"], *values["empty"], *values["reference"], *earned.values())
    what = (f"{text[:40]!r} to every problem earns {earned[text]:.3f} on average, sampled answers "
            f"{sampled:.3f}")
    if earned[text] > sampled and 2 * (earned[text] - low) >= known - low:
        return Finding(
            NAME, WARNING, f"{what} and reference answers {known:.3f}",
            "a policy can earn that without reading a problem",
            "add problems with other answers, or hold what is learnt against this figure")
    return Finding(NAME, OK, what)


def mean(values):
    return sum(values) / len(values)
