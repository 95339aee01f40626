r"""Search: reach a target in the text itself, by attempts, verdicts and backtracking.

The problems are those of countdown.  An answer thinks in attempts, one a line, and then answers
with an expression:

    Reach 24 from 2 4 9 13. Think:
    9*4=36 13-2=11 36-11=25 no
    13+4=17 9-2=7 17+7=24 yes
    Answer: (13+4)+(9-2)

An attempt uses every number once.  A verdict may follow: whether its last number is the target.
After "no" the next attempt begins from the problem's numbers again: that is backtracking.  An
answer without verdicts is a guess.

What the demonstrations show is a knob, so that bases can be trained that differ in nothing else
(Gandhi et al. 2025, arxiv.org/abs/2503.01307):

    single        one attempt and its answer, right or wrong
    backtracking  the same, but in a share `rate` of the texts attempts go on until one is right
    wrong         the same, but these texts leave out what is right, and a wrong attempt ends them
                  that is called right
    full          attempts go on until one is right, in all texts

Attempts come in one fixed order of their first moves, from a random place on and around.  So no
attempt comes twice, and looking longer always pays.  The rest of an attempt is the one that comes
nearest to the target.  Where no attempt is right, as for a hand that needs fractions, all are made.
`most` keeps a text short: of the places from which so many attempts find what is right, it begins
at one.

`mixed` is the share of verdicts that are in German or French.  The rules of a right answer, a
whole form and English verdicts are functions of their own (`rules`), as in DeepSeek-R1 (Guo et al.
2025, arxiv.org/abs/2501.12948, sec. 2.2.2 and 2.3.2).
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from statistics import fmean
from typing import Literal

from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.base import Problem, Task
from minipost.tasks.countdown import Countdown, at_once

LINE = re.compile(rf"(?P<moves>{answers.NATURAL}[-+*/]{answers.NATURAL}={answers.NATURAL}"
                  rf"(?: {answers.NATURAL}[-+*/]{answers.NATURAL}={answers.NATURAL})*)"
                  r"(?: (?P<verdict>[a-z]+))?")
TRACES = ("single", "backtracking", "wrong", "full")
NO, YES = {"en": "no", "de": "nein", "fr": "non"}, {"en": "yes", "de": "ja", "fr": "oui"}
LANGUAGE = {word: code for words in (NO, YES) for code, word in words.items()}


@dataclass(frozen=True)
class Attempt:
    """A line of thought.

    exact: each move is right, and they use each number of the problem once.  result: the last
    number.  verdict: True, False, or None if none is stated.
    """

    moves: tuple[str, ...]
    exact: bool
    result: int
    verdict: bool | None


def matched(lines):
    """Each line's moves and verdict, as LINE finds them; None for a line that is no attempt."""
    found = map(LINE.fullmatch, lines)
    return [each if each and each["verdict"] in (None, *LANGUAGE) else None for each in found]


def read(hand, text):
    """The attempts in an answer, [Attempt].  Other lines are none."""
    found = []
    for match in filter(None, matched(text.split("\n"))):
        moves, word = tuple(match["moves"].split(" ")), match["verdict"]
        found.append(Attempt(moves, walk(hand, moves), parts(moves[-1])[3],
                             None if word is None else word in YES.values()))
    return found


def parts(move):
    """(a, sign, b, result) of a move."""
    made, _, result = move.partition("=")
    a, sign, b = re.split("([-+*/])", made)
    return int(a), sign, int(b), int(result)


def walk(hand, moves):
    """Whether moves are right and use each number of the hand once."""
    left = list(hand)
    for move in moves:
        a, sign, b, result = parts(move)
        for operand in (a, b):
            if operand not in left:
                return False
            left.remove(operand)
        if compute(a, sign, b) != result:
            return False
        left.append(result)
    return len(left) == 1


def compute(a, sign, b):
    """What a move makes if that is a natural number, else None."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    found = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return found if found >= 0 else None


@lru_cache(maxsize=1 << 14)
def firsts(state):
    """The moves from a sorted state in their fixed order: [(move, sorted state after it)]."""
    found = {}
    for i, j in combinations(range(len(state)), 2):
        rest = state[:i] + state[i + 1 : j] + state[j + 1 :]
        for sign in "+-*/":
            a, b = state[j], state[i]
            if (result := compute(a, sign, b)) is not None:
                found.setdefault(f"{a}{sign}{b}={result}", tuple(sorted((*rest, result))))
    return tuple(found.items())


@lru_cache(maxsize=1 << 16)
def nearest(state, target):
    """The moves from a state that come nearest to the target, the first such in order."""
    if len(state) == 1:
        return abs(state[0] - target), ()
    found = [(*nearest(after, target), move) for move, after in firsts(state)]
    gap, rest, move = min(found, key=lambda each: each[0])
    return gap, (move, *rest)


def expression(moves):
    """The expression that moves build."""
    made, whole = {}, ""                        # {number: expressions that make it}
    for move in moves:
        a, sign, b, result = parts(move)
        left, right = (made[n].pop() if made.get(n) else n for n in (a, b))
        whole = f"({left}{sign}{right})"
        made.setdefault(result, []).append(whole)
    return whole[1:-1]


def stated(text):
    """(value, numbers used, expression) of the answer behind "Answer:"; None if there is none."""
    return at_once(text) if answers.marked(text) else None


# ---- rules of a reward

def form(prompts, completions, **columns):
    """1.0 for attempts, at least one, and then an expression in a line of its own, else 0.0."""
    found = []
    for text in completions:
        *lines, last = text.split("\n")
        found.append(float(bool(lines) and all(matched(lines)) and last.startswith("Answer: ")
                           and stated(last) is not None))
    return found


def language(prompts, completions, **columns):
    """The share of an answer's verdicts that are in English; 1.0 without verdicts."""
    found = []
    for text in completions:
        words = [match["verdict"] for match in filter(None, matched(text.split("\n")))
                 if match["verdict"]]
        found.append(fmean(LANGUAGE[word] == "en" for word in words) if words else 1.0)
    return found


@dataclass(frozen=True)
class Search(Task):
    """Countdown with the search in the text: attempts, verdicts, backtracking, an answer."""

    numbers: int = 3            # how many numbers to combine, 3 or 4
    largest: int = 13           # the numbers are 1..largest
    target: int = 0             # 0: any reachable target from 10 to 99; 24: the Game of 24
    traces: Literal["single", "backtracking", "wrong", "full"] = "full"  # what demonstrations show
    rate: float = 0.1           # share of demonstrations that go on after a failed attempt
    mixed: float = 0.0          # share of verdicts that are not in English
    most: int = 0               # attempts that a demonstration may take to what is right; 0: any

    name = "search"
    rules = {"format": form, "language": language}

    def __post_init__(self):
        if self.traces not in TRACES:
            raise MinipostError(f"traces is {repr(self.traces)[:40]}; expected one of "
                                + ", ".join(TRACES))
        for name in ("rate", "mixed"):
            if type(value := getattr(self, name)) not in (int, float) or not 0 <= value <= 1:
                raise MinipostError(f"{name} is {repr(value)[:40]}; expected 0 to 1")
        if type(self.most) is not int or not 0 <= self.most <= 100:
            raise MinipostError(f"most is {repr(self.most)[:40]}; expected 0 to 100")
        Countdown(self.numbers, self.largest, self.target)  # which knows the bounds of its knobs

    @cached_property
    def game(self):
        return Countdown(self.numbers, self.largest, self.target, True)

    def sample(self, n, rng):
        """Draw n training problems with `rng`.  None has held-out numbers."""
        return [self._problem(p) for p in self.game.sample(n, rng)]

    def heldout(self, n):
        """Return the first n held-out problems in a fixed order, fewer if there are fewer."""
        return [self._problem(p) for p in self.game.heldout(n)]

    def _problem(self, problem):
        return Problem(problem.prompt.removesuffix("Answer:") + "Think:\n", problem.columns)

    def demonstrate(self, problem, rng=None):
        """A text as `traces` says."""
        rng = rng or random.Random(0)
        state, target = tuple(sorted(problem.columns["numbers"])), problem.columns["target"]
        tried = [(move, *nearest(after, target)[1]) for move, after in firsts(state)]
        right = [parts(moves[-1])[3] == target for moves in tried]
        starts = [k for k in range(len(tried)) if not self.most or True not in right
                  or True in (right[k:] + right[:k])[: self.most]]
        k = rng.choice(starts)
        tried, right = tried[k:] + tried[:k], right[k:] + right[:k]
        if self.traces == "single" or self.traces != "full" and rng.random() >= self.rate:
            return self._text(tried[:1], target, None, rng)
        if self.traces == "wrong":
            wrong = [moves for moves, good in zip(tried, right) if not good] or tried[:1]
            return self._text(wrong[: rng.randint(1, self.most or len(wrong))], target, YES, rng)
        if True not in right:
            return self._text(tried[: self.most or None], target, NO, rng)
        return self._text(tried[: right.index(True) + 1], target, YES, rng)

    def _text(self, tried, target, last, rng):
        """Attempts, with verdicts unless `last` is None: "no", and at the end a word of `last`."""
        lines = []
        for k, moves in enumerate(tried):
            words = NO if k < len(tried) - 1 else last
            code = rng.choice(("de", "fr")) if rng.random() < self.mixed else "en"
            lines.append(" ".join(moves) + (f" {words[code]}" if last else ""))
        return "\n".join([*lines, f"Answer: {expression(tried[-1])}"])

    def thinking(self, problem, text):
        """What the thought in an answer consists of: counts of attempts, backtracks and checks.

        distinct: attempts with a first move that no earlier one had.  sound: checks whose verdict
        is true of exact moves.
        """
        target, tried = problem.columns["target"], read(problem.columns["numbers"], text)
        checks = [each for each in tried if each.verdict is not None]
        return {
            "attempts": len(tried),
            "distinct": len({each.moves[0] for each in tried}),
            "backtracks": sum(each.verdict is False for each in tried[:-1]),
            "checks": len(checks),
            "sound": sum(each.exact and each.verdict == (each.result == target)
                         for each in checks),
        }

    def reflections(self, text):
        """Where an attempt ends, in front of its verdict if it has one: [place in the text]."""
        found, start = [], 0
        for line, match in zip(lines := text.split("\n"), matched(lines)):
            if match:
                found.append(start + match.end("moves"))
            start += len(line) + 1
        return found

    def parse(self, text):
        """The value of the expression behind "Answer:", or None."""
        found = stated(text)
        return found and found[0]

    def ballot(self, text):
        """What a vote counts: the expression, since every right answer has the same value."""
        found = stated(text)
        return found and found[2]

    def reward(self, prompts, completions, numbers, target, **columns):
        """1.0 if the answer makes the target from all the numbers, else 0.0."""
        found = [stated(text) for text in completions]
        return [float(each is not None and each[:2] == (goal, sorted(hand)))
                for each, hand, goal in zip(found, numbers, target, strict=True)]
