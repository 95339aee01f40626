"""Choose: sums whose answers may take any form, and lists of such answers of which most agree.

    7+5-3+8=? Any form:         Choose:
    7+5=12                      1: 25-8
    12-3=9                      2: 4+12
    9+8=17                      3: 9+8
    17+8=25                     Most agree on:
    Answer: 25-8                1: 25-8=17a x1
                                2: 4+12=16b x1
    Letters:                    3: 9+8=17a x2
    17 16 17 17 5               Most: a x2
    17a 16b 17a 17a 5c          Answer: 1

A sum is worked in steps, of which `slip` go wrong at random, and what it comes to is stated as a
sum or a difference of two numbers, found by one step more.  One number has up to sixty such forms,
so answers that agree seldom agree to the letter.  Without `forms` an answer is the number and the
cue is "Think:", as in arithmetic.

A list is numbered and names no problem.  The reply works every answer out, letters its value by the
answer that came to it first (a is answer 1), and counts how often it has come so far.  Then it says
which letter has most, the first such of equals, and names its answer.  Any answer on which as many
agree is right.  Lists are drawn from many distributions and not from answers to sums.  One in ten
is held out, by its answers in whatever order (base.is_held_out).

To see where a number came before is what a small model learns last, and a list asks for it once or
twice.  So there are rows as well: every number gets a letter, a new one the next of the alphabet.

An answer is one whole number, or a + b or a - b of two, with or without spaces, and nothing else
(tasks/answers.py has the grammar).  A vote counts what it comes to.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from string import ascii_lowercase

from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.arithmetic import LIMIT, Arithmetic, operands_of
from minipost.tasks.base import Problem, Task, is_held_out, switches

MOST = 6        # answers in a list
LENGTHS = 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6  # of lists, as often; two never agree
LARGEST = 20    # the smaller number of a form is 1..LARGEST
ROW = 24        # numbers in a row, of 3 to 8 values
NOTHING = "?"   # stands in a list for an answer that states nothing
FORM = re.compile(rf"({answers.NATURAL})(?: *([+-]) *({answers.NATURAL}))?")
LETTERED = re.compile(rf"{answers.NATURAL}[a-z](?: {answers.NATURAL}[a-z])*")


@dataclass(frozen=True)
class Choose(Task):
    """Add and subtract a chain of numbers, state the answer in any form; choose among answers."""

    terms: int = 6              # how many numbers are in a chain
    largest: int = 9            # largest operand; operands are 1..largest
    forms: bool = True          # answers may take any form; False: the number alone
    slip: float = 0.13          # chance that a worked step of a demonstration goes wrong
    lists: float = 0.4          # share of training problems that are lists to choose from
    drills: float = 0.5         # share of training problems that are rows of numbers to letter

    name = "choose"

    def __post_init__(self):
        switches(forms=self.forms)
        Arithmetic(self.terms, self.largest)  # which knows the bounds of its knobs
        for name in ("slip", "lists", "drills"):
            if type(value := getattr(self, name)) not in (int, float) or not 0 <= value <= 1:
                raise MinipostError(f"{name} is {repr(value)[:40]}; expected 0 to 1")
        if self.lists + self.drills > 1:
            raise MinipostError(f"lists is {self.lists} and drills {self.drills}; expected at most "
                                "1 together, since the rest are sums")

    @cached_property
    def sums(self):
        return Arithmetic(self.terms, self.largest)

    def sample(self, n, rng):
        """Draw n training problems with `rng`, lists and rows among them.  None is held out.

        Sums are asked for in both ways, three in four in any form, also without `forms`.
        """
        found = []
        for _ in range(n):
            kind = rng.random()
            if kind < self.drills:
                found.append(row(rng))
            elif kind < self.drills + self.lists:
                found.append(self._list(next(draws(rng, held=False))))
            else:
                problem, = self.sums.sample(1, rng)
                found.append(self._sum(problem, rng.random() < 0.75))
        return found

    def heldout(self, n):
        """Return the first n held-out sums in a fixed order, fewer if there are fewer."""
        return [self._sum(p, self.forms) for p in self.sums.heldout(n)]

    def splits(self, n):
        """What a run reports: held-out lists and held-out sums."""
        found = islice(draws(random.Random("held-out lists"), held=True), n)
        return {"lists": [self._list(entries) for entries in found], "held-out": self.heldout(n)}

    def demonstrate(self, problem, rng=None):
        """A completion, with slips in the steps of a sum; a list or a row is never misread."""
        rng = rng or random.Random(0)
        if problem.columns["row"]:
            return lettered(problem.columns["row"])
        if not problem.columns["chain"]:
            return reply(problem.columns["list"])
        text = self.sums.demonstrate(problem, rng, self.slip)
        if not problem.columns["any_form"]:
            return text
        steps, _, answer = text.rpartition("Answer: ")
        total = int(answer)
        n, form = formed(total, rng)
        return f"{steps}{total}{n:+d}={total + n}\nAnswer: {form}"

    def like(self, problem):
        """The same sum in this task's wording."""
        return self._sum(problem, self.forms)

    def choosing(self, problem, texts):
        """The prompt that lists these answers, at most MOST, and asks on what most agree."""
        if len(texts) > MOST:
            raise MinipostError(f"a list of the task choose has at most {MOST} answers, not "
                                f"{len(texts)}; choose a smaller --group-size")
        return listed([spelt(text) for text in texts])

    def chosen(self, text):
        """The number that a reply to `choosing` names, from 1 on; None if it names none."""
        return answers.whole(answers.stated(text)) if answers.marked(text) else None

    def parse(self, text):
        """The whole number that a text states in any form, or the lettered row it is, or None."""
        number = value(answers.stated(text))
        whole = answers.spell(text).strip()
        return whole if number is None and LETTERED.fullmatch(whole) else number

    def reward(self, prompts, completions, good, row, **columns):
        """1.0 for each completion that states what is good, or letters its row, else 0.0."""
        return [float(self.parse(text) in ((lettered(numbers),) if numbers else right))
                for text, right, numbers in zip(completions, good, row, strict=True)]

    def _sum(self, problem, any_form):
        chain = problem.columns["chain"]
        total = sum(operands_of(chain))
        return Problem(f"{chain}=? {'Any form' if any_form else 'Think'}:\n",
                       {"chain": chain, "any_form": any_form, "list": (), "row": (),
                        "good": (total,)})

    def _list(self, entries):
        return Problem(listed(entries), {"chain": "", "any_form": True, "list": tuple(entries),
                                         "row": (), "good": agreed(entries)[1]})


def value(entry):
    """What an answer, as `stated` gives it or as it stands in a list, comes to; None if nothing."""
    found = FORM.fullmatch(entry)
    if found is None:
        return answers.whole(entry)             # which may have a sign
    a, sign, b = found.groups()
    return int(a) + int((sign or "+") + (b or "0"))


def spelt(text):
    """An answer as a list shows it."""
    entry = answers.stated(text).replace(" ", "")
    return NOTHING if value(entry) is None else entry


def listed(entries):
    """The prompt of a list."""
    lines = [f"{k}: {entry}" for k, entry in enumerate(entries, 1)]
    return "\n".join(["Choose:", *lines, "Most agree on:\n"])


def agreed(entries):
    """(the value that most entries have, the numbers of all entries of which none has more)."""
    values = [value(entry) for entry in entries]
    counts = [-1 if v is None else values.count(v) for v in values]
    return values[counts.index(max(counts))], tuple(
        k for k, count in enumerate(counts, 1) if count == max(counts))


def reply(entries):
    """The reply to a list: every entry worked out, on what most agree, the first such entry."""
    lines, values = [], []
    for k, entry in enumerate(entries, 1):
        values.append(value(entry))
        result = f"={values[-1]}" if set("+-") & set(entry) else ""
        if values[-1] is None:
            lines.append(f"{k}: {entry} x0")
        else:
            letter = ascii_lowercase[values.index(values[-1])]
            lines.append(f"{k}: {entry}{result}{letter} x{values.count(values[-1])}")
    most, (first, *_) = agreed(entries)
    count = 0 if most is None else values.count(most)
    return "\n".join([*lines, f"Most: {ascii_lowercase[first - 1]} x{count}", f"Answer: {first}"])


def row(rng):
    """A row of numbers to letter, of few values near each other."""
    values = near(rng)
    pool = rng.sample(values, min(len(values), rng.randint(3, 8)))
    numbers = tuple(rng.choice(pool) for _ in range(ROW))
    return Problem("\n".join(["Letters:", " ".join(map(str, numbers)), ""]),
                   {"chain": "", "any_form": True, "list": (), "row": numbers, "good": ()})


def lettered(numbers):
    """The reply to a row: each number with the letter of its value."""
    letters = {n: ascii_lowercase[k] for k, n in enumerate(dict.fromkeys(numbers))}
    return " ".join(f"{n}{letters[n]}" for n in numbers)


def near(rng):
    """Numbers from 0 to LIMIT, most of them within 6 of one of them."""
    centre = rng.randint(0, LIMIT)
    return [v for v in range(LIMIT + 1) if abs(v - centre) <= 6 or rng.random() < 0.05]


def formed(total, rng):
    """A number from 0 to LIMIT as a sum or a difference of two: (what is added to it, form)."""
    n = rng.randint(1, LARGEST)
    if total + n <= LIMIT and (n > total or rng.random() < 0.5):
        return n, f"{total + n}-{n}"
    pair = [min(n, total), total - min(n, total)]
    rng.shuffle(pair)
    return -min(n, total), f"{pair[0]}+{pair[1]}"


def draws(rng, held):
    """Yield lists of one split."""
    while True:
        if is_held_out(entries := drawn(rng)) == held:
            yield entries


def drawn(rng):
    """Answers of 2 to MOST, of which most agree on one value.

    All are apart in lists of 2, and in one of twenty others.
    At most half of them, rounded up, agree, in any places, as among samples.  Were they more, who
    always names one place would be right of most lists.  One list in four is of numbers alone.  One
    answer in fifty, but not of those that agree, states nothing.
    """
    k, values = rng.choice(LENGTHS), near(rng)
    first, *others = rng.sample(values, min(len(values), MOST))
    alone = k == 2 or rng.random() < 0.05
    places = {0} if alone else {*rng.sample(range(k), rng.randint(2, (k + 1) // 2))}
    pool = [v for v in others for _ in range(max(1, len(places) - 1))]
    rest = rng.sample(pool, len(pool)) if rng.random() < 0.5 else pool    # few others, or many
    any_form, entries = rng.random() < 0.75, []
    for place in range(k):
        number = first if place in places else rest.pop(0)
        entry = formed(number, rng)[1] if any_form else str(number)
        entries.append(NOTHING if place not in places and rng.random() < 0.02 else entry)
    return entries
