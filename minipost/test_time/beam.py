"""Beam search over steps, guided by a value (survey sec. 5.1, 5.9; OREO, arxiv.org/abs/2412.16145,
sec. 4.5).

Each of the `width` (B) best beginnings of an answer is continued by one step in `branching` (K)
sampled ways.  Of the up to B K continuations the B with the highest values are kept.  The search
ends when none of those goes on or `depth` steps are made.  The answer is the finished one with the
highest value.

What a beginning is worth (`--aggregate`) is

    min, last, product      made of a process reward model's chances of its steps, and of the whole
                            once it is finished
    value                   the score after its last token, as it is: of a value, such as OREO's

A process reward model says of a step whether it is right, given what stands before it, not whether
what stands before it was.  So with `last`, and with the score as it is, the search forgets a wrong
step as soon as it has made a further one; with the least chance and with the product it does not.
Of 400 held-out problems the least chance makes 0.842 right and the score as it is 0.502
(`python -m scripts.bench test-time`).

With B = K = 1 this is sampling.  With unbounded B and K and every continuation sampled, it is an
exhaustive search for the highest value.
"""

from dataclasses import dataclass
from typing import Literal

from minipost.errors import Bounded, MinipostError
from minipost.measure.results import of_known
from minipost.measure.stats import beginnings

TASK, KNOBS = "arithmetic", {"hurried": True}
VERIFIER = "checkpoints/verifier"
BEFORE, AFTER = "greedy", "beam"


@dataclass(frozen=True)
class Config(Bounded):
    """A search for the answer that a reward model scores highest."""

    width: int = 4              # beginnings that are kept (B)
    branching: int = 4          # samples that continue each beginning (K)
    depth: int = 32             # steps of an answer, at most
    aggregate: Literal["min", "last", "product", "value"] = "min"  # a beginning's worth; see above


def beam(prompts, sample, worth, *, mark, width, branching, depth):
    """One answer to each prompt.

    sample(texts, n) -> n one-step continuations of each text; one without `mark` ends the answer.
    worth(rows) -> a number for each (k, text, going): an answer to prompt k, unfinished if going.
    """
    beams = [[("", 0.0, True)] for _ in prompts]            # (answer so far, its value, goes on)
    for _ in range(depth):
        live = [(row, text) for row, kept in enumerate(beams) for text, _, on in kept if on]
        if not live:
            break
        found = {}                                          # {(row, longer answer): goes on}
        for (row, text), nexts in zip(live, sample([prompts[row] + text for row, text in live],
                                                   branching), strict=True):
            for more in nexts:
                found[row, text + more] = mark in more
        values = worth([(row, text, on) for (row, text), on in found.items()])
        beams = [[b for b in kept if not b[2]] for kept in beams]
        for ((row, text), on), value in zip(found.items(), values, strict=True):
            beams[row].append((text, value, on))
        beams = [sorted(kept, key=lambda b: -b[1])[:width] for kept in beams]
    return [max(kept, key=lambda b: (not b[2], b[1]))[0] for kept in beams]


def solve(problems, tools, cfg):
    """The answer that each problem's search ends with: (answers, workings)."""
    if tools.verifier is None:
        raise MinipostError("beam search needs a value or a reward model to go by: --verifier DIR")

    def worth(rows):
        if cfg.aggregate == "value":
            return tools.value([problems[k].prompt + text for k, text, _ in rows])
        return beginnings(tools.verified([problems[k].prompt for k, _, _ in rows],
                                         [text for _, text, _ in rows]),
                          [on for *_, on in rows], cfg.aggregate)

    answers = beam([p.prompt for p in problems], tools.step, worth, mark=tools.mark,
                   width=cfg.width, branching=cfg.branching, depth=cfg.depth)
    final = worth([(k, text, False) for k, text in enumerate(answers)])
    return answers, [{"answer": text, "value": v} for text, v in zip(answers, final)]


def measure(problems, tools, width, branching):
    """The Result of the search by a value, such as OREO's, on these problems.

    An answer without a reward is left out, as `evaluate` does.
    """
    answers, _ = solve(problems, tools, Config(width, branching, aggregate="value"))
    return of_known(tools.run, tools.right(problems, answers, none=True), answers)


def arms(problems, tools, cfg):
    """Yield the Arms: greedy, one sample, and the search."""
    prompts = [p.prompt for p in problems]
    for name, say in ((BEFORE, tools.greedy),
                      ("1 sample", lambda texts: [found for found, in tools.sample(texts, 1)])):
        start, answers = tools.tokens, say(prompts)
        yield tools.arm(name, problems, answers,
                        [{"answer": text, "value": 0.0} for text in answers], start)
    start = tools.tokens
    yield tools.arm(AFTER, problems, *solve(problems, tools, cfg), start)


def show(working):
    """The working as lines."""
    return [f"value {working['value']:.3f}: {working['answer'].strip()!r}"]
