"""Polish: sums told in cluttered words, and the same sums in clearer words.

    Ida has 9. Emma gets twice 4. Emma has 12. Max gets 5. Emma loses 3. How many has Emma? Answer:

A story may hold what is not asked for, what others have, get and lose; numbers in words ("twice 4",
"half of 6", "2 and 5"); and sentences in any order.  Three rewordings, one after another, follow
what the paper of Self-Polish (arxiv.org/abs/2305.14497, sec. 3.1) asks of a problem:

    focus      Emma gets twice 4. Emma has 12. Emma loses 3. How many has Emma?
    clarity    Emma has 12. Emma gets 8. Emma loses 3. How many has Emma?
    concision  12+8-3=?

A problem as it is told, or at any stage, is answered at once, " 17", or asks to be reworded, with
the cue "Polish:"; the reply is the next stage and no more.  Training problems are of both kinds and
of all stages.  Held-out problems are stories as they are told.

An answer is one whole number and nothing else (tasks/answers.py has the grammar).  A rewording is
right if it asks for the same number.
"""

import random
import re
from dataclasses import dataclass
from itertools import islice

from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.arithmetic import LIMIT, PATIENCE, distinct
from minipost.tasks.base import MOST_HELD_OUT, Problem, Task, is_held_out, within
from minipost.tasks.wording import NAMES

STAGES = 3      # rewordings from a story to a sum
CUE, ANSWER = " Polish:", " Answer:"
VERBS = {"has": 1, "gets": 1, "loses": -1}
NUMBER = r"[0-9]{1,3}"
AMOUNT = rf"(?:twice {NUMBER}|half of {NUMBER}|{NUMBER} and {NUMBER}|{NUMBER})"
SENTENCE = re.compile(rf"([A-Z][a-z]+) (has|gets|loses) ({AMOUNT})\.")
STORY = re.compile(rf"((?:[A-Z][a-z]+ (?:has|gets|loses) {AMOUNT}\. ){{1,40}})"
                   r"How many has ([A-Z][a-z]+)\?")
CHAIN = re.compile(rf"{NUMBER}(?:[+-]{NUMBER}){{0,40}}=\?")


@dataclass(frozen=True)
class Polish(Task):
    """Answer a sum told in cluttered words, or say it in clearer words; a number, 0..99."""

    changes: int = 3            # what the one who is asked about gets or loses
    clutter: int = 4            # sentences on others in a held-out story; in training 0 to so many
    rewording: float = 0.5      # share of training problems that ask to be reworded

    name = "polish"

    def __post_init__(self):
        within(1, 6, changes=self.changes)
        within(0, 8, clutter=self.clutter)
        if type(self.rewording) not in (int, float) or not 0 <= self.rewording <= 1:
            raise MinipostError(f"rewording is {repr(self.rewording)[:40]}; expected 0 to 1")

    def sample(self, n, rng):
        """Draw n training problems with `rng`, of all stages.  None has held-out numbers."""
        found = []
        for text, answer in islice(self._draws(rng, held=False), n):
            if rng.random() < self.rewording:
                found.append(posed(stage(text, rng.randrange(STAGES)), answer, CUE))
            else:
                found.append(posed(stage(text, rng.randint(0, STAGES)), answer))
        return found

    def heldout(self, n):
        """The first n held-out stories of at most MOST_HELD_OUT, in a fixed order."""
        draws = self._draws(random.Random(f"held-out {self.changes} {self.clutter}"), held=True)
        return list(islice(distinct(posed(*each) for each in draws), min(n, MOST_HELD_OUT)))

    def splits(self, n):
        """What a run reports: held-out stories, the sums that they are, and rewordings of them."""
        found = self.heldout(n)
        return {"held-out": found,
                "as sums": [self._stage(p, STAGES) for p in found],
                "rewordings": [self.polish(self._stage(p, k % STAGES))
                               for k, p in enumerate(found)]}

    def demonstrate(self, problem, rng=None):
        """The answer, or the next stage of the problem's words."""
        if problem.prompt.endswith(CUE):
            return f" {stage(problem.columns['words'], 1)}"
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

    def reward(self, prompts, completions, words, answer, reworded, **columns):
        """1.0 for each answer, or rewording, that is right, else 0.0."""
        found = []
        for text, right, asked in zip(completions, answer, reworded, strict=True):
            read = self.parse(text)
            found.append(float((asked_for(read) if isinstance(read, str) else None) == right
                               if asked else read == right))
        return found

    def _stage(self, problem, k):
        return posed(stage(problem.columns["words"], k), problem.columns["answer"])

    def _draws(self, rng, held):
        """Yield (words, answer) of one split.  End after PATIENCE draws of the other in a row."""
        misses = 0
        while misses < PATIENCE:
            numbers = [rng.randint(2, 40)]
            while len(numbers) <= self.changes:
                low, high = -min(9, sum(numbers)), min(9, LIMIT - sum(numbers))
                n = rng.randint(low, high - 1)
                numbers.append(n + (n >= 0))
            misses += 1
            if is_held_out([abs(n) for n in numbers]) == held:
                misses = 0
                clutter = self.clutter if held else rng.randint(0, self.clutter)
                yield told(numbers, clutter, rng), sum(numbers)


def posed(words, answer, cue=ANSWER):
    """The Problem of these words."""
    return Problem(words + cue, {"words": words, "answer": answer, "reworded": cue == CUE})


def told(numbers, clutter, rng):
    """A story of these numbers, the first what there is, the others changes, in cluttered words."""
    name, *others = rng.sample(NAMES, 3)
    verbs = ["has", *("gets" if n > 0 else "loses" for n in numbers[1:])]
    sentences = [f"{name} {verb} {amount(abs(n), rng)}." for verb, n in zip(verbs, numbers)]
    for _ in range(clutter):
        who, verb = rng.choice(others), rng.choice(list(VERBS))
        sentences.append(f"{who} {verb} {amount(rng.randint(1, 40), rng)}.")
    rng.shuffle(sentences)
    return f"{' '.join(sentences)} How many has {name}?"


def amount(n, rng):
    """A number, as a number or in words."""
    ways = [str(n), str(n), f"half of {2 * n}"]
    if n % 2 == 0:
        ways.append(f"twice {n // 2}")
    if n > 1:
        a = rng.randint(1, n - 1)
        ways.append(f"{a} and {n - a}")
    return rng.choice(ways)


def counted(words):
    """The number that an amount is."""
    numbers = [int(n) for n in re.findall("[0-9]+", words)]
    if words.startswith("twice"):
        return 2 * numbers[0]
    if words.startswith("half"):
        return numbers[0] // 2
    return sum(numbers)


def read(words):
    """(name, [(who, verb, amount)]) of a story; None if the words are none."""
    found = STORY.fullmatch(words)
    return found and (found[2], SENTENCE.findall(found[1]))


def asked_for(words):
    """The number that a problem in words, or a sum, asks for; None if it is neither."""
    if CHAIN.fullmatch(words):
        return sum(int(n) for n in re.findall("[+-]?[0-9]+", words))
    if (story := read(words)) is None:
        return None
    return sum(VERBS[verb] * counted(words) for who, verb, words in story[1] if who == story[0])


def stage(words, k):
    """The words after k rewordings; a rewording that changes nothing is passed over."""
    for _ in range(k):
        words = reworded(words)
    return words


def reworded(words):
    """The words of a problem, one rewording clearer; a sum stays as it is."""
    if (story := read(words)) is None:
        return words
    name, sentences = story
    focused = [each for each in sentences if each[0] == name]
    clear = [(who, verb, str(counted(n)))
             for who, verb, n in sorted(focused, key=lambda each: each[1] != "has")]
    for better in (focused, clear):
        if better != sentences:
            return " ".join(f"{who} {verb} {n}." for who, verb, n in better) + \
                f" How many has {name}?"
    chain = "".join(f"{'-' if verb == 'loses' else '+'}{n}" for _, verb, n in clear)
    return f"{chain.removeprefix('+')}=?"
