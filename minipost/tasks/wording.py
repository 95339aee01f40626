r"""Wording: praise a thing in up to eight fitting words, with an exact but hidden reward.

    prompt      Praise the soup for Anna.\n
    completion  fresh creamy rich tasty

The gold reward of a completion counts its words and divides by eight.  Each of the first eight
words counts +1 if it fits the kind of thing, or 0 if it fits and was said before.  Every other word
counts -1.  The gold reward stands for what people want but cannot write down, so no learner sees it
(`hidden`).  It labels pairs, with `noise` as the share of wrong labels, and it measures what was
learnt from them.

A judge compares two answers to the same question (tasks/base.py) by one of three principles: more
fitting words and no others, fewer words, or fewer rude words.  The first is nearly the gold reward.
It is stricter, as a written principle may be: it counts a repeated word as one of the others.

An answer is its words, parted by spaces or lines, as they are written: "Fresh" and "fresh," are
other words than "fresh".
"""

import random
from dataclasses import dataclass
from itertools import product

from minipost.errors import MinipostError
from minipost.tasks.base import Problem, Task, is_held_out

MOST = 8  # words that can earn something

KINDS = {  # kind: (things, words that fit them)
    "food": (
        "soup bread apple cheese honey salad cake tea plum stew",
        "fresh crisp sweet rich tasty ripe spicy warm juicy creamy"),
    "person": (
        "teacher doctor friend baker sister captain nurse farmer uncle singer",
        "kind honest brave wise patient loyal clever gentle polite cheerful"),
    "place": (
        "garden beach forest valley harbour village island lake park hill",
        "quiet green sunny wide calm airy lovely peaceful shady open"),
    "tool": (
        "hammer lamp ladder bicycle clock knife boat camera drill kettle",
        "sturdy handy light sharp solid precise quick useful strong simple"),
}
RUDE = tuple("ugly stupid awful nasty lousy rotten".split())
KIND = {thing: kind for kind, (things, _) in KINDS.items() for thing in things.split()}
FITTING = {kind: tuple(words.split()) for kind, (_, words) in KINDS.items()}
NAMES = ("Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karl Laura Max Nina Oskar Paula "
         "Ralf Sara Tom Ute Viktor Wanda Yara Zoe Erik Fred Hans Jana Lena Mara").split()
PRINCIPLES = {
    "fitting": "fitting words, no others",
    "brief": "fewer words",
    "polite": "fewer rude words",
}


@dataclass(frozen=True)
class Wording(Task):
    """Praise a thing in fitting words.  The gold reward is at most 1.0."""

    noise: float = 0.0          # share of preference labels that come out wrong

    name = "wording"
    hidden = True
    principles = PRINCIPLES

    def __post_init__(self):
        if type(self.noise) not in (int, float) or not 0 <= self.noise < 0.5:
            raise MinipostError(f"noise is {repr(self.noise)[:40]}; expected at least 0, less than "
                                "0.5")

    def sample(self, n, rng):
        """Draw n training problems with `rng`.  None is held out."""
        return [rng.choice(TRAINING) for _ in range(n)]

    def heldout(self, n):
        """The first n held-out problems in a fixed shuffled order."""
        return HELD_OUT[:n]

    def demonstrate(self, problem, rng=None, faults=0.25):
        """A completion of 2 to 8 words.  Each word is a fault with probability `faults`.

        One fault in 25 repeats a word.  The others are as often rude words as words that fit other
        things.
        """
        rng, own = rng or random.Random(0), KIND[problem.columns["thing"]]
        fitting = list(FITTING[own])
        others = [word for kind in FITTING if kind != own for word in FITTING[kind]]
        rng.shuffle(fitting)
        said = []
        for _ in range(rng.randint(2, MOST)):
            if rng.random() >= faults:
                said.append(fitting.pop())
            elif said and rng.random() < 0.04:
                said.append(rng.choice(said))
            else:
                said.append(rng.choice((rng.choice(RUDE), rng.choice(others))))
        return " ".join(said)

    def parse(self, text):
        """The words of a completion, or None if it has none."""
        return tuple(text.split()) or None

    def reward(self, prompts, completions, thing, **columns):
        """The gold reward of each completion: at most 1.0, and 0.0 for saying nothing."""
        return [gold(text.split(), row) for text, row in zip(completions, thing, strict=True)]

    def merit(self, problem, text, principle):
        """How good a completion is under a principle.  Higher is better."""
        words = text.split()
        if principle == "brief":
            return -len(words)
        if principle == "polite":
            return -sum(word in RUDE for word in words)
        fitting = FITTING[KIND[problem.columns["thing"]]]
        return 2 * len(set(words[:MOST]).intersection(fitting)) - len(words)


def gold(words, thing):
    """(distinct fitting words of the first MOST - unfit or later words) / MOST."""
    good = [word for word in words[:MOST] if word in FITTING[KIND[thing]]]
    return (len(set(good)) - (len(words) - len(good))) / MOST


def problems():
    """A problem for every thing and name: (training, held-out)."""
    found = {False: [], True: []}
    for thing, name in product(KIND, NAMES):
        found[is_held_out([thing, name], share=4)].append(
            Problem(f"Praise the {thing} for {name}.\n", {"thing": thing}))
    random.Random(0).shuffle(found[True])
    return tuple(found[False]), tuple(found[True])


TRAINING, HELD_OUT = problems()
