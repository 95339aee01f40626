"""Whether a run can use a problem.  All problems are looked at before its first step.

A check says why a run cannot use a problem, or None:

    check(asked, answers, setting)

    asked       the problem's prompt, a Text
    answers     {key: Text} of the answers that are learnt
    setting     the vocabulary, the model's context, the longest response

Lengths are in tokens, BOS and EOS included.  A further check is a function in CHECKS.

A prompt with an answer may have `longest` tokens: --max-length, or the model's context if that is
less.  For a method that learns its own answers, a prompt with the longest of these may.  With
--on-long-row truncate the end of a longer answer is cut, EOS and all, and no EOS is learnt there.
A prompt is never cut: it would ask something else.  A row of which no answer would be left, or
whose two answers would be equal, is left out.
"""

from dataclasses import dataclass, field
from typing import Any

from minipost.datasets.prompts import ANSWERS
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.rollout import NO_TOKENS
from minipost.tokenizer import written

NAMES = {"completion": "a completion", "chosen": "a chosen answer", "rejected": "a rejected answer"}


@dataclass(frozen=True)
class Text:
    """A text and its ids; of an answer, whether each of them is learnt."""

    text: str
    ids: list[int]
    learnt: list[bool] = field(default_factory=list)

    def __str__(self):
        return f"{len(self.ids)} tokens ({self.text[:40]!r})"


class TooLong(str):
    """A complaint about the length of a row, which has so many tokens."""

    tokens: int

    def __new__(cls, sentence, tokens):
        found = super().__new__(cls, sentence)
        found.tokens = tokens
        return found


@dataclass(frozen=True)
class Setting:
    """The vocabulary, and what a model and a run have room for, in tokens."""

    vocabulary: Any
    context: int
    max_new_tokens: int
    control_tokens: str = "plain"  # how control tokens are read that a text spells out
    longest: int = 0            # a prompt with an answer; at most the context
    cut: bool = False           # whether longer answers are cut
    own: bool = False           # whether the method learns answers that it samples

    @property
    def limit(self):
        """What `longest` is, in words."""
        return (f"the model's context of {self.context}" if self.longest == self.context else
                f"--max-length {self.longest}")


def empty_prompt(asked, answers, setting):
    """A model predicts behind a token.  So an empty prompt needs a BOS."""
    if not asked.ids:
        return NO_TOKENS


def long_prompt(asked, answers, setting):
    """A prompt leaves room for the longest response."""
    most, what = (setting.longest, setting.limit) if setting.own else (
        setting.context, f"the model's context of {setting.context}")
    tokens = len(asked.ids) + setting.max_new_tokens
    if len(asked.ids) >= most:
        return TooLong(f"a prompt of {asked} leaves no room for a response in {what}; shorten it",
                       tokens)
    if tokens > most:
        return TooLong(f"a prompt of {asked} and a response of up to {setting.max_new_tokens} do "
                       f"not fit {what}; lower --max-new-tokens to {most - len(asked.ids)} or "
                       "shorten the prompt", tokens)


def long_answer(asked, answers, setting):
    """A prompt and each of its answers fit, or what is left of an answer that is cut teaches."""
    room = setting.longest - len(asked.ids)
    tokens = longest(asked, answers)
    for key, answer in answers.items():
        if len(answer.ids) > room and not (setting.cut and any(answer.learnt[: max(0, room)])):
            return TooLong(f"a prompt of {asked} and {NAMES[key]} of {answer} do not fit "
                           f"{setting.limit}" + ("; nothing is left of it when it is cut"
                                                 if setting.cut else "; shorten them"), tokens)
    left = [answer.ids[:room] for answer in answers.values()]
    if tokens > setting.longest and len(left) == 2 and left[0] == left[1]:
        return TooLong(f"the two answers are equal as far as {setting.limit} goes", tokens)


def longest(asked, answers):
    """Tokens of a prompt with the longest of its answers."""
    return len(asked.ids) + max((len(answer.ids) for answer in answers.values()), default=0)


def empty_answer(asked, answers, setting):
    """An answer has a token beside EOS."""
    for key, answer in answers.items():
        if len(answer.ids) < 2:
            return f"the tokenizer makes nothing of {NAMES[key]}, {answer.text[:40]!r}"


def control_tokens(asked, answers, setting):
    """A control token that a text spells out means what the user says that it means."""
    if setting.control_tokens == "plain":
        return None
    for noun, text in (("the prompt", asked), *((NAMES[k], text) for k, text in answers.items())):
        if said := setting.vocabulary.complaint(text.text, setting.control_tokens):
            return f"{noun} {said}"


CHECKS = (control_tokens, empty_prompt, long_prompt, long_answer, empty_answer)


def looked_at(problem, model, vocabulary, max_new_tokens, reads=ANSWERS, control_tokens="plain",
              task=None):
    """(why a run cannot use a problem, in a sentence, or None; tokens of it that are cut off).

    reads: the keys of the answers that are learnt.  A problem need not have them.
    control_tokens: "tokens", "plain", or "stop" where nobody said how they are read.
    task: the File whose row it is, which says what is too long.
    """
    how = {"control": True} if control_tokens == "tokens" else {}
    given = {key: problem.columns.get(key) for key in ANSWERS if key in reads}
    try:
        asked = Text(problem.prompt, vocabulary.prompt(problem.prompt, **how))
        answers = {key: Text(text, *written(vocabulary, problem.prompt, text, **how)[1:])
                   for key, text in given.items() if isinstance(text, str)}
    except MinipostError as error:  # such as a template that refuses the order of a row's turns
        return str(error), 0
    most = task.longest(model.context) if isinstance(task, File) else model.context
    cut = isinstance(task, File) and task.on_long_row == "truncate"
    setting = Setting(vocabulary, model.context, max_new_tokens, control_tokens, most, cut,
                      not answers)
    return (next(filter(None, (check(asked, answers, setting) for check in CHECKS)), None),
            max(0, longest(asked, answers) - most))


def complaint(*arguments, **options):
    """Why a run cannot use a problem, in a sentence, or None.  Arguments as of `looked_at`."""
    return looked_at(*arguments, **options)[0]


def fitted(task, model, vocabulary, max_new_tokens, reads=(), others=(), control_tokens="plain",
           paid=False):
    """The task, without the rows of a file that the run cannot use.

    reads: the keys of the rows that the method learns from.  others: problems to look at where
    the task is no file.  control_tokens: as in `looked_at`.  paid: whether an answer that equals a
    row's completion counts as right.  MinipostError for the first problem that the run cannot use,
    unless --on-bad-row is skip.  Of rows that are too long it says how many there are, unless
    --on-long-row says what becomes of them.
    """
    own = isinstance(task, File) and not reads  # as in `Setting`
    most = task.longest(model.context) if own else model.context
    if max_new_tokens >= most and (isinstance(task, File) or others):  # whatever is asked
        what = f"--max-length {most}" if most < model.context else f"the model's context of {most}"
        raise MinipostError(f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in "
                            f"{what}; lower it")
    if not isinstance(task, File):
        for problem in others:
            if said := complaint(problem, model, vocabulary, max_new_tokens, reads):
                raise MinipostError(said)
        return task
    cut, last = [], None

    def look(problem):
        return looked_at(problem, model, vocabulary, max_new_tokens, reads, control_tokens, task)

    def check(problem):
        nonlocal last
        last, over = look(problem)
        if over and last is None:
            cut.append((over, problem.place))
        return last

    try:
        found = task.fitted(reads, check, paid)
    except MinipostError as error:
        if isinstance(last, TooLong) and task.on_bad_row == task.on_long_row == "stop":
            said = too_long(task, look, task.longest(model.context))
            raise MinipostError(said or error) from None
        raise
    if cut:
        over, place = max(cut)
        most = task.longest(model.context)
        found.notes.append(f"{len(cut)} of {len(found.rows)} rows are longer than {most} tokens: "
                           f"the ends of their answers are cut (--on-long-row truncate); the "
                           f"longest, {place}, has {most + over}")
    return found


def too_long(task, look, most):
    """The sentence on the rows of a file that are too long, or "" where there is but one."""
    problems = [problem for side in task.sides for problem in side]
    found = [(said.tokens, problem.place) for problem in problems
             if isinstance(said := look(problem)[0], TooLong)]
    if len(found) < 2:
        return ""
    what = f"--max-length {most}" if most == task.max_length else f"the model's context of {most}"
    tokens, place = max(found)
    return (f"{len(found)} of {len(problems)} rows do not fit {what}; the longest is {place}, with "
            f"{tokens} tokens and room for an answer; --on-long-row skip leaves them out, truncate "
            "cuts given answers, a lower --max-new-tokens leaves room for those of the model")
