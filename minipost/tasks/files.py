"""Rows of a JSONL file as problems: `--data FILE`, with a reward of your own or with completions.

    {"prompt": "7+5=? Answer:", "completion": " 12", "answer": 12}

    {"prompt": "Praise the soup.\\n", "chosen": "fresh warm", "rejected": "nasty"}

    {"prompt": "Praise the soup.\\n", "completion": "fresh warm", "label": true}

Every row needs a string `prompt`.  SFT needs a string `completion` too; what learns from pairs the
strings `chosen` and `rejected`; KTO those, or a `completion` with a `label`, true or false.  All
keys but `prompt` are columns and reach the reward function as lists.  Blank lines are passed over.
"""

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minipost.errors import MinipostError
from minipost.tasks.base import Problem, is_held_out


def no_duplicates(pairs):
    """A JSON object as a dict; a key that stands twice is an error, not a silent choice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def no_constant(name):
    raise ValueError(f"{name} is not a JSON number")


@lru_cache
def read(path):
    """The file's rows; MinipostError names file and line, and says what was expected."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise MinipostError(f"{path}: could not be read ({error.strerror})") from None
    rows, places = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=no_duplicates,
                             parse_constant=no_constant)
        except UnicodeDecodeError:
            raise MinipostError(f"{where}: not UTF-8 text") from None
        except (ValueError, RecursionError) as error:
            raise MinipostError(f"{where}: expected one JSON object ({error})") from None
        if not isinstance(row, dict):
            raise MinipostError(
                f"{where}: expected a JSON object, found {type(row).__name__}"
            )
        for key in ("prompt", "completion"):
            value = row.get(key, "" if key == "completion" else None)
            if not isinstance(value, str):
                raise MinipostError(
                    f"{where}: expected a string under {key!r}, found {value!r:.40}"
                )
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise MinipostError(f"{where}: {key!r} holds half of a surrogate pair")
        rows.append(row)
        places.append(where)
    if any("label" in row for row in rows):
        for row, where in zip(rows, places):
            check_label(row, where)
    if any("chosen" in row or "rejected" in row for row in rows):
        for row, where in zip(rows, places):
            check_pair(row, where)
    if not rows:
        raise MinipostError(f"{path}: holds no rows; expected one JSON object per line")
    return tuple(rows)


def check_pair(row, where):
    """MinipostError unless a row holds two different answers, as all do where one does."""
    for key in ("chosen", "rejected"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise MinipostError(f"{where}: expected a non-empty string under {key!r}, found "
                                f"{row.get(key)!r:.40}")
    if row["chosen"] == row["rejected"]:
        raise MinipostError(f"{where}: chosen and rejected are equal; expected a pair of different "
                            "answers")


def check_label(row, where):
    """MinipostError unless a row says of its completion whether it is good, as all do where one does."""
    if not row.get("completion"):
        raise MinipostError(f"{where}: a row with a label needs a non-empty string under 'completion'")
    if not isinstance(row.get("label"), bool):
        raise MinipostError(f"{where}: expected true or false under 'label', found "
                            f"{row.get('label')!r:.40}")


@lru_cache
def split(data, eval_data):
    """(training problems, held-out problems); no held-out prompt is trained on."""
    rows = read(data)
    tests = read(eval_data) if eval_data else [r for r in rows if is_held_out([r["prompt"]])]
    tests = {row["prompt"]: row for row in tests}
    heldout = list(tests.values())
    random.Random(0).shuffle(heldout)
    return ([problem(row) for row in rows if row["prompt"] not in tests],
            [problem(row) for row in heldout])


@dataclass(frozen=True)
class File:
    """The rows of --data as a task; without --eval-data, one prompt in ten is held out."""

    data: str            # JSONL file to train on
    eval_data: str = ""  # JSONL file of held-out problems

    name = "file"

    def __post_init__(self):
        if not self.training() or not self.heldout(1):
            raise MinipostError(f"{self.data}: too few rows to hold some out; name --eval-data")

    def training(self):
        """The training problems, in the order of the file."""
        return split(self.data, self.eval_data)[0]

    def sample(self, n, rng):
        """n training problems, drawn with replacement."""
        return rng.choices(self.training(), k=n)

    def heldout(self, n):
        """The first n held-out problems in a fixed shuffled order."""
        return split(self.data, self.eval_data)[1][:n]

    def demonstrate(self, problem, rng=None):
        """The row's completion; MinipostError if it has none."""
        completion = problem.columns.get("completion")
        if not completion:
            raise MinipostError(
                f"{self.data}: the row with prompt {problem.prompt[:40]!r} has no completion to "
                "learn from"
            )
        return completion

    def parse(self, text):
        """The completion without outer spaces, or None if nothing is left."""
        return text.strip() or None

    def reward(self, prompts, completions, completion=None, **columns):
        """1.0 where the completion is the row's own, letter for letter but for outer spaces."""
        if completion is None or not all(completion):
            raise MinipostError(
                f"{self.data}: rows without a completion need a reward function, --reward"
            )
        return [float(text.strip() == right.strip())
                for text, right in zip(completions, completion, strict=True)]


def problem(row):
    return Problem(row["prompt"], {key: value for key, value in row.items() if key != "prompt"})
