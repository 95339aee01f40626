"""Recall: questions about lockers, answered only in earlier episodes, and locks with a key to find.

    code of K7? 47
    code of M2? 12
    what opens K7?

The completion is " 47", or " none" if no episode tells.  Codes are drawn anew for every problem, so
only the context tells them.  The lockers of held-out problems are in no training problem.

An answer is a number 10..99 or the word "none", in small or capital letters, and nothing else
(tasks/answers.py has the grammar): "47", "**47**." and "None" state something, "047", "47 or 48"
and "not 47" do not.

A lock shows its keys and the failed ones, "Keys 1 to 6. Tried 3 5. Try".  The completion is any
other key.
"""

import random
import re
from dataclasses import dataclass
from itertools import product
from string import ascii_uppercase, digits

from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.base import MOST_HELD_OUT, Problem, Task, is_held_out, within

THINGS = [letter + digit for letter, digit in product(ascii_uppercase, digits)]
HELD_OUT = [thing for thing in THINGS if is_held_out(list(thing))]
TRAINING = [thing for thing in THINGS if not is_held_out(list(thing))]
FORMS = ("code of {}", "what opens {}")
UNKNOWN = "none"
KEYS = range(2, 10)  # how many keys a lock may have


@dataclass(frozen=True)
class Recall(Task):
    """Answer from earlier episodes.  An answer is a code of two digits, or "none"."""

    episodes: int = 6           # earlier episodes in the prompt

    name = "recall"

    def __post_init__(self):
        within(0, 16, episodes=self.episodes)

    def sample(self, n, rng):
        """Draw n training problems with `rng`.  None has a held-out thing."""
        return [self._draw(TRAINING, rng) for _ in range(n)]

    def heldout(self, n):
        """Return the first n held-out problems of a fixed list of MOST_HELD_OUT."""
        rng = random.Random(f"held-out {self.episodes}")
        return [self._draw(HELD_OUT, rng) for _ in range(min(n, MOST_HELD_OUT))]

    def demonstrate(self, problem, rng=None):
        """Write the answer."""
        return f" {problem.columns['answer']}"

    def parse(self, text):
        """Return the code or "none" that the text states, or None."""
        word = answers.stated(text).lower()
        return word if word == UNKNOWN or re.fullmatch("[1-9][0-9]", word) else None

    def reward(self, prompts, completions, answer, **columns):
        """Return 1.0 for each completion that states its answer, else 0.0."""
        return [float(self.parse(text) == right)
                for text, right in zip(completions, answer, strict=True)]

    def stream(self, length, things, rng, held=True):
        """A life of `length` episodes about `things` things: [(question, answer, told)].

        A thing keeps its code.  Each visit draws the form of its question.  `told` says whether an
        earlier visit told the code.
        """
        names = HELD_OUT if held else TRAINING
        if things > len(names):
            raise MinipostError(
                f"things is {things}; this split has {len(names)} things to ask about")
        names = rng.sample(names, things)
        codes = {thing: str(rng.randint(10, 99)) for thing in names}
        visits = [rng.choice(names) for _ in range(length)]
        return [(rng.choice(FORMS).format(thing), codes[thing], thing in visits[:k])
                for k, thing in enumerate(visits)]

    def asked(self, episodes, question):
        """The prompt of a question after these episodes, (question, answer)."""
        return "".join(f"{q}? {a}\n" for q, a in episodes) + f"{question}?"

    def lock(self, keys, tried):
        """The prompt of an agent that tries a key.  One of the keys follows."""
        failed = f" Tried {' '.join(map(str, tried))}." if tried else ""
        return f"Keys 1 to {keys}.{failed} Try"

    def _draw(self, names, rng):
        """Episodes and a question about one of them, or about none."""
        thing = rng.choice(names)
        others = rng.choices(names, k=self.episodes)
        known = rng.random() < 0.7 and self.episodes > 0
        if known:
            others[rng.randrange(self.episodes)] = thing
        else:
            others = [name for name in others if name != thing]
        codes = {name: str(rng.randint(10, 99)) for name in [*others, thing]}
        seen = [(rng.choice(FORMS).format(name), codes[name]) for name in others]
        answer = codes[thing] if known or thing in others else UNKNOWN
        return Problem(self.asked(seen, rng.choice(FORMS).format(thing)), {"answer": answer})
