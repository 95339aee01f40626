"""What a task is: problems in words, an exact reward, and a held-out split.

A task works with strings and knows nothing of tensors or models, so the same task serves training,
evaluation and search.  It is one file in minipost/tasks/ with one class, a frozen dataclass that
derives from `Task`.  The task is found by its `name`.  Its fields are its knobs, and the command
line makes flags of them.  `reward` has TRL's signature: it takes the prompts, the completions and
every column of the problems, each as a list.  Any function of that form can replace it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from minipost.errors import MinipostError

MOST_HELD_OUT = 10_000  # problems in a held-out split that is drawn


@dataclass(frozen=True)
class Problem:
    """One prompt, with the data that its reward function needs (the columns)."""

    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)  # "FILE, line N" of a row of a file


class Task(Protocol):
    """What every task has, and what it may have.  A task need not define what is None here."""

    name: ClassVar[str]

    # ---- what every task defines

    def sample(self, n, rng) -> Sequence[Problem]:
        """n problems to train on, drawn with `rng`.  None is held out."""
        ...

    def heldout(self, n) -> Sequence[Problem]:
        """The first n held-out problems in a fixed order, fewer if there are fewer."""
        ...

    def demonstrate(self, problem, rng=None) -> str:
        """A completion that answers the problem, as training data shows it."""
        ...

    def reward(self, *args: Any, **columns: Any) -> Sequence[float]:
        """reward(prompts, completions, **columns) -> what each is worth, 1.0 where it is right."""
        ...

    def parse(self, text) -> Any:
        """The answer that a completion states, or None.  Never raises.

        tasks/answers.py has the grammar that all tasks share.  `reward` and `ballot` go by what
        `parse` reads: where it is None, the reward is 0.0 and the ballot None.
        """
        ...

    # ---- what a task may define, and who uses it

    #: training() -> the list of all training problems, if it is finite; a run repeats it in epochs
    training: Callable | None = None
    #: splits(n) -> {name: problems} to report, the headline first; by default the held-out problems
    splits: Callable | None = None
    #: `reward` only labels preferences and measures results; no learner may score by it
    hidden: bool = False
    #: the share of preference labels that come out wrong
    noise: float = 0.0
    #: {name: the instruction to a judge who compares answers}  (rlaif)
    principles: Mapping[str, str] = {}
    #: the text at the end of each step of an answer  (oreo, prm, every search)
    step_end: str = "\n"
    #: steps(text) -> the steps of an answer; check_steps(problem, text) -> whether each is right
    #: (prm)
    steps: Callable | None = None
    check_steps: Callable | None = None
    #: answers(problem) -> all right completions in the task's own spelling, None where they cannot
    #: be listed  (evaluate --pass-at)
    answers: Callable | None = None
    #: {name: f} of what a reward may pay for beside being right, each of the form of `reward`;
    #: thinking(problem, text) -> {name: count} of what the thought in an answer consists of
    #: (r1_zero, r1)
    rules: Mapping[str, Callable] = {}
    thinking: Callable | None = None
    #: reflections(text) -> the places in an answer where a step has ended and what stands there may
    #: be reflected on  (satori)
    reflections: Callable | None = None
    #: hint(problem) -> the prompt with its answer in it  (rft --hint)
    hint: Callable | None = None
    #: skipped() -> sentences on rows that were left out of a file
    skipped: Callable = staticmethod(list)
    #: pose(text) -> the problem that a user wrote  (solve --problem TEXT)
    pose: Callable | None = None
    #: example(problem, completion="") -> a prompt without a cue, answered or not;
    #: like(problem) -> the same problem in this mode; the knobs direct and hurried are modes
    #: (cot, self_consistency)
    example: Callable | None = None
    like: Callable | None = None
    direct: bool = False
    hurried: bool | None = None
    #: questions(problem, text) -> [(question, the reply that approves)] on a beginning of an answer
    #: (best_of_n, mcts, tot)
    questions: Callable | None = None
    #: state(problem, text) -> the same value for beginnings that come to the same  (tot)
    state: Callable | None = None
    #: criticise(problem, draft) -> what is wrong with it, for `approves` and `revise`  (sdpo)
    criticise: Callable | None = None
    #: critique(problem, draft) -> prompt; approves(critique) -> bool;
    #: revise(problem, draft, critique) -> prompt  (self_feedback)
    critique: Callable | None = None
    approves: Callable | None = None
    revise: Callable | None = None
    #: parts(problem, size) -> parts, signs; joined(answers, signs, size)  (graph_of_thoughts)
    parts: Callable | None = None
    joined: Callable | None = None
    #: stream(length, things, rng) -> episodes; asked(episodes, question) -> prompt;
    #: lock(keys, tried) -> prompt  (memory)
    stream: Callable | None = None
    asked: Callable | None = None
    lock: Callable | None = None
    #: choosing(problem, texts) -> the prompt that lists answers and asks on which most agree;
    #: chosen(text) -> the number of the one that a reply names, from 1 on, or None; forms: whether
    #: an answer may take any form, which is a mode as direct is  (universal_self_consistency)
    choosing: Callable | None = None
    chosen: Callable | None = None
    forms: bool = False
    #: polish(problem) -> the prompt that asks for the problem in clearer words;
    #: polished(problem, text) -> the problem in the words of a reply;
    #: keeps(problem) -> whether the words of a problem still ask for its answer  (self_polish)
    polish: Callable | None = None
    polished: Callable | None = None
    keeps: Callable | None = None
    #: call_end: the text that ends a call of the tool; tool(problem, text) -> what the tool writes
    #: behind an answer that ends so; acts: whether every answer of a run is made with it  (react)
    call_end: str = ""
    tool: Callable | None = None
    acts: bool = False
    #: messages(problem) -> (turns of the prompt, turns of the answer), {"role", "content"} each,
    #: where --chat is to show a conversation and not one message  (dialogue)
    messages: Callable | None = None

    def ballot(self, text):
        """What a vote counts in an answer: by default, what `parse` reads.

        Completions with the same ballot have the same reward.
        """
        return self.parse(text)


def within(low, high, **knobs):
    """MinipostError unless each of these knobs is a whole number from `low` to `high`."""
    for name, value in knobs.items():
        if type(value) is not int or not low <= value <= high:
            raise MinipostError(f"{name} must be {low}..{high}, not {repr(value)[:40]}")


def switches(**knobs):
    """MinipostError unless each of these knobs is True or False."""
    for name, value in knobs.items():
        if type(value) is not bool:
            raise MinipostError(f"{name} must be True or False, not {repr(value)[:40]}")


def is_held_out(numbers, share=10):
    """Whether a problem with these numbers belongs to the held-out split, one in `share` of all.

    The rule looks at the multiset of operands alone.  So a held-out problem cannot come back in
    training with its terms in another order, with other signs or for another target.
    """
    key = " ".join(str(n) for n in sorted(numbers))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % share == 0


def question(principle, prompt, first, second):
    """The prompt of a judge who compares two answers.  The judge replies " A" or " B"."""
    return f"Judge: {principle}.\n{prompt}A: {first}\nB: {second}\nBetter:"
