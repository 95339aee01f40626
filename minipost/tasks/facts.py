r"""Short questions with one answer: capitals, translations and two-digit sums.

    prompt      What is the capital of France?\n
    completion  Paris

The rows are in data/simple_tasks.jsonl, which scripts/make_facts.py writes.  Capitals and
translations are facts to memorise.  Other countries tell nothing about Bhutan's capital, so all
of them are training rows, and `known` measures how many were kept.  Sums and differences have a
rule to learn, so some pairs of operands are held out, in every order and with either sign.

An answer is the first line, letter for letter: capitals and accents count.  The Unicode form, the
number of spaces between words, a typographic apostrophe and what tasks/answers.py leaves out do
not: "**Bogotá**.", "\\boxed{Bogotá}".
"""

import json
import random
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minipost.errors import MinipostError
from minipost.files import shipped
from minipost.tasks import answers
from minipost.tasks.base import Problem, Task, is_held_out

PATH = shipped("data/simple_tasks.jsonl")
KINDS = ("capital", "french", "german", "spanish", "arithmetic")
EXPECTED = (f'expected {{"kind": one of {KINDS}, "split": "train" or "test", "prompt": text '
            'ending in a newline, "completion": one NFC line without outer spaces}')


def hold_out(operands):
    """Whether sums and differences of these two operands belong to the held-out split."""
    return is_held_out(operands, share=5)


def parse(text):
    """The answer on the first line of `text`, in Unicode NFC; None if nothing is left.

    A full stop at its end is left out, that of "Washington, D.C." too.
    """
    words = answers.stated(text.partition("\n")[0]).replace("\u2019", "'").split()
    return unicodedata.normalize("NFC", " ".join(words)) or None


def well_formed(row):
    """Whether a decoded line is as EXPECTED says."""
    return (isinstance(row, dict) and set(row) == {"kind", "split", "prompt", "completion"}
            and all(isinstance(value, str) for value in row.values())
            and row["kind"] in KINDS and row["split"] in ("train", "test")
            and row["prompt"].endswith("\n") and one_line(row["completion"]))


def one_line(text):
    """Whether a text is one line in Unicode NFC that states something, without outer spaces."""
    return ("\n" not in text and text == unicodedata.normalize("NFC", text).strip()
            and parse(text) is not None)


@lru_cache
def rows(path=PATH):
    """Every row of the file, in order.  For a malformed row, MinipostError names file and line."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        raise MinipostError(f"{path}: no such file, expected the rows that "
                         "`python -m scripts.make_facts` writes") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise MinipostError(f"{path}:{number}: {error}; {EXPECTED}") from None
        if not well_formed(row):
            raise MinipostError(f"{path}:{number}: got {row!r}; {EXPECTED}")
        found.append(row)
    return tuple(found)


def as_problem(row):
    """The row as a problem with columns `answer` and `kind`."""
    return Problem(row["prompt"], {"answer": row["completion"], "kind": row["kind"]})


@dataclass(frozen=True)
class Facts(Task):
    """Questions of the chosen kinds.  The reward asks for the exact answer on the first line."""

    name = "facts"
    kinds: str = "all"  # comma-separated kinds to include: capital,french,german,spanish,arithmetic

    def __post_init__(self):
        if not isinstance(self.kinds, str):
            raise MinipostError(f"kinds must be text, not {repr(self.kinds)[:40]}")
        unknown = sorted(self.chosen() - set(KINDS))
        if unknown:
            raise MinipostError(f"kinds: no {unknown[0][:40]!r}; expected all or some of {KINDS}")

    def chosen(self):
        """The set of kinds that the knob names."""
        return set(KINDS if self.kinds == "all" else (k.strip() for k in self.kinds.split(",")))

    def split(self, split):
        """The rows of the chosen kinds in `split`, in the order of the file."""
        chosen = self.chosen()
        return [row for row in rows() if row["split"] == split and row["kind"] in chosen]

    def training(self):
        """All training problems, in the order of the file."""
        return [as_problem(row) for row in self.split("train")]

    def sample(self, n, rng):
        """n training problems, drawn with replacement from all rows with equal chance."""
        return [as_problem(row) for row in rng.choices(self.split("train"), k=n)]

    def heldout(self, n):
        """The first n held-out sums and differences; [] if `kinds` leaves arithmetic out."""
        return [as_problem(row) for row in self.split("test")[:n]]

    def known(self, n):
        """The first n capitals and translations of the training rows, in a fixed mixed order."""
        taught = [row for row in self.split("train") if row["kind"] != "arithmetic"]
        random.Random(0).shuffle(taught)
        return [as_problem(row) for row in taught[:n]]

    def splits(self, n):
        """What a run reports: recall of what was taught, then held-out arithmetic."""
        return {"facts": self.known(n), "held-out arithmetic": self.heldout(n)}

    def demonstrate(self, problem, rng=None):
        """The answer.  There is only one, so `rng` is not used."""
        return problem.columns["answer"]

    def answers(self, problem):
        """The right completion, as it stands in the file."""
        return [problem.columns["answer"]]

    def parse(self, text):
        """The stated answer (see `parse` above)."""
        return parse(text)

    def reward(self, prompts, completions, answer, **columns):
        """1.0 where the first line of the completion is the answer, letter for letter, else 0.0."""
        return [float(parse(text) == parse(right))
                for text, right in zip(completions, answer, strict=True)]
