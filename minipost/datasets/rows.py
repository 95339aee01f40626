"""Rows of a file as problems: `--data FILE`, with your own reward or with completions.

    {"prompt": "7+5=? Answer:", "completion": " 12", "answer": 12}

    {"prompt": "Praise the soup.\\n", "chosen": "fresh warm", "rejected": "nasty"}

    {"chosen": "Praise the soup.\\nAnswer: Fresh!", "rejected": "Praise the soup.\\nAnswer: Nasty."}

    {"prompt": "Praise the soup.\\n", "completion": "fresh warm", "label": true}

    {"prompt": "7+5=? Answer:", "completion": " 13", "reward": 0.0}

Every row needs a `prompt`, a string or a list of messages.  Chats may have other forms, see
datasets/chats.py.  Methods need further keys:

    SFT                 a `completion`, a string or messages
    methods with pairs  `chosen` and `rejected`, strings or messages; they follow the prompt, or
                        begin with it if the row has no `prompt`
    KTO                 a pair, or a `completion` with a `label`, true or false
    OREO and RFT        a `completion` with a `label`, or with a `reward` within 0..1

All rows must have the texts that most rows have.  `label` and `reward` are held to this only for
methods that read them (READS of a method's file).  For other methods a row whose `label` is false
is a bad row, where they learn its completion or pay for an answer that equals it.

All keys except `prompt` are columns and reach the reward function as lists.  Blank lines are
ignored.  A bad row is an error.  With `--on-bad-row skip` it is left out, counted and reported.  A
row that is longer than --max-length or than the model's context is a bad row too, unless
--on-long-row says skip, or truncate, which cuts the ends of answers (datasets/fitting.py).

Files may be JSONL as above, one JSON list, Parquet, or a saved Hugging Face data set: formats.py.
`--columns question:prompt,answer:completion` gives columns other names before anything is looked
at.

Where the prompt of a pair ends that has none, what is held out, and which answers begin with their
prompt: see datasets/prompts.py.
"""

import random
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Literal, NamedTuple

from minipost.chat import Messages
from minipost.datasets import formats
from minipost.datasets.chats import CHATS, as_chat, conversation, same_kind
from minipost.datasets.prompts import (
    ANSWERS,
    NEARLY_ALL,
    divided,
    end_of_prompt,
    questions,
    repeats,
    repetition,
    split,
)
from minipost.errors import MinipostError
from minipost.tasks.base import Problem, Task

RENAMED = {**{key: key for key in ("prompt", *ANSWERS)},  # what is read, in small letters: its name
           "question": "prompt", "instruction": "prompt", "query": "prompt", "problem": "prompt",
           "answer": "completion", "output": "completion", "response": "completion",
           "solution": "completion"}


ENOUGH = 30  # questions of which nearly always one in ten at least is held out


class Item(NamedTuple):
    """A value of a file where a row should stand."""

    path: str
    unit: str
    found: formats.Found

    @property
    def line(self):
        return self.found.at

    @property
    def place(self):
        return f"{self.path}, {self.unit} {self.line}"


class Row(dict):
    """A row of a file; `line` is its number there, and `guess` whether its prompt was guessed.

    unit: what the number counts, "line" or "row".
    """

    __slots__ = ("guess", "line", "path", "turn", "unit")

    def __init__(self, columns, path, line, unit="line", turn=False, guess=False):
        super().__init__(columns)
        self.path, self.line, self.unit, self.turn, self.guess = path, line, unit, turn, guess

    @property
    def at(self):
        return f"{self.unit} {self.line}"

    @property
    def place(self):
        return f"{self.path}, {self.at}"

    def but(self, columns, **how):
        """This row with other columns."""
        return Row({**self, **columns}, self.path, self.line, self.unit, **how)

    def problem(self):
        return Problem(self["prompt"], {key: self[key] for key in self if key != "prompt"},
                       self.place)


# ---- reading

def read(path, skip=False, reads=(), check=None, columns="", wrap=False, skip_long=False,
         paid=False, absent=None):
    """The file's good rows, and complaints about the others: (rows, complaints), each a tuple.

    A complaint names file and line, or row, and says what was expected.  Unless `skip`, the first
    complaint is raised as a MinipostError.  reads: the keys beside the texts that are looked at,
    `label` and `reward`.  check(problem): a further complaint about a row, or None.  columns: other
    names, OLD:NEW with commas between.  wrap: make chats of rows of strings.  skip_long: as `skip`,
    for rows that are too long.  paid: whether an answer that equals the completion counts as right.
    absent: a list, to which {old name: a complaint} is added of columns that no row has; without
    it the first complaint is raised.
    """
    contents, digest = formats.contents(path), sha256()
    for content in contents:
        digest.update(sha256(content).digest())
    name = str(path), skip, columns, digest.digest()
    if name not in KNOWN:
        found = parsed(path, skip, contents, formats.columns_of(columns))
        if len(KNOWN) > 7:
            KNOWN.clear()
        KNOWN[name] = found
    rows, complaints, unit, lacks = KNOWN[name][0], [*KNOWN[name][1]], *KNOWN[name][2:]
    if absent is not None:
        absent.append(lacks)
    elif lacks:
        raise MinipostError(next(iter(lacks.values())))
    if wrap and not is_chat(rows):
        rows = [as_chat(row) for row in rows]
    if most_have(rows, ("completion",)):
        for key, look in (("label", check_label), ("reward", check_reward)):
            if key in reads:
                rows = good(rows, demand(rows, (key,), look), complaints, skip)
    if ("completion" in reads or paid) and "label" not in reads:
        rows = good(rows, lambda row: check_right(row, reads), complaints, skip)
    if check:
        rows = good(rows, lambda row: fitting(row, check), complaints, skip, skip_long)
    said = [f", {unit} {line}: {sentence}" for line, sentence in sorted(complaints)]
    if not rows:
        raise MinipostError(f"{path}: holds no rows" + (
            f" that can be used (skipped {len(said)}; the first was{said[0][1:]})" if said else
            "; expected one JSON object per line" if unit == "line" else ""))
    return tuple(rows), tuple(f"{path}{sentence}" for sentence in said)


KNOWN: dict[tuple, tuple] = {}  # what `parsed` gave, by path, skip, columns and the digest


def parsed(path, skip, contents, columns):
    """(rows as they stand there, complaints: (line, sentence), what a line is called, a complaint
    for each name of a column that no row has).
    """
    complaints, lacks, unit = [], {}, formats.unit(path, contents)
    found = formats.values(path, contents)
    if columns:
        found = list(found)
        objects = [each.value for each in found if isinstance(each.value, dict)]
        lacks = formats.check_columns(path, objects, columns)
    rows = good((Item(path, unit, each) for each in found),
                lambda item: parse(item, columns), complaints, skip)
    rows = good(rows, conversation, complaints, skip)
    rows = good(rows, same_kind(rows), complaints, skip)
    # All rows must have what most rows have.
    rows = good(rows, demand(rows, ("chosen", "rejected"), check_pair), complaints, skip)
    rows = good(rows, check_texts, complaints, skip)
    if most_have(rows, ("completion",)):
        rows = good(rows, check_completion, complaints, skip)
    return rows, complaints, unit, lacks


def is_chat(rows):
    """Whether rows that were read are chats."""
    return bool(rows) and isinstance(rows[0].get("prompt"), Messages)


class Long(ValueError):
    """A row is too long."""


def good(rows, check, complaints, skip, skip_long=False):
    """check(row) of the rows that pass the check.  The others are added to the complaints."""
    found = []
    for row in rows:
        try:
            found.append(check(row))
        except ValueError as error:
            complaints.append((row.line, str(error)))
            if not (skip or skip_long and isinstance(error, Long)):
                raise MinipostError(f"{row.place}: {error}") from None
    return found


def most_have(rows, keys):
    """Whether at least half of the rows have one of these keys."""
    count = sum(any(key in row for key in keys) for row in rows)
    return 2 * count >= len(rows) and count > 0


def demand(rows, keys, check):
    """`check` if most rows have one of these keys, else a check that a row has none of them."""
    def lacks(row):
        found = [key for key in keys if key in row]
        if found:
            raise ValueError(f"has {found[0]!r}, which most rows lack")
        return row

    return check if most_have(rows, keys) else lacks


# ---- what a row must be: each check returns the row, or raises ValueError

def parse(item, columns):
    """The Row of an Item, its columns under their new names."""
    found = item.found
    if found.complaint:
        raise ValueError(found.complaint)
    if not isinstance(found.value, dict):
        raise ValueError(f"expected a JSON object, found {type(found.value).__name__}")
    return Row(formats.renamed(found.value, columns), item.path, found.at, item.unit)


def shown(value):
    """A value in a few characters, for a sentence."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.40}"


def no_text(row, key):
    """What a row has instead of a text under `key`, and what to do about it."""
    value, other = row.get(key), next((k for k in row if k != key == k.lower()), None)
    if type(value) in (int, float):
        return f"{shown(value)}; write it in quotes"
    return shown(value) + (f"; rename it by --columns {other}:{key}" if other and key not in row
                           else "")


def check_texts(row):
    """The row, if it has a prompt and all of its texts are valid."""
    if not isinstance(row.get("prompt"), str):
        raise ValueError(f"expected a string under 'prompt', found {no_prompt(row)}")
    for key in ("prompt", *ANSWERS):
        try:
            if isinstance(row.get(key), str):
                row[key].encode()
        except UnicodeEncodeError:
            raise ValueError(f"{key!r} holds half of a surrogate pair") from None
    return row


def no_prompt(row):
    """What a row has instead of a string under `prompt`, and what to do about it."""
    chat = next((key for key in ("prompt", *CHATS) if isinstance(row.get(key), list)), None)
    if chat:
        return f"a list under {chat!r} that holds no messages"
    if "prompt" in row or not row:
        return no_text(row, "prompt")
    found = f"None (the keys are {listed(row)})"
    known = {}                                              # the first key for each new name
    for key in row:
        if (name := RENAMED.get(key.lower(), key)) not in {*row, *known.values()}:
            known[key] = name
    if {"prompt", "chosen"} & {*known.values()}:
        more = "; what stands under 'input' belongs to the prompt" if "input" in row else ""
        names = ",".join(f"{old}:{new}" for old, new in known.items() if old != new)
        return f"{found}; rename by --columns {names}{more}"
    if "text" in row:
        return f"{found}; divide 'text' into 'prompt' and 'completion'"
    return found


def check_completion(row):
    """The row, if it has an answer."""
    check_answer(row, "completion")
    return row


def check_answer(row, key):
    if not isinstance(row.get(key), str) or not row[key]:
        raise ValueError(f"expected a non-empty string under {key!r}, found {no_text(row, key)}")


def check_pair(row):
    """The row, if it holds two different answers.  If it has no prompt, they are divided."""
    for key in ("chosen", "rejected"):
        check_answer(row, key)
    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen and rejected are equal; expected a pair of different answers")
    if "prompt" in row:
        return row
    if any(key in CHATS or RENAMED.get(key.lower()) == "prompt" for key in row):
        return check_texts(row)  # which says how to name the prompt
    end, turn = end_of_prompt(row["chosen"], row["rejected"])
    answers = {key: row[key][end:] for key in ("chosen", "rejected")}
    if not end or not all(answer.strip() for answer in answers.values()):
        raise ValueError("a pair without a prompt needs two texts that begin alike, with the "
                         "prompt, and go on in different ways behind a mark such as 'Answer:', a "
                         f"line break or a space; found {row['chosen'][:30]!r} and "
                         f"{row['rejected'][:30]!r}")
    return row.but({"prompt": row["chosen"][:end], **answers}, turn=turn, guess=not turn)


def check_label(row):
    """The row, if it says whether its completion is good."""
    check_completion(row)
    if not isinstance(row.get("label"), bool):
        raise ValueError(f"expected true or false under 'label', found {shown(row.get('label'))}")
    return row


def check_reward(row):
    """The row, if it says what its completion is worth."""
    check_completion(row)
    value = row.get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"expected a number within 0..1 under 'reward', found {shown(value)}")
    if "label" in row:
        raise ValueError("has both 'label' and 'reward'; expected one of them")
    return row


def check_right(row, reads):
    """The row, if it does not call wrong the completion that is learnt or counts as right."""
    learnt, pair = "completion" in reads, "chosen" in reads and "chosen" in row
    if row.get("label") is False and "completion" in row and (learnt or not pair):
        what = "it would be learnt" if learnt else "an answer that equals it would count as right"
        raise ValueError(f"the label is false, so the completion is wrong, and {what}; leave such "
                         "rows out by --on-bad-row skip, or take " + (
                             "kto, oreo or rft, which read labels" if learnt else
                             "a --reward, or kto, oreo or rft, which read labels"))
    return row


def fitting(row, check):
    complaint = check(row.problem())
    if complaint:
        raise (Long if hasattr(complaint, "tokens") else ValueError)(complaint)
    return row


# ---- the task

def skipping(path, rows, complaints):
    """The sentence on the rows of a file that were skipped, `rows` being those that are kept."""
    few = ", fewer than half" if len(rows) < len(complaints) else ""
    return (f"skipped {len(complaints)} of {len(complaints) + len(rows)} rows of {path}; the first "
            f"was {complaints[0]}; {len(rows)} are kept{few}")


@dataclass(frozen=True)
class File(Task):
    """The rows of --data as a task.  Without --eval-data, one question in ten is held out.

    Beside its fields, which are settings of a run, it has `rows`, those of --data that are kept.
    """

    data: str            # rows to train on: JSONL, JSON, Parquet, or a saved data set
    eval_data: str = ""  # rows of held-out problems
    on_bad_row: Literal["stop", "skip"] = "stop"  # what to do about a malformed row
    columns: str = ""    # other names for columns of both, OLD:NEW with commas between
    max_length: int = 0  # tokens of a prompt with its answer; 0: as many as the context has
    on_long_row: Literal["stop", "skip", "truncate"] = "stop"  # what to do about a longer row

    name = "file"
    trains: ClassVar[bool] = True  # whether some rows are to be trained on
    holds: ClassVar[bool] = True   # whether some rows are to be held out
    divide = staticmethod(split)   # (rows, those of --eval-data or None) -> to train on, held out
    wrap: ClassVar[bool] = False  # whether rows of strings are made chats
    rows: ClassVar[Sequence[Row]]
    bad: ClassVar[list[str]]    # sentences on rows that were skipped
    notes: ClassVar[list[str]]  # sentences on others that are not what they seem
    unused: ClassVar[int]       # rows that are on neither side, beside those left out of --data
    few: ClassVar[str]          # why there is nothing to train on, or to measure; "" if there is
    sides: ClassVar[tuple[list[Problem], list[Problem]]]  # to train on, held out

    def __post_init__(self):
        if self.on_bad_row not in ("stop", "skip"):
            raise MinipostError(f"on_bad_row is {self.on_bad_row!r}; expected stop or skip")
        if self.on_long_row not in ("stop", "skip", "truncate"):
            raise MinipostError(f"on_long_row is {self.on_long_row!r}; expected stop, skip or "
                                "truncate")
        if type(self.max_length) is not int or self.max_length < 0:
            raise MinipostError(f"max_length is {self.max_length!r}; expected a number of tokens, "
                                "or 0 for as many as the model's context has")
        self.look()

    def longest(self, context):
        """Tokens that a prompt with its answer may have."""
        return min(self.max_length or context, context)

    def chatting(self):
        """This file with each prompt as the message of a user; itself if its rows are chats."""
        found = copy(self)
        vars(found).update(wrap=True)
        found.look()
        return found

    def undivided(self):
        """This file with all of its rows to train on, and none held out of them."""
        found = copy(self)
        vars(found).update(divide=undivided, holds=False)
        found.look()
        return found

    def look(self, reads=(), check=None, paid=False):
        """Read the rows.  reads, check, paid: as in `read`."""
        skip, absent = self.on_bad_row == "skip", []
        files = [(path, *read(path, skip, reads, check, self.columns, self.wrap,
                              self.on_long_row != "stop", paid, absent))
                 for path in filter(None, (self.data, self.eval_data))]
        for name in absent[0]:
            if all(name in lacks for lacks in absent):  # one of two files may have the new name
                raise MinipostError(absent[0][name])
        rows = files[0][1]
        if self.eval_data and is_chat(rows) != is_chat(files[1][1]):
            raise MinipostError(f"{self.eval_data}: of its rows and those of {self.data} one "
                                "are messages and the others strings; expected one kind")
        training, heldout = self.divide(rows, files[1][1] if self.eval_data else None)
        few = ""
        if not training and self.trains and self.eval_data:
            few = (f"{self.data}: each of its questions is held out in {self.eval_data}; expected "
                   "others to train on")
        elif (not heldout and self.holds) or not training and self.trains:
            n = len({*questions(rows)})
            few = (f"{self.data}: its {len(rows)} {'row asks' if len(rows) == 1 else 'rows ask'} "
                   f"{n} question{'s' * (n > 1)}, too few to hold out one in ten; about "
                   f"{ENOUGH} are enough; name --eval-data, or measure nothing and train on all "
                   "by --eval-n 0")
        bad = [skipping(*file) for file in files if file[2]]
        held = files[-1][1]  # the rows of the file that is held out from
        unused = len(held) - len(heldout) - (0 if self.eval_data else len(training))
        dropped = len(rows) - len(training) if self.eval_data else 0
        notes = [f"left out {dropped} of {len(rows)} rows of {self.data}: their questions are "
                 f"held out in {self.eval_data}"] if dropped else []
        if unused:
            notes.append(f"{unused} of {len(held)} rows of {self.eval_data or self.data} are "
                         "neither trained on nor held out: they ask a held-out question again, "
                         "which counts once")
        vars(self).update(  # no fields: asdict gives the settings alone
            rows=rows, bad=bad, notes=notes, unused=unused, few=few,
            sides=tuple([row.problem() for row in part] for part in (training, heldout)))

    def fitted(self, reads, check, paid=False):
        """This file for a method that reads these keys of its rows.  paid: as in `read`.

        check(problem): why the run cannot use a row, or None.  Such rows are left out if on_bad_row
        is skip.  Else MinipostError for the first of them, and in any case if nearly all answers
        that are read begin with their prompts.
        """
        found = copy(self)
        found.look(reads, check, paid)
        keys = [key for key in ANSWERS if key in reads]
        repeated = [row for row in found.rows if repeats(row, keys)]
        if repeated:
            sentence = repetition(self.data, found.rows, repeated)
            if len(repeated) >= NEARLY_ALL * len(found.rows):
                raise MinipostError(sentence + "; take it out of the answers" + (
                    ", or the key 'prompt' out of the rows" if "chosen" in repeated[0] else ""
                    ) + "; if answers should say it, end prompts with a line break")
            found.notes.append(sentence)
        found.notes.extend(filter(None, [divided(found.rows), unread(found.rows, reads, paid)]))
        return found

    def training(self):
        """The training problems, in the order of the file."""
        return self.sides[0]

    def sample(self, n, rng):
        """n training problems, drawn with replacement."""
        return rng.choices(self.training(), k=n)

    def heldout(self, n):
        """The first n held-out problems in a fixed shuffled order."""
        return self.sides[1][:n]

    def skipped(self):
        """Sentences on rows that were left out, and on others that are not what they seem."""
        return [*self.bad, *self.notes]

    def demonstrate(self, problem, rng=None):
        """The row's completion; MinipostError if it has none."""
        completion = problem.columns.get("completion")
        if not isinstance(completion, str) or not completion:
            pair = "; dpo and its like learn from pairs" if "chosen" in problem.columns else ""
            raise MinipostError(f"{problem.place}: the row has no completion to learn from "
                                f"(its prompt is {problem.prompt[:40]!r}){pair}")
        return completion

    def parse(self, text):
        """The completion without outer spaces, or None if nothing is left."""
        return text.strip() or None

    def reward(self, prompts, completions, completion=None, **columns):
        """1.0 if the completion equals the row's own, except for outer spaces, else 0.0.

        None where the row's `label` is false: nothing says what would be right.
        """
        rights = completion or [None] * len(completions)
        if not all(rights):
            raise MinipostError(self.unanswered(prompts[[not r for r in rights].index(True)]))
        known = [right.first if isinstance(right, Messages) else right for right in rights]
        wrong = [label is False for label in columns.get("label") or [None] * len(completions)]
        return [None if bad else float(text.strip() == right.strip())
                for text, right, bad in zip(completions, known, wrong, strict=True)]

    def unanswered(self, prompt):
        """The sentence on a row with this prompt that has no completion to compare answers with."""
        row = next((p for side in self.sides for p in side if p.prompt == prompt
                    and not p.columns.get("completion")), None)
        place, keys = (row.place, ["prompt", *row.columns]) if row else (self.data, ["prompt"])
        rows = self.training()
        if row in self.sides[1] and rows and {*rows[0].columns} - {*row.columns}:
            hint = f"hold out rows with the keys of {self.data}, or measure nothing by --eval-n 0"
        else:
            hint = "name a reward function by --reward, or add completions" + (
                "; dpo and its like learn from pairs without one" if "chosen" in keys else "")
        return (f"{place}: a row without a completion, with which answers would be compared (the "
                f"keys are {listed(keys)}); {hint}")


def undivided(rows, tests):
    """(all rows, none held out)."""
    return list(rows), []


def listed(keys):
    """The first keys of a row, for a sentence."""
    shown = [key[:20] if key.isprintable() else repr(key[:20]) for key in keys]
    return f"{', '.join(shown[:6])}{' ...' if len(shown) > 6 else ''}"


def unread(rows, reads, paid):
    """The sentence on numbers under `reward` or `label` that nothing reads, or ""."""
    learnt = "completion" in reads
    key = next((key for key in ("reward", "label") for row in rows if key not in reads
                and type(row.get(key)) in (int, float) and "completion" in row), None)
    if not key or not (learnt or paid):
        return ""
    return (f"the numbers under {key!r} are not read: every completion "
            + ("is learnt" if learnt else "counts as right"))


class Whole(File):
    """A file to measure: all of its rows are held out, in a fixed shuffled order."""

    trains = False

    @staticmethod
    def divide(rows, tests):
        rows = list(rows)
        random.Random(0).shuffle(rows)
        return [], rows
