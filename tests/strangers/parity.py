"""Parity: is a number even?  A task of one file."""

from dataclasses import dataclass

from minipost.tasks.base import Problem, Task, is_held_out


@dataclass(frozen=True)
class Parity(Task):
    """Say "even" or "odd"."""

    largest: int = 99  # largest number that is asked about

    name = "parity"

    def _problems(self, held):
        return [Problem(f"{n}? Answer:", {"n": n}) for n in range(self.largest + 1)
                if is_held_out([n]) == held]

    def sample(self, n, rng):
        return rng.choices(self._problems(False), k=n)

    def heldout(self, n):
        return self._problems(True)[:n]

    def demonstrate(self, problem, rng=None):
        return " odd" if problem.columns["n"] % 2 else " even"

    def parse(self, text):
        return text.strip() or None

    def reward(self, prompts, completions, n, **columns):
        return [float(text.strip() == ("odd" if k % 2 else "even")) for text,
                k in zip(completions, n)]
