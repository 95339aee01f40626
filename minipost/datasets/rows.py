"""Rows of a JSONL file as problems: `--data FILE`, with your own reward or with completions.

    {"prompt": "7+5=? Answer:", "completion": " 12", "answer": 12}

    {"prompt": "Praise the soup.\\n", "chosen": "fresh warm", "rejected": "nasty"}

    {"chosen": "Praise the soup. Fresh!", "rejected": "Praise the soup. Nasty."}

    {"prompt": "Praise the soup.\\n", "completion": "fresh warm", "label": true}

    {"prompt": "7+5=? Answer:", "completion": " 13", "reward": 0.0}

Every row needs a string `prompt`.  Methods need further keys:

    SFT                 a string `completion`
    methods with pairs  strings `chosen` and `rejected`; they follow the prompt, or begin with it if
                        the row has no `prompt`
    KTO                 a pair, or a `completion` with a `label`, true or false
    OREO and RFT        a `completion` with a `label`, or with a `reward` within 0..1

All rows must have the keys that most rows have.  All keys except `prompt` are columns and reach the
reward function as lists.  Blank lines are ignored.  A bad row is an error.  With `--on-bad-row
skip` it is left out, counted and reported.
"""

import json
import random
from codecs import BOM_UTF8
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from pathlib import Path
from typing import Literal

from minipost.errors import MinipostError
from minipost.tasks.base import Problem, Task, is_held_out


def no_duplicates(pairs):
    """A JSON object as a dict.  A repeated key is an error, not a silent choice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def no_constant(name):
    raise ValueError(f"{name} is not a JSON number")


@lru_cache
def read(path, skip=False):
    """The file's good rows, and complaints about the others: (rows, complaints), each a tuple.

    A complaint names file and line and says what was expected.  Unless `skip`, the first complaint
    is raised as a MinipostError.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise MinipostError(f"{path}: could not be read ({error.strerror})") from None
    lines[0] = lines[0].removeprefix(BOM_UTF8)  # some editors put it before the first line
    complaints = []                                         # (line number, sentence)

    def good(rows, check):
        """check(row) of the numbered rows that pass the check, numbered.  Others are complaints."""
        found = []
        for number, row in rows:
            try:
                found.append((number, check(row)))
            except ValueError as error:
                complaints.append((number, f"{path}, line {number}: {error}"))
                if not skip:
                    raise MinipostError(complaints[0][1]) from None
        return found

    rows = good(((number, line) for number, line in enumerate(lines, 1) if line.strip()), parse)
    # All rows must have what most rows have: pairs, completions, labels, rewards.
    rows = good(rows, demand(rows, ("chosen", "rejected"), check_pair))
    rows = good(rows, check_texts)
    if most_have(rows, ("completion",)):
        rows = good(rows, check_completion)
        for key, check in (("label", check_label), ("reward", check_reward)):
            rows = good(rows, demand(rows, (key,), check))
    said = [sentence for _, sentence in sorted(complaints)]
    if not rows:
        raise MinipostError(f"{path}: holds no rows; expected one JSON object per line" + (
            f" (skipped {len(said)}; the first was {said[0]})" if said else ""))
    return tuple(row for _, row in rows), tuple(said)


def most_have(rows, keys):
    """Whether at least half of the numbered rows have one of these keys."""
    count = sum(any(key in row for key in keys) for _, row in rows)
    return 2 * count >= len(rows) and count > 0


def demand(rows, keys, check):
    """`check` if most rows have one of these keys, else a check that a row has none of them."""
    def lacks(row):
        found = [key for key in keys if key in row]
        if found:
            raise ValueError(f"has {found[0]!r}, which most rows lack")
        return row

    return check if most_have(rows, keys) else lacks


def parse(line):
    """A line's JSON object.  ValueError if the line is something else."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=no_duplicates,
                         parse_constant=no_constant)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one JSON object ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def check_texts(row):
    """The row, if it has a prompt and all of its texts are valid."""
    if not isinstance(row.get("prompt"), str):
        raise ValueError(f"expected a string under 'prompt', found {row.get('prompt')!r:.40}")
    for key in ("prompt", "completion", "chosen", "rejected"):
        if any("\ud800" <= character <= "\udfff" for character in str(row.get(key))):
            raise ValueError(f"{key!r} holds half of a surrogate pair")
    return row


def check_completion(row):
    """The row, if it has an answer."""
    if not isinstance(row.get("completion"), str) or not row["completion"]:
        raise ValueError("expected a non-empty string under 'completion', found "
                         f"{row.get('completion')!r:.40}")
    return row


def check_pair(row):
    """The row, if it holds two different answers.

    If it has no prompt, the common beginning of both texts becomes the prompt.
    """
    for key in ("chosen", "rejected"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise ValueError(f"expected a non-empty string under {key!r}, found "
                             f"{row.get(key)!r:.40}")
    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen and rejected are equal; expected a pair of different answers")
    if "prompt" in row:
        return row
    prompt = commonprefix([row["chosen"], row["rejected"]])
    prompt = prompt.removesuffix(" ")  # a space belongs to the word after it
    answers = {key: row[key][len(prompt):] for key in ("chosen", "rejected")}
    if not prompt or not all(answers.values()):
        raise ValueError("a pair without a prompt needs two texts that begin alike, with the "
                         f"prompt, and go on in different ways; found {row['chosen']!r:.30} and "
                         f"{row['rejected']!r:.30}")
    return {**row, "prompt": prompt, **answers}


def check_label(row):
    """The row, if it says whether its completion is good."""
    check_completion(row)
    if not isinstance(row.get("label"), bool):
        raise ValueError(f"expected true or false under 'label', found {row.get('label')!r:.40}")
    return row


def check_reward(row):
    """The row, if it says what its completion is worth."""
    check_completion(row)
    value = row.get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"expected a number within 0..1 under 'reward', found {value!r:.40}")
    if "label" in row:
        raise ValueError("has both 'label' and 'reward'; expected one of them")
    return row


@lru_cache
def split(data, eval_data, skip):
    """(training problems, held-out problems).  No held-out prompt is trained on."""
    rows = read(data, skip)[0]
    tests = read(eval_data, skip)[0] if eval_data else [
        row for row in rows if is_held_out([row["prompt"]])]
    prompts = {row["prompt"] for row in tests}
    # Each held-out prompt counts once, except that all rows with a label or a reward count.
    judged = tests and {"label", "reward"} & set(tests[0])
    heldout = list(tests if judged else {row["prompt"]: row for row in tests}.values())
    random.Random(0).shuffle(heldout)
    return ([problem(row) for row in rows if row["prompt"] not in prompts],
            [problem(row) for row in heldout])


@dataclass(frozen=True)
class File(Task):
    """The rows of --data as a task.  Without --eval-data, one prompt in ten is held out."""

    data: str            # JSONL file to train on
    eval_data: str = ""  # JSONL file of held-out problems
    on_bad_row: Literal["stop", "skip"] = "stop"  # what to do about a malformed row

    name = "file"

    def __post_init__(self):
        if self.on_bad_row not in ("stop", "skip"):
            raise MinipostError(f"on_bad_row is {self.on_bad_row!r}; expected stop or skip")
        if not self.training() or not self.heldout(1):
            raise MinipostError(f"{self.data}: too few rows to hold some out; name --eval-data")

    def training(self):
        """The training problems, in the order of the file."""
        return self.split()[0]

    def sample(self, n, rng):
        """n training problems, drawn with replacement."""
        return rng.choices(self.training(), k=n)

    def heldout(self, n):
        """The first n held-out problems in a fixed shuffled order."""
        return self.split()[1][:n]

    def split(self):
        """(training problems, held-out problems)."""
        return split(self.data, self.eval_data, self.on_bad_row == "skip")

    def skipped(self):
        """A sentence for each file with skipped rows."""
        found = []
        for path in filter(None, (self.data, self.eval_data)):
            rows, complaints = read(path, self.on_bad_row == "skip")
            if complaints:
                found.append(f"skipped {len(complaints)} of {len(rows) + len(complaints)} rows of "
                             f"{path}; the first was {complaints[0]}")
        return found

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
        """1.0 if the completion equals the row's own, except for outer spaces, else 0.0."""
        if completion is None or not all(completion):
            raise MinipostError(
                f"{self.data}: rows without a completion need a reward function, --reward"
            )
        return [float(text.strip() == right.strip())
                for text, right in zip(completions, completion, strict=True)]


def problem(row):
    return Problem(row["prompt"], {key: value for key, value in row.items() if key != "prompt"})
