r"""Countdown: combine all the numbers with + - * / to reach a target, one exact move per line.

Each line ends with the numbers that are left after its move:

    Reach 24 from 4 9 10 13:
    13-9=4:4 4 10
    10-4=6:4 6
    6*4=24:24

With `direct` the prompt is "Reach 24 from 4 9 10 13. Answer:" and the completion is an expression,
" (10-4)*(13-9)".  Numbers other than 0, 1, 2, ... stand in parentheses: (8/3), (-3).  A state is a
sorted tuple of exact rationals: int for whole numbers, Fraction for others.  Nothing is ever
rounded.

A move may have spaces around its signs and numbers, and any of the signs in tasks/answers.py.  An
answer in moves has nothing but moves, at most MOST_MOVES, and the last leaves a single number.

An answer at once is one expression of whole numbers, + - * / and parentheses, with or without
spaces, of at most 64 other characters.  It may be wrapped as tasks/answers.py says, and "=" and its
value may follow: "(10 - 4) × (13 − 9) = 24", "\boxed{(10-4)*(13-9)}".  Numbers have no sign.  "**",
"//", "1.0", "1_0" and "007" are no part of an expression.  Where a value behind "=" is not that of
the expression, nothing is stated.
"""

import ast
import hashlib
import operator
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import combinations, combinations_with_replacement, islice, permutations

from minipost.errors import MinipostError
from minipost.files import shipped
from minipost.tasks import answers
from minipost.tasks.arithmetic import PATIENCE, distinct
from minipost.tasks.base import MOST_HELD_OUT, Problem, Task, is_held_out, switches, within

# The hands on which Yao et al. 2023 (arxiv.org/abs/2305.10601, table 2) report GPT-4, one a line.
HANDS_24 = shipped("data/game24_test.txt")
MOST_MOVES = 8  # lines of an answer; the problems take two or three
FRACTION = rf"-?{answers.NATURAL}(?:/[1-9][0-9]{{0,8}})?"
NUMBER = rf"(?:{answers.NATURAL}|\({FRACTION}\))"
MOVE = re.compile(rf"({NUMBER})([-+*/])({NUMBER})=({NUMBER}):({NUMBER}(?: {NUMBER})*)")
VALUE = re.compile(rf"{FRACTION}|\({FRACTION}\)")
EXPRESSION = re.compile(rf"(?: *(?:[-+*/()]|{answers.NATURAL}(?![0-9])))+ *")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.Div: operator.truediv}


def plain(line):
    """The line as the task itself writes a move, without spaces around signs."""
    words = " ".join(filter(None, answers.spell(line).split(" ")))
    return re.sub(r" (?=[-+*/=:)])|(?<=[-+*/=:(]) ", "", words)


def apply(state, line):
    """Return the state after the move on `line`, or None if it is no exact legal move."""
    match = MOVE.fullmatch(plain(line))
    if match is None:
        return None
    a, b, result = (_read(match[k]) for k in (1, 3, 4))
    left = list(state)
    for operand in (a, b):
        if operand not in left:
            return None
        left.remove(operand)
    if match[2] == "/" and b == 0 or _compute(a, match[2], b) != result:
        return None
    after = tuple(sorted([*left, result]))
    return after if list(after) == sorted(_read(n) for n in match[5].split()) else None


def moves(state):
    """Return (line, next state) for each state one move away, each state once.

    The larger operand comes first except in divisions, so no result is negative.  A positive target
    can need another negative number only if the state already holds one.
    """
    found = {}
    for i, j in combinations(range(len(state)), 2):
        b, a = state[i], state[j]
        rest = state[:i] + state[i + 1:j] + state[j + 1:]
        for x, op, y in ((a, "+", b), (a, "-", b), (a, "*", b), (a, "/", b), (b, "/", a),
                         (b, "-", a)):
            if (op == "/" and y == 0) or (op == "-" and x < y and state[0] >= 0):
                continue
            result = _compute(x, op, y)
            after = tuple(sorted((*rest, result)))
            if after not in found:
                left = " ".join(map(_show, after))
                found[after] = f"{_show(x)}{op}{_show(y)}={_show(result)}:{left}"
    return [(line, after) for after, line in found.items()]


def solvable(numbers, target, whole=False):
    """Whether `numbers` can make `target`; with `whole`, by non-negative integers alone."""
    return _solvable(tuple(sorted(numbers)), target, whole)


def solve(numbers, target):
    """Yield every solution as a completion.  No two pass through the same states."""
    state = tuple(sorted(numbers))
    if state == (target,):
        yield ""
    for line, after in moves(state):
        if solvable(after, target):
            for rest in solve(after, target):
                yield f"{line}\n{rest}" if rest else line


def all_solutions(state, target):
    """Every solution from a sorted state, each move with its operands in either order.

    Unlike `solve` it lists different moves to the same state, and moves below zero.
    """
    if len(state) == 1:
        return ("",) if state == (target,) else ()
    found = []
    for line, after in sorted(all_moves(state)):
        if solvable(after, target):
            found += (f"{line}\n{rest}" if rest else line for rest in all_solutions(after, target))
    return tuple(found)


def all_moves(state):
    """{(line, next state)} of every legal move, numbers left in order."""
    found = set()
    for i, j in permutations(range(len(state)), 2):
        a, b = state[i], state[j]
        rest = [n for k, n in enumerate(state) if k not in (i, j)]
        for op in "+-*/" if b else "+-*":
            result = _compute(a, op, b)
            after = tuple(sorted([*rest, result]))
            found.add((f"{_show(a)}{op}{_show(b)}={_show(result)}:{' '.join(map(_show, after))}",
                       after))
    return found


def evaluate(text):
    """(exact value, numbers used) of an expression of whole numbers; None if it is none."""
    if len(text.replace(" ", "")) > 64 or not EXPRESSION.fullmatch(text):
        return None
    used = []

    def value(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        used.append(node.value)
        return Fraction(node.value)

    try:
        return value(ast.parse(text.strip(), mode="eval").body), sorted(used)
    except (SyntaxError, ValueError, KeyError, AttributeError, ZeroDivisionError, RecursionError):
        return None


def at_once(text):
    """(value, numbers used, expression without spaces) of an answer at once; None if it is none."""
    left, equals, right = answers.stated(text).partition("=")
    made, right = answers.unwrap(left), answers.unwrap(right)
    found = evaluate(made)
    if found is None or equals and not (VALUE.fullmatch(right) and _read(right) == found[0]):
        return None
    return *found, made.replace(" ", "")


def expression(text):
    """The expression that the lines of `text` build; None if a line is no move.

    Operands of + and * come in one fixed order.  The lines are not checked: a wrong result stands
    for the expression on its line.
    """
    made = {}                                   # number: expressions that make it
    whole, lines = "", text.rstrip("\n").split("\n")
    if len(lines) > MOST_MOVES:
        return None
    for line in lines:
        if (match := MOVE.fullmatch(plain(line))) is None:
            return None
        a, b = (made[n].pop() if made.get(n) else _show(n) for n in map(_read, match.group(1, 3)))
        if match[2] in "+*":
            a, b = sorted((a, b))
        whole = f"({a}{match[2]}{b})"
        made.setdefault(_read(match[4]), []).append(whole)
    return whole[1:-1]


def start(line):
    """The whole numbers that the move on `line` starts from by what it says is left, or None."""
    match = MOVE.fullmatch(plain(line))
    if match is None:
        return None
    a, b, result, *left = map(_read, (*match.group(1, 3, 4), *match[5].split()))
    if result not in left:
        return None
    left.remove(result)
    return [a, b, *left] if all_whole([a, b, *left]) else None


def held_out(numbers):
    """Whether these numbers belong to the held-out split, whatever the target.

    Of the hands of the Game of 24 those of HANDS_24 are held out, and no other.  Any other numbers
    follow the rule that all tasks share.
    """
    hand = tuple(sorted(numbers))
    if len(hand) == 4 and hand in _solvable_24():
        return hand in _hands_24()
    return is_held_out(hand)


@dataclass(frozen=True)
class Countdown(Task):
    """Reach a target with every number used exactly once."""

    numbers: int = 3            # how many numbers to combine, 3 or 4
    largest: int = 13           # the numbers are 1..largest
    target: int = 0             # 0: any reachable target from 10 to 99; 24: the Game of 24
    direct: bool = False        # answer with one expression at once (taught to checkpoints/thinker)

    name = "countdown"

    def __post_init__(self):
        switches(direct=self.direct)
        within(3, 4, numbers=self.numbers)
        within(0, 24, target=self.target)
        if self.target not in (0, 24):
            raise MinipostError(f"target must be 0 (any) or 24, not {self.target}")
        # 100**4 still fits the nine digits of a move
        within(1, 13 if self.target else 100, largest=self.largest)
        for held, split in ((False, "training"), (True, "held-out")):
            if next(self._draws(random.Random(0), held), None) is None:
                raise MinipostError(f"numbers={self.numbers}, largest={self.largest} leaves no "
                                    f"problem for the {split} split; raise one of them")

    def sample(self, n, rng):
        """Draw n training problems with `rng`.  None has held-out numbers."""
        return [next(self._draws(rng, held=False)) for _ in range(n)]

    def heldout(self, n):
        """Return the first n held-out problems in a fixed order, fewer if there are fewer.

        There are at most MOST_HELD_OUT.
        """
        if self.target:
            hands = _hands(self.numbers, self.largest, self.target, True)
            return [self._problem(hand, self.target) for hand in hands[:n]]
        draws = self._draws(random.Random(f"held-out {self.numbers} {self.largest}"), held=True)
        return list(islice(distinct(draws), min(n, MOST_HELD_OUT)))

    def demonstrate(self, problem, rng=None, bad=0.0):
        """Write a solution, with whole numbers only if there is such a solution.

        With probability `bad` a move is any legal move between whole numbers instead.  If the
        target is out of reach, such moves continue to a single number.
        """
        rng = rng or random.Random(0)
        state, target = tuple(sorted(problem.columns["numbers"])), problem.columns["target"]
        lines = []
        while len(state) > 1:
            options = moves(state)
            rng.shuffle(options)
            line, state = _choose(options, target, astray=rng.random() < bad)
            lines.append(line)
        text = "\n".join(lines)
        return f" {expression(text)}" if self.direct else text

    def answers(self, problem):
        """Every right completion in moves, spelt as `demonstrate` spells it; None if `direct`.

        The reward accepts more: other spaces and signs, and the numbers left in another order.
        """
        hand = tuple(sorted(problem.columns["numbers"]))
        return None if self.direct else all_solutions(hand, problem.columns["target"])

    def parse(self, text):
        """Return the single number that the last line leaves, or the expression makes, or None."""
        if self.direct:
            found = at_once(text)
            return found and found[0]
        if expression(text) is None:
            return None
        left = plain(self.steps(text)[-1]).rpartition(":")[2]
        return Fraction(_read(left)) if re.fullmatch(NUMBER, left) else None

    def reward(self, prompts, completions, numbers, target, **columns):
        """Return 1.0 if every line is a legal move and the last leaves only the target, else 0.0.

        An expression earns 1.0 if it makes the target from all the numbers.
        """
        rewards = []
        for text, hand, goal in zip(completions, numbers, target, strict=True):
            if self.direct:
                found = at_once(text)
                rewards.append(float(found is not None and found[:2] == (goal, sorted(hand))))
                continue
            states = self._walk(hand, text)
            solved = states and states[-1] == (goal,) and len(states) == len(self.steps(text))
            rewards.append(float(bool(solved)))
        return rewards

    def ballot(self, text):
        """What a vote counts: the expression, since every right answer leaves the same number.

        Moves that are not exact from their first line on have votes of their own.
        """
        if self.parse(text) is None:
            return None
        if self.direct:
            return at_once(text)[2]
        steps = self.steps(text)
        exact = (hand := start(steps[0])) and len(self._walk(hand, text)) == len(steps)
        return expression(text) if exact else f"{expression(text)}, not exact"

    def state(self, problem, text):
        """The numbers that are left after the lines of `text`, as the last line states them."""
        left = plain((self.steps(text) or [""])[-1]).rpartition(":")[2]
        return left or " ".join(map(str, problem.columns["numbers"]))

    def questions(self, problem, text):
        """The questions to a judge of `text`: pairs (question, reply that approves).

        The judge works out each move again from the numbers before it, and says "no" if that is
        impossible.  In reply to the last question, "ok" says that the numbers after the last move
        can still make the target.
        """
        found, before = [], ""
        for line in self.steps(text):
            move, _, result = plain(line).partition("=")
            found.append((f"{self.state(problem, before)}: {move}=", result))
            before = line
        return [*found, (f"{problem.columns['target']} from {self.state(problem, text)}?", "ok")]

    def steps(self, text):
        """Return the lines.  Step k ends at newline k, and the last step may lack its newline."""
        lines = text.split("\n")
        return lines[:-1] if lines[-1] == "" else lines

    def states(self, problem, text):
        """Return the state after each line, up to the first line that is no legal move."""
        return self._walk(problem.columns["numbers"], text)

    def check_steps(self, problem, text):
        """Return whether each line is legal and the target is still within reach after it."""
        states = self.states(problem, text)
        reach = [solvable(state, problem.columns["target"]) for state in states]
        return reach + [False] * (len(self.steps(text)) - len(states))

    def _walk(self, numbers, text):
        state, states = tuple(sorted(numbers)), []
        for line in self.steps(text):
            state = apply(state, line)
            if state is None:
                break
            states.append(state)
        return states

    def _draws(self, rng, held):
        """Yield problems of one split.  End after PATIENCE draws in a row without one."""
        hands = self.target and _hands(self.numbers, self.largest, self.target, held)
        while hands:
            yield self._problem(rng.choice(hands), self.target)
        misses = 0
        while not self.target and misses < PATIENCE:
            misses += 1
            hand = sorted(rng.choices(range(1, self.largest + 1), k=self.numbers))
            if held_out(hand) == held and 10 <= (target := _random_result(hand, rng)) <= 99:
                misses = 0
                yield self._problem(hand, target)

    def pose(self, text):
        """The problem of the numbers in `text`; MinipostError if there is none.

        Spaces or commas part the numbers.  "target:" stands before them unless it is fixed.
        """
        target, _, hand = text[:200].rpartition(":")
        numbers, goal = hand.replace(",", " ").split(), target.strip() or str(self.target)
        right = [re.fullmatch("[1-9][0-9]{0,2}", n) is not None for n in [*numbers, goal]]
        if not all(right) or len(numbers) != self.numbers or len(text) > 200:
            raise MinipostError(f"--problem {text[:40]!r}: expected {self.numbers} whole numbers, "
                                "of up to three digits, such as "
                                f"{'4 9 10 13'[: -3 if self.numbers == 3 else None]!r}"
                                f"{'' if self.target else ', behind a target and a colon'}")
        return self._problem(sorted(map(int, numbers)), int(goal))

    def like(self, problem):
        """The same problem in this task's wording."""
        return self._problem(problem.columns["numbers"], problem.columns["target"])

    def _problem(self, hand, target):
        ending = ". Answer:" if self.direct else ":\n"
        prompt = f"Reach {target} from {' '.join(map(str, hand))}{ending}"
        return Problem(prompt, {"numbers": list(hand), "target": target})


def _choose(options, target, astray):
    """Pick a move that keeps a whole solution, else any solution, else only whole numbers."""
    if not astray:
        for whole in (True, False):
            for line, after in options:
                if solvable(after, target, whole):
                    return line, after
    return next((move for move in options if all_whole(move[1])), options[0])


def _random_result(hand, rng):
    """Combine the numbers by random moves between non-negative integers."""
    left = list(hand)
    while len(left) > 1:
        rng.shuffle(left)
        a, b = left.pop(), left.pop()
        a, b = max(a, b), min(a, b)
        op = rng.choice("+-*/" if b and a % b == 0 else "+-*")
        left.append(_compute(a, op, b))
    return left[0]


@cache
def _hands_24():
    """Return the held-out hands of the Game of 24."""
    try:
        lines = HANDS_24.read_text(encoding="ascii").split("\n")[:-1]
        hands = frozenset(tuple(sorted(map(int, line.split()))) for line in lines)
    except (OSError, ValueError) as error:
        raise MinipostError(f"{HANDS_24}: {error}; expected four numbers 1..13 a line") from None
    if not hands <= _solvable_24() or len(hands) != len(lines):
        raise MinipostError(f"{HANDS_24}: expected different hands that can make 24, four numbers "
                            "1..13 a line")
    return hands


@cache
def _solvable_24():
    """Return every hand of the Game of 24."""
    return frozenset(_ranked(4, 13, 24))


@cache
def _ranked(count, largest, target):
    hands = combinations_with_replacement(range(1, largest + 1), count)
    return sorted((hand for hand in hands if solvable(hand, target)), key=_digest)


@cache
def _hands(count, largest, target, held):
    return [hand for hand in _ranked(count, largest, target) if held_out(hand) == held]


def _digest(hand):
    return hashlib.sha256(" ".join(map(str, hand)).encode()).digest()


@lru_cache(maxsize=1 << 16)
def _solvable(state, target, whole):
    """Look for the last operation: one side makes x, the other must make a partner of x."""
    if whole and not all_whole(state):
        return False
    if len(state) == 1:
        return state[0] == target
    for small, large in _splits(state):
        reach = _values(large, whole)
        for x in _values(small, whole):
            if not reach.isdisjoint(_partners(x, target)):
                return True
    return False


def _partners(x, target):
    """Return every y that makes `target` with x in one operation, in either order."""
    partners = [target - x, x - target, x + target]
    if x != 0:
        partners += [target * x, _compute(target, "/", x)]
        if target != 0:
            partners.append(_compute(x, "/", target))
    return partners


@lru_cache(maxsize=4096)
def _values(state, whole):
    """Return everything that the numbers of `state` can make together."""
    if len(state) == 1:
        return frozenset(state)
    made = set()
    for small, large in _splits(state):
        for x in _values(small, whole):
            for y in _values(large, whole):
                made |= {x + y, x - y, y - x, x * y}
                made |= {_compute(a, "/", b) for a, b in ((x, y), (y, x)) if b != 0}
    return frozenset(filter(_is_whole, made) if whole else made)


def _splits(state):
    """Yield the ways to split the numbers into two sides, the smaller side first."""
    for size in range(1, len(state) // 2 + 1):
        for taken in combinations(range(len(state)), size):
            yield (tuple(state[k] for k in taken),
                   tuple(n for k, n in enumerate(state) if k not in taken))


def _compute(a, op, b):
    """Return a op b exactly; b must not be 0 in a division."""
    if op == "+":
        return _tidy(a + b)
    if op == "-":
        return _tidy(a - b)
    if op == "*":
        return _tidy(a * b)
    return a // b if a % b == 0 else Fraction(a) / b


def _tidy(x):
    return x.numerator if x.denominator == 1 else x


def _is_whole(x):
    return x >= 0 and x.denominator == 1


def all_whole(state):
    return all(map(_is_whole, state))


def _show(x):
    return str(x) if _is_whole(x) else f"({x})"


def _read(text):
    return _tidy(Fraction(text.strip("()")))
