"""Whether a run can use a problem.  All problems are looked at before its first step.

A check says why a run cannot use a problem, or None:

    check(asked, answers, setting)

    asked       the problem's prompt, a Text
    answers     {key: Text} of the answers that are learnt
    setting     the vocabulary, the model's context, the longest response

Lengths are in tokens, BOS and EOS included.  A further check is a function in CHECKS.
"""

from dataclasses import dataclass
from typing import Any

from minipost.datasets.prompts import ANSWERS
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.rollout import NO_TOKENS
from minipost.tokenizer import written

NAMES = {"completion": "a completion", "chosen": "a chosen answer", "rejected": "a rejected answer"}


@dataclass(frozen=True)
class Text:
    """A text and its ids."""

    text: str
    ids: list[int]

    def __str__(self):
        return f"{len(self.ids)} tokens ({self.text[:40]!r})"


@dataclass(frozen=True)
class Setting:
    """The vocabulary, and what a model and a run have room for, in tokens."""

    vocabulary: Any
    context: int
    max_new_tokens: int
    control_tokens: str = "plain"  # how control tokens are read that a text spells out


def empty_prompt(asked, answers, setting):
    """A model predicts behind a token.  So an empty prompt needs a BOS."""
    if not asked.ids:
        return NO_TOKENS


def long_prompt(asked, answers, setting):
    """A prompt leaves room for the longest response."""
    if len(asked.ids) >= setting.context:
        return (f"a prompt of {asked} leaves no room for a response in the model's context of "
                f"{setting.context}; shorten it")
    if len(asked.ids) + setting.max_new_tokens > setting.context:
        return (f"a prompt of {asked} and a response of up to {setting.max_new_tokens} do not fit "
                f"the model's context of {setting.context}; lower --max-new-tokens to "
                f"{setting.context - len(asked.ids)} or shorten the prompt")


def long_answer(asked, answers, setting):
    """A prompt and each of its answers fit the context."""
    for key, answer in answers.items():
        if len(asked.ids) + len(answer.ids) > setting.context:
            return (f"a prompt of {asked} and {NAMES[key]} of {answer} do not fit the model's "
                    f"context of {setting.context}; shorten them")


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


def complaint(problem, model, vocabulary, max_new_tokens, reads=ANSWERS, control_tokens="plain"):
    """Why a run cannot use a problem, in a sentence, or None.

    reads: the keys of the answers that are learnt.  A problem need not have them.
    control_tokens: "tokens", "plain", or "stop" where nobody said how they are read.
    """
    how = {"control": True} if control_tokens == "tokens" else {}
    given = {key: problem.columns.get(key) for key in ANSWERS if key in reads}
    try:
        asked = Text(problem.prompt, vocabulary.prompt(problem.prompt, **how))
        answers = {key: Text(text, written(vocabulary, problem.prompt, text, **how)[1])
                   for key, text in given.items() if isinstance(text, str)}
    except MinipostError as error:  # such as a template that refuses the order of a row's turns
        return str(error)
    setting = Setting(vocabulary, model.context, max_new_tokens, control_tokens)
    return next(filter(None, (check(asked, answers, setting) for check in CHECKS)), None)


def fitted(task, model, vocabulary, max_new_tokens, reads=(), others=(), control_tokens="plain"):
    """The task, without the rows of a file that the run cannot use.

    reads: the keys of the rows that the method learns from.  others: problems to look at where
    the task is no file.  control_tokens: as in `complaint`.  MinipostError for the first problem
    that the run cannot use, unless --on-bad-row is skip.
    """
    def check(problem):
        return complaint(problem, model, vocabulary, max_new_tokens, reads, control_tokens)

    if isinstance(task, File):
        return task.fitted(reads, check)
    for problem in others:
        if said := complaint(problem, model, vocabulary, max_new_tokens, reads):
            raise MinipostError(said)
    return task
