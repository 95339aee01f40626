"""The corpus of checkpoints/thinker: the modes that the methods of minipost/test_time elicit.

    sums answered at once, in worked steps that slip at random, in a hurry with the same fault every
    time, checked on the way, and after examples of either kind
    single steps
    drafts criticised and revised
    good and bad moves of the Game of 24, moves worked out again, whole answers to it at once, and
    whether some numbers can still make 24
    codes that only earlier episodes tell, and keys that have not been tried yet

Everything comes from training splits, and no document shows the working of a held-out problem of
these tasks.  (Their steps are sums of two numbers too.  scripts/pretrain.py keeps some of those
sums from the base because the facts hold them out.  The thinker is not asked for facts.)
"""

import functools
import re
from collections import Counter

from minipost.tasks.arithmetic import LIMIT, Arithmetic
from minipost.tasks.base import Problem, Task, is_held_out
from minipost.tasks.countdown import Countdown, all_whole, evaluate, held_out, moves, solvable
from minipost.tasks.recall import KEYS, Recall

SLIP = 0.13     # chance that a worked step goes wrong, so 5 steps in a row are right half the time
SHORT = 0.6     # chance that a large term is counted one short in a hurry
BAD = 0.3       # chance that a move is drawn at random
TERMS = 8       # longest chain
LONG = 12       # longest chain of single digits that is worked or answered at once
LARGE = 60      # largest number in the other such chains
GAME = 24
KINDS = {       # kind of document: share of the corpus
    "worked": 0.10, "hurried": 0.05, "direct": 0.05, "examples": 0.04,
    "checked": 0.03, "step": 0.02, "critique": 0.07, "revision": 0.05,
    "moves": 0.14, "expression": 0.02, "again": 0.10, "reach": 0.20,
    "recall": 0.12, "lock": 0.01,
}


class Thoughts(Task):
    """The documents, as a task: problems with the demonstration already chosen."""

    def sample(self, n, rng):
        kinds = rng.choices(list(KINDS), KINDS.values(), k=n)
        return [MAKERS[kind](rng) for kind in kinds]

    def demonstrate(self, problem, rng):
        return problem.columns["completion"]


@functools.cache
def sums(terms, **knobs):
    return Arithmetic(terms=terms, **knobs)


def chain(rng, terms=None, **knobs):
    """A training sum without a held-out beginning, and its task."""
    task = sums(terms or rng.randint(2, TERMS), **knobs)
    while True:
        problem, = task.sample(1, rng)
        numbers = [int(n) for n in re.findall("[0-9]+", problem.columns["chain"])]
        if not any(is_held_out(numbers[:k]) for k in range(2, len(numbers))):
            return task, problem


def document(prompt, completion, **columns):
    return Problem(prompt, {**columns, "completion": completion})


def answered(rng, slip=0.0, **knobs):
    task, problem = chain(rng, **knobs)
    return document(problem.prompt, task.demonstrate(problem, rng, slip), **problem.columns)


def length(rng, least=2):
    """The knobs of a chain of single digits, or of a shorter chain with numbers up to LARGE."""
    if rng.random() < 0.5:
        return dict(terms=rng.randint(least, LONG))
    return dict(terms=rng.randint(least, TERMS), largest=LARGE)


def worked(rng):
    """A sum in steps.  Sometimes a lone number, as it occurs when a sum is split into parts."""
    if rng.random() < 0.03:
        number = rng.randint(1, LARGE)
        return document(f"{number}=? Think:\n", f"Answer: {number}")
    return answered(rng, SLIP, **length(rng))


def checked(rng):
    """A sum with steps that are checked on the way.  Half of the steps are wrong."""
    task, problem = chain(rng)
    prompt, text = task.checked(problem, rng, 0.5)
    return document(prompt, text, **problem.columns)


def examples(rng):
    """Two or three sums without a cue, all but the last answered in the same way."""
    knobs = dict(length(rng, 4), direct=rng.random() < 0.5)
    slip = 0.0 if knobs["direct"] else SLIP
    *shown, (task, last) = [chain(rng, **knobs) for _ in range(rng.randint(2, 3))]
    prompt = "".join(task.example(p, task.demonstrate(p, rng, slip)) for _, p in shown)
    answer = "Answer:" * knobs["direct"] + task.demonstrate(last, rng, slip)
    return document(prompt + task.example(last), answer, **last.columns)


def draft(rng):
    """A sum with a draft that is wrong half the time, and a critique of the draft."""
    task, problem = chain(rng)
    text = task.demonstrate(problem, rng, SLIP)
    return task, problem, text, task.criticise(problem, text)


def critique(rng):
    task, problem, text, found = draft(rng)
    return document(task.critique(problem, text), found, **problem.columns)


def revision(rng):
    """A faulty draft, mended.  The steps after the mended one slip like any others."""
    while True:
        task, problem, text, found = draft(rng)
        if not task.approves(found):
            return document(task.revise(problem, text, found), task.mend(problem, text, rng, SLIP),
                            **problem.columns)


def step(rng):
    """A single step, worked out again."""
    before, largest = rng.randint(0, LIMIT), rng.choice((9, 9, LARGE))
    after = rng.randint(max(0, before - largest), min(LIMIT, before + largest))
    return document(f"{before}{after - before:+d}=", f"{after}")


# ---- the Game of 24

@functools.cache
def game(**knobs):
    return Countdown(numbers=4, target=GAME, **knobs)


@functools.cache
def whole_moves(state):
    """The moves that leave whole numbers: (line, next state)."""
    return [move for move in moves(state) if all_whole(move[1])]


def seen(text):
    """Whether a line of an answer leaves three numbers that are a held-out hand."""
    left = (line.rpartition(":")[2].split() for line in text.split("\n"))
    return any(len(found) == 3 and held_out(map(int, found)) for found in left
               if all(n.isdecimal() for n in found))


def moves_made(rng, **knobs):
    task = game()
    while True:
        problem, = task.sample(1, rng)
        text = task.demonstrate(problem, rng, bad=BAD)
        if not seen(text):
            return document(problem.prompt, text, **problem.columns)


def expression(rng):
    task = game(direct=True)
    problem, = task.sample(1, rng)
    return document(problem.prompt, task.demonstrate(problem, rng), **problem.columns)


def again(rng):
    """A move worked out again, or "no" if its numbers are missing or its result is not whole."""
    while True:
        state, size = tuple(sorted(rng.choices(range(1, 14), k=4))), rng.randint(2, 4)
        if held_out(state):
            continue
        while len(state) > size:
            _, state = rng.choice(whole_moves(state))
        a, b = rng.sample(state, 2)
        op = rng.choice("++--**/")
        if rng.random() < 0.8:
            a, b = max(a, b), min(a, b)                     # the order in which moves are written
        if rng.random() < 0.15:
            a, b = rng.choice([(a, a), (b, b), (a, changed(b, rng)), (changed(a, rng), b)])
        result, left = worked_out(state, a, op, b)
        if not any(len(numbers) == 3 and held_out(numbers) for numbers in (state, left)):
            break
    reply = f"{result}:{' '.join(map(str, left))}" if left else "no"
    return document(f"{' '.join(map(str, state))}: {a}{op}{b}=", reply, numbers=list(state))


def worked_out(state, a, op, b):
    """The whole number that a move makes and the state that it leaves, or (None, ())."""
    held, used, found = Counter(state), Counter((a, b)), evaluate(f"{a}{op}{b}")
    if not used <= held or found is None or not all_whole(found[:1]):
        return None, ()
    return found[0], tuple(sorted([*(held - used).elements(), found[0]]))


def changed(number, rng):
    """Another number, near the first or not."""
    return rng.choice([n for n in (number + rng.choice((-10, -2, -1, 1, 2, 10)),
                                   rng.randint(0, 13), rng.randint(0, 40)) if n >= 0])


def reach(rng):
    """Whether the numbers after some moves from a training hand can still make 24.

    Most often there are three numbers.  Both answers are equally frequent.
    """
    size, right = rng.choice((3, 3, 3, 3, 2, 2, 1)), rng.random() < 0.5
    while True:
        state = tuple(sorted(rng.choices(range(1, 14), k=4)))
        if held_out(state):
            continue
        while len(state) > size:
            _, state = rng.choice(whole_moves(state))
        if solvable(state, GAME) == right and not (len(state) == 3 and held_out(state)):
            break
    (question, reply), = game().questions(Problem("", {"numbers": state, "target": GAME}), "")
    return document(question, reply if right else "no")


# ---- memory

def recall(rng):
    """A question after a few episodes, or a life.

    In a life, every answer that was told before is learnt.
    """
    if rng.random() < 0.6:
        life = Recall().stream(rng.randint(2, 10), rng.randint(1, 6), rng, held=False)
        if any(told for _, _, told in life):
            return lived(life)
    task = Recall(episodes=rng.randint(0, 7))
    problem, = task.sample(1, rng)
    return document(problem.prompt, task.demonstrate(problem), **problem.columns)


def lived(life):
    """A life up to the last answer that was told before.

    Its `parts` cut the completion into pieces that are learnt and pieces that are not, in turn.
    """
    parts = [""]
    for question, answer, told in life:
        parts[-1] += f"{question}?"
        if told:
            parts += [f" {answer}", "\n"]
        else:
            parts[-1] += f" {answer}\n"
    prompt, *parts = parts[:-1]
    return document(prompt, "".join(parts), parts=parts)


def lock(rng):
    keys = rng.choice(KEYS)
    *tried, key = rng.sample(range(1, keys + 1), rng.randint(1, keys))
    return document(Recall().lock(keys, tried), f" {key}")


MAKERS = {
    "worked": worked,
    "hurried": lambda rng: answered(rng, SHORT, hurried=True),
    "direct": lambda rng: answered(rng, direct=True, **length(rng)),
    "examples": examples, "checked": checked, "step": step, "critique": critique,
    "revision": revision, "moves": moves_made, "expression": expression, "again": again,
    "reach": reach, "recall": recall, "lock": lock,
}
