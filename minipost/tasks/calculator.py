"""Calculator: sums of numbers that are too large to add in the head, and a tool that adds two.

    347+218-95=? Act:
    [347+218]=565
    [565-95]=470
    Answer: 470

The bracket is a call: an answer stops behind "]", and the calculator writes the result and a line
break, "=565".  To what is no sum of two numbers it writes "=error".  A line without brackets,
"347+218=565", is worked in the head.  Demonstrations call in a share `calls` of their lines, and
work the others in the head without a mistake.

An answer is one whole number and nothing else (tasks/answers.py has the grammar).
"""

import random
import re
from dataclasses import dataclass
from itertools import islice

from minipost.chat import Turns
from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.arithmetic import PATIENCE, calculate, distinct, operands_of
from minipost.tasks.base import MOST_HELD_OUT, Problem, Task, is_held_out, within

CALL = re.compile(r"\[([^\[\]\n]*)\][^\[\]\n]*\Z")


@dataclass(frozen=True)
class Calculator(Task):
    """Add and subtract a chain of large numbers; a calculator answers calls."""

    terms: int = 4              # how many numbers are in a chain
    largest: int = 999          # largest operand; operands are 1..largest
    calls: float = 0.3          # share of a demonstration's lines that call the calculator

    name = "calculator"
    call_end, acts = "]", True

    def __post_init__(self):
        within(2, 16, terms=self.terms)
        within(9, 99_999, largest=self.largest)
        if type(self.calls) not in (int, float) or not 0 <= self.calls <= 1:
            raise MinipostError(f"calls is {repr(self.calls)[:40]}; expected 0 to 1")

    def sample(self, n, rng):
        """Draw n training problems with `rng`.  None has held-out operands."""
        return list(islice(self._draws(rng, held=False), n))

    def heldout(self, n):
        """Return the first n held-out problems of at most MOST_HELD_OUT, in a fixed order."""
        draws = self._draws(random.Random(f"held-out {self.terms} {self.largest}"), held=True)
        return list(islice(distinct(draws), min(n, MOST_HELD_OUT)))

    def demonstrate(self, problem, rng=None):
        """Write a completion, as Turns of the model and of the calculator."""
        rng = rng or random.Random(0)
        total, *rest = operands_of(problem.columns["chain"])
        parts = [""]
        for term in rest:
            made, total = f"{total}{term:+d}", total + term
            if rng.random() < self.calls:
                parts[-1] += f"[{made}]"
                parts += [f"={total}\n", ""]
            else:
                parts[-1] += f"{made}={total}\n"
        parts[-1] += f"Answer: {total}"
        return Turns(parts)

    def tool(self, problem, text):
        """What the calculator writes behind an answer that ends in a call."""
        call = CALL.search(text)
        return f"={calculate(call[1]) if call else 'error'}\n"

    def parse(self, text):
        """Return the whole number that the text states, or None."""
        return answers.whole(answers.stated(text))

    def reward(self, prompts, completions, answer, **columns):
        """Return 1.0 for each completion that states its answer, else 0.0."""
        return [float(self.parse(text) == right)
                for text, right in zip(completions, answer, strict=True)]

    def _draws(self, rng, held):
        """Yield problems of one split.  End after PATIENCE draws of the other split in a row."""
        misses = 0
        while misses < PATIENCE:
            operands = [rng.randint(1, self.largest)]
            while len(operands) < self.terms:
                term, total = rng.randint(1, self.largest), sum(operands)
                operands.append(-term if term <= total and rng.random() < 0.5 else term)
            misses += 1
            if is_held_out([abs(n) for n in operands]) == held:
                misses = 0
                chain = str(operands[0]) + "".join(f"{n:+d}" for n in operands[1:])
                yield Problem(f"{chain}=? Act:\n", {"chain": chain, "answer": sum(operands)})
