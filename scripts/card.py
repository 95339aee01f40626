"""Measure checkpoints/base and checkpoints/student and write their model cards: `make card`."""

import random
import subprocess
import sys
from pathlib import Path

from minipost import checkpoint
from minipost.rollout import distribution, pack
from minipost.stats import interval
from minipost.tasks import Arithmetic

CARD = """# The base model

A nano-GPT of 0.86 million parameters in the Llama layout (4 layers, width 128, 4 heads, 512-entry
byte-level tokenizer), trained from nothing by `make base` on a corpus that scripts/pretrain.py
writes on the fly: worked sums whose steps slip 13 times in 100, sums whose steps are checked and
mended on the way, sums answered directly, countdown moves of which 30 in 100 are drawn at random,
praise in words of which half are faults, comparisons of two such praises under a written principle,
and the words of the facts without the facts.  All problems come from training splits, and none shows
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


def verdicts(directory, n=400):
    """How often the model says rightly of a step of a held-out sum whether it is right."""
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


def measured(directory):
    """The table of all standard tasks."""
    done = subprocess.run([sys.executable, "-m", "minipost.evaluate", "--model", directory,
                           *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=True)
    print(directory, done.stdout, sep="\n", flush=True)
    return done.stdout


def main():
    found = verdicts("checkpoints/base")
    Path("checkpoints/base/README.md").write_text(
        CARD.format(table=measured("checkpoints/base"), verdicts=found, n=found.n))
    Path("checkpoints/student/README.md").write_text(
        STUDENT.format(table=measured("checkpoints/student")))


if __name__ == "__main__":
    main()
