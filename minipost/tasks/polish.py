"""Polish: sums written in a cluttered way, and the same sums more clearly.

    7 (3)+twice 4+61-61-3 (8)=? Answer:

A number in brackets is a remark and does not count, "twice 4" is 8, and terms side by side may
cancel.  Pairs that were put in have two digits and no number twice: a small model copies by what
stands before, and that is not to be ambiguous.  Three rewordings, one after another, go by what the
paper of Self-Polish asks of a problem (arxiv.org/abs/2305.14497, sec. 3.1):

    focus      7+twice 4+61-61-3=?      without remarks
    clarity    7+8+61-61-3=?            amounts as numbers
    concision  7+8-3=?                  without pairs that cancel; the first term stays

A problem, as it is given or at any stage, is answered at once, " 12", or asks to be reworded, with
the cue "Polish:".  The reply is the next stage and no more.  A rewording without effect is passed
over; the last is made again where a pair stood within a pair; a clear sum stays as it is.  Training
problems are of both kinds and of all stages.  Held-out problems are to be answered as they are
given.  No held-out sum has neighbours that cancel behind its first term: what is left of such a sum
is left of sums that are not held out too, so training would draw it.

An answer is one whole number and nothing else (tasks/answers.py has the grammar).  A rewording is
right if it asks for the same number.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.arithmetic import Arithmetic, distinct, operands_of
from minipost.tasks.base import Problem, Task, within

STAGES = 3      # rewordings of a training problem, at most
CUE, ANSWER = " Polish:", " Answer:"
NUMBER = "[0-9]{1,3}"
TERM = re.compile(rf"([+-]?)(twice )?({NUMBER})( \({NUMBER}\))?")
PROBLEM = re.compile(rf"(?:twice )?{NUMBER}(?: \({NUMBER}\))?"
                     rf"(?:[+-](?:twice )?{NUMBER}(?: \({NUMBER}\))?){{0,40}}=\?")


@dataclass(frozen=True)
class Polish(Task):
    """Answer a cluttered sum at once, or write it more clearly; the answer is a number, 0..99."""

    terms: int = 4              # how many numbers count
    largest: int = 9            # largest of them
    clutter: int = 3            # remarks, and pairs that cancel; in training 0 to so many
    rewording: float = 0.5      # share of training problems that ask to be reworded

    name = "polish"

    def __post_init__(self):
        Arithmetic(self.terms, self.largest)  # which knows the bounds of its knobs
        within(2, 24, terms=self.terms)       # PROBLEM has room for them and for all pairs
        within(0, 8, clutter=self.clutter)
        if type(self.rewording) not in (int, float) or not 0 <= self.rewording <= 1:
            raise MinipostError(f"rewording is {repr(self.rewording)[:40]}; expected 0 to 1")

    @cached_property
    def sums(self):
        return Arithmetic(self.terms, self.largest)

    def sample(self, n, rng):
        """Draw n training problems with `rng`, of all stages.  None has held-out operands."""
        found = []
        for problem in self.sums.sample(n, rng):
            words = cluttered(problem.columns["chain"], rng.randint(0, self.clutter),
                              rng.randint(0, self.clutter), rng)
            cue = CUE if rng.random() < self.rewording else ANSWER
            found.append(posed(stage(words, rng.randint(0, STAGES)), problem.columns["answer"],
                               cue))
        return found

    def heldout(self, n):
        """The first n held-out problems in a fixed order, fewer if there are fewer."""
        rng = random.Random(f"cluttered {self.clutter}")
        whole = (p for p in self.sums.held()
                 if (words := f"{p.columns['chain']}=?") == reworded(words))
        made = (posed(cluttered(p.columns["chain"], self.clutter, self.clutter, rng),
                      p.columns["answer"]) for p in whole)
        return list(islice(distinct(made), n))

    def splits(self, n):
        """What a run reports: held-out problems, the clear ones that they are, and rewordings."""
        found = self.heldout(n)

        words = [(p, p.columns["words"]) for p in found]
        return {"held-out": found, "clear": [self.polished(p, clear(text)) for p, text in words],
                "rewordings": [self.polish(self.polished(p, stage(text, k % STAGES)))
                               for k, (p, text) in enumerate(words)]}

    def demonstrate(self, problem, rng=None):
        """The answer, or the next stage of the problem's words."""
        if problem.columns["reworded"]:
            return f" {reworded(problem.columns['words'])}"
        return f" {problem.columns['answer']}"

    def polish(self, problem):
        """The problem that asks for this problem in clearer words."""
        return posed(problem.columns["words"], problem.columns["answer"], CUE)

    def polished(self, problem, text):
        """The problem in the words of a reply, whatever they say: its first line that says any."""
        return posed(text.strip().partition("\n")[0].strip(), problem.columns["answer"])

    def keeps(self, problem):
        """Whether the words of a problem ask for its answer."""
        return asked_for(problem.columns["words"]) == problem.columns["answer"]

    def parse(self, text):
        """The whole number that a text states, or the problem that it is, or None."""
        number = answers.whole(answers.stated(text))
        if number is not None:
            return number
        words = answers.spell(text).strip()
        return words if asked_for(words) is not None else None

    def reward(self, prompts, completions, answer, reworded, **columns):
        """1.0 for each answer, or rewording, that is right, else 0.0."""
        found = []
        for text, right, asked in zip(completions, answer, reworded, strict=True):
            read = self.parse(text)
            if asked:
                read = asked_for(read) if isinstance(read, str) else None
            found.append(float(read == right))
        return found


def posed(words, answer, cue=ANSWER):
    """The Problem of these words."""
    return Problem(words + cue, {"words": words, "answer": answer, "reworded": cue == CUE})


def cluttered(chain, remarks, pairs, rng):
    """The sum with so many remarks and pairs that cancel; half of its even digits as doubles."""
    numbers = operands_of(chain)
    for n in rng.sample(range(10, 100), pairs):
        at, n = rng.randint(1, len(numbers)), rng.choice((-1, 1)) * n
        at += at < len(numbers) and numbers[at - 1] == -numbers[at]  # not within another pair
        numbers[at:at] = [n, -n]
    doubles = [abs(n) < 10 and n % 2 == 0 and rng.random() < 0.5 for n in numbers]
    remarked = rng.sample(range(len(numbers)), min(remarks, len(numbers)))
    notes = {k: rng.randint(1, 9) for k in remarked}
    return spelt([(n, double, notes.get(k))
                  for k, (n, double) in enumerate(zip(numbers, doubles))])


def spelt(terms):
    """Terms [(number, whether as a double, remark or None)] as a problem's words."""
    text = ""
    for n, double, remark in terms:
        text += "-" if n < 0 else "+" if text else ""
        text += f"twice {abs(n) // 2}" if double else str(abs(n))
        text += "" if remark is None else f" ({remark})"
    return f"{text}=?"


def read(words):
    """The terms of a problem, as `spelt` takes them; None if the words are no problem."""
    if not PROBLEM.fullmatch(words):
        return None
    return [(int(n) * (2 if double else 1) * (-1 if sign == "-" else 1), bool(double),
             int(remark[2:-1]) if remark else None)
            for sign, double, n, remark in TERM.findall(words)]


def asked_for(words):
    """The number that a problem asks for; None if the words are no problem."""
    terms = read(words)
    return None if terms is None else sum(n for n, _, _ in terms)


def stage(words, k):
    """The words after k rewordings."""
    for _ in range(k):
        words = reworded(words)
    return words


def clear(words):
    """The words after all rewordings."""
    while (better := reworded(words)) != words:
        words = better
    return words


def reworded(words):
    """The words of a problem, one rewording clearer."""
    if (terms := read(words)) is None:
        return words
    focused = [(n, double, None) for n, double, _ in terms]
    plain = [(n, False, None) for n, _, _ in terms]
    for better in (focused, plain):
        if better != terms:
            return spelt(better)
    return spelt(shortened(plain))


def shortened(terms):
    """Terms without pairs side by side that cancel, from the left; the first term stays."""
    kept, k = terms[:1], 1
    while k < len(terms):
        pair = k + 1 < len(terms) and terms[k][0] == -terms[k + 1][0]
        kept += [] if pair else [terms[k]]
        k += 2 if pair else 1
    return kept
