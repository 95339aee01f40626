"""Dialogue: a sum that goes on over several turns, so that answers need what was said before.

    User: 14+5?
    Bot: 19
    User: +8?
    Bot: 27
    User: back?
    Bot: 19

"14+5?" needs no earlier turn.  "+8?" and "-8?" need the answer before, "back?" the one before that.
All answers are within 0..99.

A problem is a dialogue up to a turn of the user, and the completion is what the assistant says
there, " 27" and a line break.  A demonstration goes on with the turns that follow: the assistant's
are learnt, the user's are not.  With --chat the same turns are messages, which the model's template
renders.  What is reported, beside the held-out dialogues whose last answer needs an earlier turn:
the same last turns with all earlier ones cut away, and dialogues whose last turn needs none.

An answer is one whole number and nothing else (tasks/answers.py has the grammar); what stands
behind the assistant's turn is not read.
"""

import random
from dataclasses import dataclass
from itertools import islice

from minipost.chat import ROLE, Messages, Turns
from minipost.tasks import answers
from minipost.tasks.arithmetic import LIMIT
from minipost.tasks.base import MOST_HELD_OUT, Problem, Task, is_held_out, within

MOST = 9    # the largest number that is added or taken away
FRESH = 90  # the largest number that a dialogue begins with, or begins again


@dataclass(frozen=True)
class Dialogue(Task):
    """Answer a user's turns, most of which need an earlier turn; an answer is a number, 0..99."""

    turns: int = 5              # turns of the user in a dialogue

    name = "dialogue"

    def __post_init__(self):
        within(2, 12, turns=self.turns)

    def sample(self, n, rng):
        """n training dialogues, each up to a turn that is drawn.  None has held-out numbers."""
        return [self._problem(said, rng.randrange(self.turns))
                for said in islice(self._draws(rng, held=False), n)]

    def heldout(self, n):
        """The first n held-out dialogues, all but their last answer, which needs an earlier turn.

        There are at most MOST_HELD_OUT.
        """
        return [self._problem(said, self.turns - 1) for said in self._held(n, needy=True)]

    def splits(self, n):
        """What a run reports."""
        needy = list(self._held(n, needy=True))
        return {"held-out": [self._problem(said, self.turns - 1) for said in needy],
                "earlier turns cut away": [self._problem(said[-1:], 0) for said in needy],
                "no earlier turn needed": [self._problem(said, self.turns - 1)
                                           for said in self._held(n, needy=False)]}

    def demonstrate(self, problem, rng=None):
        """The assistant's turns from here on, with the user's in between."""
        said, cut = problem.columns["said"], problem.columns["cut"]
        parts = [f" {said[cut][1]}\n"]
        for question, answer in said[cut + 1 :]:
            parts += [asked(question), f" {answer}\n"]
        return Turns(parts)

    def messages(self, problem):
        """(turns of the prompt, turns of the answer) as {"role", "content"}."""
        said, cut = problem.columns["said"], problem.columns["cut"]
        turns = [{"role": role, "content": str(text)} for pair in said
                 for role, text in zip(("user", ROLE), pair)]
        return turns[: 2 * cut + 1], turns[2 * cut + 1 :]

    def parse(self, text):
        """Return the whole number that the assistant's first turn states, or None."""
        turn = text.first if isinstance(text, Messages) else text.partition("\nUser:")[0]
        return answers.whole(answers.stated(turn))

    def reward(self, prompts, completions, answer, **columns):
        """Return 1.0 for each completion that states its answer, else 0.0."""
        return [float(self.parse(text) == right)
                for text, right in zip(completions, answer, strict=True)]

    def _held(self, n, needy):
        """n held-out dialogues whose last turn needs an earlier one, or needs none."""
        rng = random.Random(f"held-out {self.turns} {needy}")
        return islice((said for said in self._draws(rng, held=True)
                       if said[-1][0][0].isdigit() != needy), min(n, MOST_HELD_OUT))

    def _problem(self, said, cut):
        prompt = "".join(f"{asked(question)} {answer}\n" for question, answer in said[:cut])
        return Problem(prompt + asked(said[cut][0]),
                       {"said": said, "cut": cut, "answer": said[cut][1]})

    def _draws(self, rng, held):
        """Yield dialogues of one split, [(the user's turn, the answer)]."""
        while True:
            said, numbers = [], []
            for k in range(self.turns):
                question, answer, new = turn(rng, [answer for _, answer in said])
                said.append((question, answer))
                numbers += new
            if is_held_out(numbers) == held:
                yield tuple(said)


def asked(question):
    """The user's turn, up to where the assistant is to answer."""
    return f"User: {question}\nBot:"


def turn(rng, given):
    """(the user's next turn, its answer, the numbers in it) after these answers."""
    kind = rng.choice(("fresh", "more", "more", "more", "more", "back"))
    if not given or kind == "fresh":
        a, b = rng.randint(1, FRESH), rng.randint(1, MOST)
        return f"{a}+{b}?", a + b, [a, b]
    if kind == "back" and len(given) > 1:
        return "back?", given[-2], []
    n = rng.randint(1, MOST)
    if given[-1] < n or rng.random() < 0.5 and given[-1] + n <= LIMIT:
        return f"+{n}?", given[-1] + n, [n]
    return f"-{n}?", given[-1] - n, [n]
