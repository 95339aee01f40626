"""Arithmetic: chains of + and - with all running totals within 0..99.

With worked steps (the default), a problem and its demonstration read

    7+5-3+8=? Think:
    7+5=12
    12-3=9
    9+8=17
    Answer: 17

With `direct`, the prompt is "7+5-3+8=? Answer:" and the completion is " 17".  With `hurried`, the
cue is "Hurry:" and large terms are counted one short.  That is the same fault every time, while
worked steps slip at random.  `checked` writes a verdict after each step and repeats a wrong step:

    7+5-3+8=? Check:
    7+5=13
    no
    7+5=12
    ok
    ...

An answer is one whole number and nothing else (tasks/answers.py has the grammar): "Answer: 17",
" 17", "Answer: **17**." and "Answer: \\boxed{17}" state 17, "- 17" states -17.  "17.0", "017",
"1,7", "17/2", "17 or 18" and "not 17" state nothing.
"""

import random
import re
from dataclasses import dataclass
from itertools import islice

from minipost.errors import MinipostError
from minipost.tasks import answers
from minipost.tasks.base import MOST_HELD_OUT, Problem, Task, is_held_out, switches, within

LIMIT = 99        # the largest running total
MOST_TERMS = 64   # numbers in a chain
SUM = re.compile("([0-9]{1,9})([+-][0-9]{1,9})")
CHAIN = re.compile(rf"[1-9][0-9]?(?: *[+-] *[1-9][0-9]?){{1,{MOST_TERMS - 1}}}")
PATIENCE = 5_000  # after so many draws without a new problem, the space counts as exhausted


@dataclass(frozen=True)
class Arithmetic(Task):
    """Add and subtract a chain of small numbers; the answer is one whole number, 0..99."""

    terms: int = 6              # how many numbers are in a chain
    largest: int = 9            # largest operand; operands are 1..largest
    direct: bool = False        # answer at once instead of with worked steps
    hurried: bool = False       # use the mode that counts short (taught to checkpoints/thinker)
    fewest: int = 0             # chains of this many to `terms` numbers; 0: of `terms` alone

    name = "arithmetic"
    call_end = "="  # of a step, behind which a calculator may write the result (react)

    def __post_init__(self):
        switches(direct=self.direct, hurried=self.hurried)
        within(2, MOST_TERMS, terms=self.terms)
        within(2 if self.fewest else 0, self.terms, fewest=self.fewest)
        within(1, LIMIT, largest=self.largest)
        if self.direct and self.hurried:
            raise MinipostError("direct and hurried exclude each other")
        for held, split in ((False, "training"), (True, "held-out")):
            if next(self._draws(random.Random(0), held), None) is None:
                raise MinipostError(f"terms={self.terms}, largest={self.largest} leaves no problem "
                                    f"for the {split} split; raise one of them")

    def sample(self, n, rng):
        """Draw n training problems with `rng`.  None has held-out operands."""
        return [next(self._draws(rng, held=False)) for _ in range(n)]

    def heldout(self, n):
        """Return the first n held-out problems in a fixed order, fewer if there are fewer.

        There are at most MOST_HELD_OUT.
        """
        return list(islice(self.held(), n))

    def held(self):
        """Yield the held-out problems in a fixed order, at most MOST_HELD_OUT."""
        name = f"held-out {self.terms} {self.largest}" + f" {self.fewest}" * (self.fewest > 0)
        draws = self._draws(random.Random(name), held=True)
        return islice(distinct(draws), MOST_HELD_OUT)

    def demonstrate(self, problem, rng=None, slip=0.0):
        """Write a completion.  Each result is wrong by 1..3 with probability `slip`.

        The chain continues consistently from a wrong result.  A slip never undoes an earlier slip
        and never pushes a later total out of 0..99.  If no error meets this, there is none.  With
        `hurried` the only error is to count a term of 7 or more one short, with probability `slip`.
        The result is then one too small.
        """
        rng = rng or random.Random(0)
        operands = operands_of(problem.columns["chain"])
        totals = [sum(operands[:k]) for k in range(1, len(operands) + 1)]
        if self.direct:
            return f" {totals[-1] + _slip(0, totals[-1:], rng, slip)}"
        lines, off = [], 0  # off: how far the written total is from the true one
        for k in range(1, len(operands)):
            before = totals[k - 1] + off
            if not self.hurried:
                off = _slip(off, totals[k:], rng, slip)
            elif abs(operands[k]) >= 7 and min(totals[k:]) + off > 0:
                off -= rng.random() < slip
            lines.append(f"{before}{operands[k]:+d}={totals[k] + off}")
        return "\n".join([*lines, f"Answer: {totals[-1] + off}"])

    def hint(self, problem):
        """The prompt with its answer in it, for STaR.

        checkpoints/base was not taught to read it.
        """
        return problem.prompt.replace("=?", f"={problem.columns['answer']}?", 1)

    def checked(self, problem, rng, slip):
        """Write the problem as (prompt, completion) with a verdict after every step.

        A result is wrong by 1..3 with probability `slip`.  A wrong step is written again.
        """
        chain = problem.columns["chain"]
        total, *rest = operands_of(chain)
        lines = []
        for term in rest:
            off = 1
            while off:
                off = _slip(0, [total + term], rng, slip)
                lines += [f"{total}{term:+d}={total + term + off}", "no" if off else "ok"]
            total += term
        return f"{chain}=? Check:\n", "\n".join([*lines, f"Answer: {total}"])

    def example(self, problem, completion=None):
        """The problem without a cue, followed by the completion, if given, as an example answer."""
        question = f"{problem.columns['chain']}=?\n"
        if completion is None:
            return question
        return f"{question}{'Answer:' if self.direct else ''}{completion}\n\n"

    def questions(self, problem, text):
        """The questions to a judge of `text`: pairs (question, reply that approves).

        The judge works out each step again.
        """
        steps = (line.partition("=") for line in self.steps(text))
        return [(f"{step}=", result) for step, _, result in steps]

    def critique(self, problem, draft):
        """The prompt of a critic.  A critique follows, such as `criticise` writes."""
        return f"{problem.columns['chain']}=? Draft:\n{draft}\nCritique:\n"

    def criticise(self, problem, draft):
        """The critique of a perfect critic.

        It writes every step as it should be and whether the draft has it so, up to the first wrong
        step.
        """
        total, *rest = operands_of(problem.columns["chain"])
        lines = []
        for line, term in zip(self.steps(draft), rest):
            right = f"{total}{term:+d}={total + term}"
            lines.append(f"{right} {'ok' if line == right else 'no'}")
            if line != right:
                break
            total += term
        return "\n".join(lines)

    def approves(self, critique):
        """Whether a critique finds no fault."""
        return not critique.rstrip().endswith(" no")

    def revise(self, problem, draft, critique):
        """The prompt of a reviser.  Worked steps follow.

        Of the critique, it holds only the faulty step as it should be.
        """
        fault = critique.rstrip().split("\n")[-1]
        return f"{self.critique(problem, draft)}{fault}\nRevise:\n"

    def mend(self, problem, draft, rng, slip=0.0):
        """A revision of a faulty draft.

        It keeps the steps before the fault and corrects the faulty step.  `demonstrate` continues
        from the right total.
        """
        done = self.check_steps(problem, draft).index(False) + 1
        operands = operands_of(problem.columns["chain"])
        total = sum(operands[: done + 1])
        lines = self.steps(draft)[: done - 1]
        lines.append(f"{total - operands[done]}{operands[done]:+d}={total}")
        if done + 1 == len(operands):
            return "\n".join([*lines, f"Answer: {total}"])
        chain = str(total) + "".join(f"{n:+d}" for n in operands[done + 1:])
        return "\n".join([*lines, self.demonstrate(Problem("", {"chain": chain}), rng, slip)])

    def parts(self, problem, size):
        """Problems of at most `size` terms.  Their signed answers add up to this problem's answer.

        -> problems, signs
        """
        operands, found, signs = operands_of(problem.columns["chain"]), [], []
        for sign in (1, -1):
            same = [abs(n) for n in operands if n * sign > 0]
            for k in range(0, len(same), size):
                found.append(self._problem(same[k : k + size]))
                signs.append(sign)
        return found, signs

    def joined(self, answers, signs, size):
        """Problems that put these answers together, at most `size` in each: [(problem, sign, of)].

        `of` lists the indices of the answers in a problem.  If all do not fit into one problem,
        each problem takes answers of one sign.
        """
        if len(answers) <= size:
            return [(self._problem([a * s for a, s in zip(answers, signs, strict=True)]), 1,
                     list(range(len(answers))))]
        found = []
        for sign in (1, -1):
            places = [k for k, s in enumerate(signs) if s == sign]
            for k in range(0, len(places), size):
                of = places[k : k + size]
                found.append((self._problem([answers[j] for j in of]), sign, of))
        return found

    def pose(self, text):
        """The problem that `text`, such as 7+5-3, asks; MinipostError if it is no such chain.

        Spaces around signs do not count, and any minus of tasks/answers.py is one.
        """
        chain = answers.spell(text.strip())
        if not CHAIN.fullmatch(chain):
            raise MinipostError(f"--problem {text[:40]!r}: expected a chain of 2 to {MOST_TERMS} "
                                "numbers of one or two digits, such as 7+5-3")
        return self._problem(operands_of(chain.replace(" ", "")))

    def like(self, problem):
        """The same problem in this task's wording."""
        return self._problem(operands_of(problem.columns["chain"]))

    def tool(self, problem, text):
        """What a calculator writes behind an answer that ends in a step without its result."""
        return calculate(text.rpartition("\n")[2].partition("=")[0]) + "\n"

    def answers(self, problem):
        """The right completion, if the answer comes at once; None with steps, which vary freely."""
        return [f" {problem.columns['answer']}"] if self.direct else None

    def parse(self, text):
        """Return the whole number that the text states, or None."""
        return answers.whole(answers.stated(text))

    def reward(self, prompts, completions, answer, **columns):
        """Return 1.0 for each completion that states its answer, else 0.0."""
        return [float(self.parse(text) == right)
                for text, right in zip(completions, answer, strict=True)]

    def steps(self, text):
        """Return the step lines, all before the "Answer:" line.  Step k ends at newline k."""
        lines = text.split("\n")
        ends = (k for k, line in enumerate(lines) if line.startswith("Answer:"))
        last = next(ends, len(lines) - (lines[-1] == ""))
        return lines[:last]

    def check_steps(self, problem, text):
        """Return whether each step line adds the chain's next term to the total before it.

        The total before is the one that the previous line states, right or wrong.  So a step that
        continues correctly from an earlier error is right.
        """
        total, *rest = operands_of(problem.columns["chain"])
        right = []
        for k, line in enumerate(self.steps(text)):
            right.append(k < len(rest) and total is not None
                         and line == f"{total}{rest[k]:+d}={total + rest[k]}")
            stated = re.search("=(-?[0-9]{1,9})\\Z", line)
            total = int(stated[1]) if stated else None
        return right

    def _draws(self, rng, held):
        """Yield problems of one split.  End after PATIENCE draws of the other split in a row."""
        misses = 0
        while misses < PATIENCE:
            operands = [rng.randint(1, self.largest)]
            total = operands[0]
            terms = rng.randint(self.fewest, self.terms) if self.fewest else self.terms
            for _ in range(terms - 1):
                lo, hi = -min(self.largest, total), min(self.largest, LIMIT - total)
                step = rng.randint(lo, hi - 1)
                operands.append(step + (step >= 0))  # zero is left out
                total += operands[-1]
            misses += 1
            if is_held_out([abs(n) for n in operands]) == held:
                misses = 0
                yield self._problem(operands)

    def _problem(self, operands):
        chain = str(operands[0]) + "".join(f"{n:+d}" for n in operands[1:])
        cue = " Answer:" if self.direct else " Hurry:\n" if self.hurried else " Think:\n"
        prompt = f"{chain}=?{cue}"
        return Problem(prompt, {"chain": chain, "answer": sum(operands)})


def operands_of(chain):
    """The signed numbers of a chain: 7+5-3 gives [7, 5, -3]."""
    return [int(n) for n in re.findall("[+-]?[0-9]+", chain)]


def calculate(text):
    """What a calculator shows for a sum or difference of two numbers; "error" for all else."""
    found = SUM.fullmatch(text)
    return str(int(found[1]) + int(found[2])) if found else "error"


def _slip(off, totals, rng, slip):
    """Return the offset of the written totals after a step.  It is wrong with chance `slip`."""
    if rng.random() >= slip:
        return off
    lo, hi = -min(totals), LIMIT - max(totals)
    wrong = [off + d for d in (-3, -2, -1, 1, 2, 3) if lo <= off + d <= hi and off + d != 0]
    return rng.choice(wrong) if wrong else off


def distinct(problems):
    """Yield each problem once.  End with the source, or after PATIENCE repeats in a row."""
    seen, repeats = set(), 0
    for problem in problems:
        repeats += 1
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            repeats = 0
            yield problem
        if repeats == PATIENCE:
            return
