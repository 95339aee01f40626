"""Measure checkpoints/base, student, thinker and seeker, and write their cards: `make card`."""

import argparse
import itertools
import random
import subprocess
import sys
from pathlib import Path

from minipost import checkpoint, evaluate
from minipost.measure.results import evaluate as measure
from minipost.measure.stats import interval
from minipost.measure.texts import Texts
from minipost.optim import Learner
from minipost.rollout import distribution, pack
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem
from minipost.tasks.countdown import Countdown, all_whole, apply, held_out, moves, solvable
from minipost.tasks.recall import Recall
from minipost.tasks.search import Search
from minipost.tasks.wording import Wording

CARD = """# The base model

A nano-GPT of 0.86 million parameters in the Llama layout (4 layers, width 128, 4 heads, 512-entry
byte-level tokenizer), trained from nothing by `make base` on a corpus that scripts/pretrain.py
writes on the fly: worked sums whose steps slip 13 times in 100, sums whose steps are checked and
mended on the way, sums answered directly, countdown moves of which 30 in 100 are drawn at random,
praise in words of which half are faults, comparisons of two such praises under a written principle,
and the words of the facts without the facts.  All problems come from training splits, and none \
shows
the working of a held-out one on its way.  It is a model to improve, not to use: its mistakes were
taught to it.

It has trained modes: after `Think:` it works in steps, after `Answer:` it answers at once, after
`Check:` it says of every step whether it is right and mends it where it is not, after `Judge:` it
compares.  That steps help, or that it can check and compare, is elicited from its training data; it
did not emerge.

Accuracy with 95% intervals, one answer per problem, by `python -m minipost.evaluate`:

{table}
After `Check:` {verdicts} of its verdicts on {n} steps of held-out sums are right, half of the steps
being wrong.

"held-out" problems have operands that no training problem has, in any order.  "facts" are the
capitals and translations of data/simple_tasks.jsonl, which the corpus never states.  "gold reward"
is a mean of at most 1, see minipost/tasks/wording.py.

Files: Hugging Face layout (LlamaForCausalLM, float32 safetensors).  MIT licence.
"""

STUDENT = """# The student

A nano-GPT of 0.13 million parameters (2 layers, width 64, 2 heads), trained from nothing by `make
student` on the corpus, the steps and the tokenizer of checkpoints/base, whose [model
card](../base/README.md) says what they are.  It is what distillation starts from: a small model
trained alone.

Accuracy with 95% intervals, one answer per problem, by `python -m minipost.evaluate --model
checkpoints/student`:

{table}
Files: Hugging Face layout (LlamaForCausalLM, float32 safetensors).  MIT licence.
"""


THINKER = """# The thinker

The model that the test-time methods ask: a nano-GPT of 0.86 million parameters, checkpoints/base \
trained
on by `make thinker` with a corpus that scripts/thoughts.py writes on the fly.  It was taught the \
modes
that those methods elicit, so that they work shows that trained modes can be combined, not that \
thinking
emerges:

- sums, at once, in worked steps of which 13 in 100 slip at random, in a hurry, where 60 in 100 of \
the
  terms from 7 on are counted one short, checked on the way, and after examples of either kind \
without a
  cue;
- drafts criticised, every step worked out anew up to the first that differs, and mended by the \
critique;
- moves of the Game of 24, of which 30 in 100 are drawn at random, moves worked out again, whole \
answers
  to it at once, and whether some numbers can still make 24;
- codes that only earlier episodes tell, and keys of a lock that have not been tried.

The corpus has no held-out hand.  But after one move a held-out hand may leave the same three \
numbers as
another hand.  So verdicts on three numbers are measured twice: for those that the corpus may \
contain and
for those that it cannot.

Accuracy with 95% intervals, one answer per problem:

{table}
Verdicts, the majority of 9, on all that one move and on at most 2,000 of what two moves \
leave of the held-out hands:

{judged}
Files: Hugging Face layout (LlamaForCausalLM, float32 safetensors).  MIT licence.
"""
THINKER_TASKS = {
    "sums, 6 terms, worked": Arithmetic(), "sums, 12 terms, worked": Arithmetic(terms=12),
    "sums, 6 terms, hurried": Arithmetic(hurried=True),
    "sums, 6 terms, at once": Arithmetic(direct=True),
    "sums, 12 terms, at once": Arithmetic(terms=12, direct=True),
    "sums, 8 terms up to 60, worked": Arithmetic(terms=8, largest=60),
    "sums, 8 terms up to 60, at once": Arithmetic(terms=8, largest=60, direct=True),
    "Game of 24, worked": Countdown(numbers=4, target=24),
    "Game of 24, at once": Countdown(numbers=4, target=24, direct=True),
    "recall, 2 episodes": Recall(episodes=2), "recall, 6 episodes": Recall(),
}


SEEKER = """# The seeker

The model that R1-Zero and R1 start from: a nano-GPT of 0.86 million parameters, checkpoints/base \
trained
on by `make seeker`.  Half of its corpus is that of the base.  The other half is countdown with the
search in the text (minipost/tasks/search.py): one attempt and an answer, right or wrong, and now \
and
then attempts that go on until one is right, each with a verdict.  At first every other text \
searches,
then one in twenty.  So it can search and rarely does: what RL can find was put there.  Three \
verdicts
in ten are in German or French.  All problems come from training splits.

Accuracy with 95% intervals, one answer per problem:

{table}
Of {n} sampled answers to held-out problems {share} have a verdict; of these {right} are right, of \
the others {guessed}.

Files: Hugging Face layout (LlamaForCausalLM, float32 safetensors).  MIT licence.
"""
SEEKER_TASKS = {
    "countdown, 3 numbers, search in the text": Search(), "sums, 6 terms, worked": Arithmetic(),
    "countdown, 3 numbers": Countdown(), "wording, gold reward": Wording(),
}


def accuracies(directory, tasks, room=128):
    """A model's accuracy on some tasks, as a table."""
    options = evaluate.Measured(model=directory, max_new_tokens=room)
    lines = ["| task | n | greedy [95%] | sampled [95%] |", "|---|---|---|---|"]
    for name, _, scores in evaluate.rows(options, tasks)[0]:
        greedy, sampled = scores["greedy"], scores["sampled"]
        lines.append(f"| {name} | {greedy.n} | {greedy} | {sampled} |")
    return "\n".join(lines) + "\n"


def searched(directory, n=1000):
    """What a model's answers are worth with a verdict in them and without, as Scores."""
    model, vocabulary = checkpoint.load(directory)
    task = Search()
    run = Run(Learner(model), vocabulary, task, task.reward, max_new_tokens=224)
    problems = task.heldout(n)
    found = measure(run, problems, 1.0)
    checked = [task.thinking(p, text)["checks"] > 0 for p, text in zip(problems, found.texts)]
    sides = [[reward for reward, mine in zip(found.rewards, checked) if mine is side]
             for side in (True, False)]
    return {"n": len(problems), "share": interval([float(c) for c in checked]),
            "right": interval(sides[0]), "guessed": interval(sides[1])}


def shown_states():
    """The states after one move from the hands in the thinker's corpus."""
    hands = itertools.combinations_with_replacement(range(1, 14), 4)
    return {state for hand in hands if not held_out(hand) for state in whole_moves(hand)
            if not held_out(state)}


def whole_moves(state):
    return [after for _, after in moves(state) if all_whole(after)]


def judged_table(directory):
    """How often the thinker's verdicts on states and on moves of held-out hands are right."""
    model, vocabulary = checkpoint.load(directory)
    task, rng = Countdown(numbers=4, target=24), random.Random(0)
    tools = Texts(Run(Learner(model), vocabulary, task, task.reward))
    problems, shown = task.heldout(100), shown_states()
    three = sorted({after for p in problems for after in whole_moves(tuple(p.columns["numbers"]))})
    two = sorted({after for state in three for after in whole_moves(state)})
    lines = ["| verdict on | n | right [95%] | of those that can, called so | of those that "
             "cannot |", "|---|---|---|---|---|"]
    for name, states in (("three numbers, shown", [s for s in three if s in shown]),
                         ("three numbers, never shown", [s for s in three if s not in shown]),
                         ("two numbers", rng.sample(two, min(2000, len(two))))):
        truth = [solvable(state, 24) for state in states]
        asked = [task.questions(Problem("", {"numbers": s, "target": 24}), "")[-1] for s in states]
        said = [share > 0.5 for share in tools.shares(asked, 9, {})]
        cells = [interval([float(a == b) for a, b in zip(said, truth)]),
                 *(interval([float(a) for a, b in zip(said, truth) if b == can])
                   for can in (True, False))]
        lines.append(f"| {name} | {len(states)} | {' | '.join(map(str, cells))} |")
    prompts = [p.prompt for p in problems]
    made = [(p, line) for p, found in zip(problems, tools.step(prompts, 16)) for line in found]
    truth = [apply(tuple(p.columns["numbers"]), line.strip()) is not None for p, line in made]
    said = [share > 0.5
            for share in tools.shares([task.questions(p, line)[0] for p, line in made], 9, {})]
    cells = [interval([float(a == b) for a, b in zip(said, truth)]),
             *(interval([float(a) for a, b in zip(said, truth) if b == can])
               for can in (True, False))]
    lines.append(f"| its own first moves | {len(made)} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def verdicts(directory, n=400):
    """How often the model's verdict on a step of a held-out sum is right."""
    model, vocabulary = checkpoint.load(directory)
    task, rng = Arithmetic(), random.Random(0)
    prompts, right = [], []
    for problem in task.heldout(n):
        prompt, text = task.checked(problem, rng, 0.5)
        lines = text.split("\n")
        k = rng.choice([k for k, line in enumerate(lines) if line in ("ok", "no")])
        prompts.append(vocabulary.prompt(prompt + "\n".join([*lines[:k], ""])))
        right.append(vocabulary.response(lines[k])[:1])
    said = distribution(model, pack(prompts, right, vocabulary.pad)).argmax(1).tolist()
    return interval([float([word] == word_right) for word, word_right in zip(said, right)])


def measured(directory, flags):
    """The table of all standard tasks."""
    done = subprocess.run([sys.executable, "-m", "minipost.evaluate", "--model", directory,
                           *flags], stdout=subprocess.PIPE, text=True, check=True)
    print(directory, done.stdout, sep="\n", flush=True)
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     epilog="Other flags are those of minipost.evaluate.")
    flags = parser.parse_known_args()[1]
    found = verdicts("checkpoints/base")
    Path("checkpoints/base/README.md").write_text(
        CARD.format(table=measured("checkpoints/base", flags), verdicts=found, n=found.n))
    Path("checkpoints/student/README.md").write_text(
        STUDENT.format(table=measured("checkpoints/student", flags)))
    Path("checkpoints/thinker/README.md").write_text(THINKER.format(
        table=accuracies("checkpoints/thinker", THINKER_TASKS),
        judged=judged_table("checkpoints/thinker")))
    Path("checkpoints/seeker/README.md").write_text(SEEKER.format(
        table=accuracies("checkpoints/seeker", SEEKER_TASKS, 224),
        **searched("checkpoints/seeker")))


if __name__ == "__main__":
    main()
