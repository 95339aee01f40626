"""Does a model that learns from its own answers reach sums far longer than it was taught?

checkpoints/base writes at most seven steps and ends, so of nine terms it gets none right, greedy or
sampled: its rotary positions tie a step to its distance from its term.  The paper's models have no
positions.  So the start has fewer: a rotary base of 10^8 makes half of them turn slowly, and it is
taught anew, with right sums of 2 to 8 terms.  Each round adds a term.  The model answers sums of
four lengths, the new one and three before it, eight times each, and learns the answers that pass.
An answer passes only if it has a step for each sign of the sum, and to a sum as short as was taught
only if it is right.  Of longer ones nobody knows the truth: there six of the eight have to state
its result.  In one control all answers to longer sums pass.  The other has as many steps on sums of
2 to 8 terms alone.

The reach of a model is the longest of the tested lengths up to which it gets at least half right.
Accuracy beyond 8 terms is the mean over the tested lengths above 8.

reproduced      In every seed the reach is at least 16 terms, twice what was taught, and accuracy
                beyond 8 terms is above that of either control beyond the 95% interval over seeds.
reversed        That accuracy is below that of the control on old lengths beyond the interval.
not reproduced  Anything else.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, replace
from statistics import fmean

from minipost import checkpoint
from minipost.measure.results import evaluate
from minipost.measure.stats import Score, weighted
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from scripts.compare import over_seeds
from scripts.studies import ROOT, Finding

PAPER = "arxiv.org/abs/2502.01612"
CLAIM = ("Lee et al. 2025: a transformer that answers problems slightly longer than it was taught, "
         "and learns these answers round after round, goes far beyond, from sums of 10 digits to "
         "100; in harder tasks only if answers are left out that are too short, or that a "
         "majority does not give.")
LIMITS = ("What a nano model can tell: whether mistakes or lengths grow faster when nobody knows "
          "the truth, with both counted. What it cannot: every step of these sums is alike, so "
          "length is all that is new; the paper's multiplication and mazes also grow in what a "
          "step has to find. A large model's next harder problem differs in kind, and no filter "
          "as plain as a number of lines is known for it; ours asks short sums for that number "
          "too, so a right answer in other steps does not pass.")
TRIED = ("The rounds, their steps and rate, the filter and the start were changed after tries; the "
         "rule has not changed.")
BASE, FOLDER = "checkpoints/base", "runs/studies/self-improvement"
THETA = 1e8       # the rotary base of the start
TAUGHT = 8        # terms
ROUNDS = (9, 10, 11, 12)  # the most terms in each round
BACK = 3          # how many fewer terms the shortest sums of a round have
LENGTHS = (4, 8, 9, 10, 11, 12, 14, 16, 20, 24, 32, 40)  # that are tested
N = 100           # held-out problems of a length
ALIKE = 0.75      # of a problem's answers
STEPS = 80        # of a round
HERE = "scripts/studies/self_improvement.py"
ARMS = {"filtered": "filtered", "no filter": "anything", "old lengths": "filtered"}
START = ["--steps", 150, "--batch-size", 64, "--lr", "1e-3"]
ROUND = ["--prompts", 256, "--group-size", 8, "--batch-size", 32, "--lr", "2e-4",
         "--warmup-steps", 4]
PARTS = 4         # of a round, each with new answers


# ---- filters, as rewards

def filtered(prompts, completions, answer, **columns):
    """1 for a right answer to a sum as short as was taught; the truth of longer ones is not known.

    There 1 for an answer on which most answers to its prompt agree.  An answer with another number
    of steps than the sum has signs has 0, even a right one to a short sum.
    """
    task, votes, asked = Arithmetic(), Counter[tuple](), Counter(prompts)
    said = [task.parse(text) if len(task.steps(text)) == signs(prompt) else None
            for prompt, text in zip(prompts, completions)]
    votes.update(zip(prompts, said))
    return [float(number == right if signs(prompt) < TAUGHT else number is not None
                  and votes[prompt, number] >= ALIKE * asked[prompt])
            for prompt, number, right in zip(prompts, said, answer)]


def anything(prompts, completions, answer, **columns):
    """The same without filters: 1 for every answer to a sum longer than was taught."""
    task = Arithmetic()
    return [float(signs(prompt) >= TAUGHT or task.parse(text) == right)
            for prompt, text, right in zip(prompts, completions, answer)]


def signs(prompt):
    return len(re.findall("[+-]", prompt.partition("=")[0]))


# ---- what the runs start from, and the runs

def prepare(made):
    """The base with slower rotations."""
    module, vocabulary = checkpoint.load(str(ROOT / BASE))
    module.config = replace(module.config, rope_theta=THETA)
    checkpoint.create(made.folder / "slower", module, vocabulary.tokenizer)


def runs(seeds):
    found = {"start": command("sft", f"{FOLDER}/slower", 0, 2, TAUGHT, *START)}
    for seed in seeds:
        for arm, reward in ARMS.items():
            given = [*ROUND, "--reward", f"{HERE}:{reward}"]
            if arm == "old lengths":
                found[run_of(arm, seed)] = command(
                    "rft", f"{FOLDER}/start/model", seed, 2, TAUGHT, *given,
                    "--steps", STEPS * len(ROUNDS), "--iterations", PARTS * len(ROUNDS))
                continue
            before = "start"
            for terms in ROUNDS:
                name = run_of(arm, seed, terms)
                found[name] = command("rft", f"{FOLDER}/{before}/model", seed, terms - BACK, terms,
                                      *given, "--steps", STEPS, "--iterations", PARTS)
                before = name
    return found


def command(algo, model, seed, fewest, terms, *given):
    return ["--algo", algo, "--task", "arithmetic", "--fewest", fewest, "--terms", terms,
            "--model", model, "--seed", seed, "--max-new-tokens", longest(terms), "--eval-n", 1,
            "--show", 0, *given]


def longest(terms):
    """Tokens that the answer to a sum may take."""
    return 9 * terms + 8


def run_of(arm, seed, terms=None):
    """A round's run; without `terms` the last one of an arm."""
    if arm != "old lengths":
        arm = f"{arm}-{terms or ROUNDS[-1]}"
    return f"{arm}-{seed}".replace(" ", "-")


# ---- what came out

def accuracies(model, lengths, n):
    """{terms: greedy accuracy on held-out sums, as data}"""
    module, vocabulary = checkpoint.load(str(model))
    found = {}
    for terms in lengths:
        task = Arithmetic(terms=terms)
        run = Run(Learner(module), vocabulary, task, task.reward, max_new_tokens=longest(terms))
        found[str(terms)] = asdict(evaluate(run, task.heldout(n), 0.0).score)
    return found


def findings(made):
    def measured(run, model=None, lengths=LENGTHS):
        """{terms: Score}"""
        kept = made.once(f"accuracy-{run}", accuracies, model or made.model(run), lengths, N)
        return {int(terms): Score(**score) for terms, score in kept.items()}

    found = {"base": [measured("base", ROOT / BASE)], "start": [measured("start")],
             **{arm: [measured(run_of(arm, seed)) for seed in made.seeds] for arm in ARMS}}
    rounds = {arm: [[measured(run_of(arm, seed, terms), lengths=(
        LENGTHS if terms == ROUNDS[-1] else (terms,)))[terms].value for seed in made.seeds]
        for terms in ROUNDS] for arm in ("filtered", "no filter")}
    rows = [[name, *(f"{fmean(a[terms].value for a in of):.3f}" for terms in LENGTHS),
             ", ".join(str(reach(a)) for a in of), f"{fmean(beyond(a).value for a in of):.3f}"]
            for name, of in found.items()]
    return Finding(["model", *map(str, LENGTHS), "reach", "beyond 8"], rows, *judge(found),
                   {"models": found, "rounds": rounds},
                   [f"Greedy accuracy by terms on {N} held-out sums of each length, mean of "
                    f"{len(made.seeds)} seeds that share the start, and the reach of each seed. "
                    f"The rounds went to {', '.join(map(str, ROUNDS))} terms."])


def reach(accuracy):
    """The longest tested length up to which at least half is right, 0 if there is none."""
    fails = [k for k, terms in enumerate(LENGTHS) if accuracy[terms].value < 0.5]
    return (0, *LENGTHS)[fails[0] if fails else len(LENGTHS)]


def beyond(accuracy):
    far = [accuracy[terms] for terms in LENGTHS if terms > TAUGHT]
    return weighted(far, [1 / len(far)] * len(far))


def judge(found):
    reaches = [reach(a) for a in found["filtered"]]
    means = {arm: [beyond(a) for a in found[arm]] for arm in ARMS}
    n, ours = len(reaches), means.pop("filtered")
    gain = {arm: over_seeds([a.value - b.value for a, b in zip(ours, theirs, strict=True)],
                            [*ours, *theirs], [1 / n] * n + [-1 / n] * n, -1.0, 1.0)
            for arm, theirs in means.items()}
    far = min(reaches) >= 2 * TAUGHT
    verdict = ("reproduced" if far and min(g.low for g in gain.values()) > 0 else
               "reversed" if gain["old lengths"].high < 0 else "not reproduced")
    return verdict, (f"Taught {TAUGHT} terms, the model reaches {reach(found['start'][0])}, and "
                     f"after the rounds {', '.join(map(str, reaches))} ({n} seeds; in the paper "
                     "10 digits become 100). Accuracy beyond 8 terms is above that without a "
                     f"filter by {gain['no filter']:+}, above that with old lengths only by "
                     f"{gain['old lengths']:+}.")


def draw(figure, found):
    colours = {"base": "black", "start": "tab:gray", "filtered": "tab:red",
               "no filter": "tab:blue", "old lengths": "tab:green"}
    left, right = figure.subplots(1, 2, sharey=True)
    for name, of in found.data["models"].items():
        left.plot(LENGTHS, [fmean(a[terms].value for a in of) for terms in LENGTHS],
                  color=colours[name], marker=".", label=name)
    for arm, values in found.data["rounds"].items():
        right.plot(ROUNDS, values, color=colours[arm], marker=".", linewidth=0.8)
    left.axvline(TAUGHT, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel="terms (dotted: taught)", ylabel="greedy accuracy, held out")
    left.legend(frameon=False)
    right.set_xticks(ROUNDS)
    right.set(xlabel="most terms of a round; accuracy there after it, each seed")
