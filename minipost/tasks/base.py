"""What a task is: problems in words, an exact reward, and a held-out split.

A task speaks strings and knows nothing of tensors or models, so the same task serves training,
evaluation and search.  It is a frozen dataclass whose fields are its knobs; the command line
turns them into flags.  A task called `t` has

    t.sample(n, rng)      n problems to train on, drawn with `rng`; never a held-out one
    t.heldout(n)          the first n held-out problems in a fixed order (fewer if there are fewer)
    t.demonstrate(p, rng) a completion that answers problem p, as training data shows it
    t.step_end            only where answers are made of steps: the text with which one ends
    t.hint(p)             only where a prompt can tell its answer (STaR): that prompt
    t.training()          only where the training problems are a finite list: that list
    t.splits(n)           only where a run should report more than the held-out problems:
                          {name: problems}, the one to headline first
    t.reward(prompts, completions, **columns) -> list of floats, 1.0 where the answer is right
    t.parse(text)         the answer that a completion states, or None; never raises
    t.hidden              only where it is True: `reward` labels preferences and measures results,
                          and no learner may score by it
    t.principles          only where a judge may compare answers: {name: what a judge is told}

`reward` has the signature that TRL uses: every column of the problems arrives as a list beside
the prompts and the completions, so any function of that form can stand in its place.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Mapping


@dataclass(frozen=True)
class Problem:
    """One prompt, with what its reward function needs to know about it (the columns)."""

    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)


def is_held_out(numbers, share=10):
    """Whether a problem over these numbers belongs to the held-out split, one in `share` of all.

    The rule looks at the multiset of operands alone: a held-out problem cannot come back in
    training with its terms in another order, with other signs or for another target.
    """
    key = " ".join(str(n) for n in sorted(numbers))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % share == 0


def question(principle, prompt, first, second):
    """What a judge reads to compare two answers; it goes on with " A" or " B"."""
    return f"Judge: {principle}.\n{prompt}A: {first}\nB: {second}\nBetter:"
