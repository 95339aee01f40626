"""Do random and wrong rewards teach?  Of two bases one's commoner way is right, the other's wrong.

GRPO learns six-term sums from the exact reward, from a fair coin and from the wrong answers alone.
checkpoints/base works in steps that slip at random, so its likeliest answer is right.  The thinker
in a hurry counts large terms short, so its likeliest answer is often wrong.  A rollout is learnt in
eight gradient steps, so ratios move and the clip acts.  By the paper's account the clip is what
makes a coin teach: it lets likely tokens gain and not lose.  Without a clip the coin is a control.

reproduced      The coin and the wrong answers each raise the sampled accuracy of the base whose
                commoner way is right, each by more than the other base's, and the coin by more than
                without a clip: all beyond the 95% interval over seeds, differences paired by seed.
reversed        The coin raises the other base's, and by more than the first's, beyond the interval.
not reproduced  Anything else.
"""

import hashlib
from dataclasses import asdict
from statistics import fmean

from minipost import checkpoint
from minipost.measure.results import evaluate
from minipost.measure.stats import Score
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from scripts.studies import ROOT, Finding, combined

PAPER = "arxiv.org/abs/2506.10947"
CLAIM = ("Shao et al. 2025: rewards that are random, or that pay wrong answers, raise "
         "Qwen2.5-Math's accuracy nearly as much as right ones (by 21 and 24 points of 29 on "
         "MATH-500), because training amplifies the way of answering that the base prefers, and "
         "raise no other family's.")
LIMITS = ("What a nano model can tell: with a coin for a reward the expected gradient without a "
          "clip is zero, so what moves is the clip's doing or drift, and the control separates "
          "them. What it cannot: Qwen's preferred way was a way of reasoning, code, while here "
          "it is the likeliest token of a step. Whether a large model has such a way is a fact "
          "about its pre-training.")
TRIED = ("The rule asked whether each base's gain alone was beyond its interval, and had no part "
         "for wrong answers and the clip; it was replaced before the runs that are shown, the "
         "settings were not.")
BASES = {"commoner way right": ("checkpoints/base", {}),
         "commoner way wrong": ("checkpoints/thinker", {"hurried": True})}
RIGHT, OTHER = BASES
HERE = "scripts/studies/spurious_rewards.py"
REWARDS = {"exact": [], "coin": ["--reward", f"{HERE}:coin"],
           "wrong": ["--reward", f"{HERE}:wrong"],
           "coin, no clip": ["--reward", f"{HERE}:coin", "--clip", "1e6"]}
SETTINGS = ["--steps", "60", "--minibatch-size", "32", "--beta", "0", "--lr", "2e-4",
            "--clip", "0.2"]
N = 400  # held-out problems


def coin(prompts, completions, **columns):
    """1 or 0, whatever the answer is, and for a place in a batch of texts always the same."""
    return [float(hashlib.blake2b(f"{k} {prompt} {text}".encode(), digest_size=1).digest()[0] & 1)
            for k, (prompt, text) in enumerate(zip(prompts, completions))]


def wrong(prompts, completions, answer, **columns):
    """1 for an answer that is stated and wrong."""
    found = [Arithmetic().parse(text) for text in completions]
    return [float(stated is not None and stated != right) for stated, right in zip(found, answer)]


def runs(seeds):
    return {run_of(base, reward, seed): [
        "--algo", "grpo", "--task", "arithmetic", "--model", model,
        *(part for name, value in knobs.items() for part in (f"--{name}", value)),
        "--seed", seed, *SETTINGS, *given]
        for seed in seeds for base, (model, knobs) in BASES.items()
        for reward, given in REWARDS.items()}


def run_of(base, reward, seed):
    return f"{base}-{reward}-{seed}".replace(" ", "-").replace(",", "")


def accuracy(model, knobs, seed, n):
    """Sampled, held out, by the task's own reward, as data."""
    module, vocabulary = checkpoint.load(str(model))
    task = Arithmetic(**knobs)
    run = Run(Learner(module), vocabulary, task, task.reward, seed=seed)
    return asdict(evaluate(run, task.heldout(n), 1.0).score)


def findings(made):
    def measured(name, model, base, seed):
        return Score(**made.once(name, accuracy, model, BASES[base][1], seed,
                                 made.options.get("n", N)))

    found, rows = {}, []
    for base, (start, _) in BASES.items():
        before = [measured(f"before-{base}-{seed}".replace(" ", "-"), ROOT / start, base, seed)
                  for seed in made.seeds]
        for reward in REWARDS:
            names = [run_of(base, reward, seed) for seed in made.seeds]
            after = [measured(f"after-{name}", made.model(name), base, seed)
                     for name, seed in zip(names, made.seeds)]
            found[base, reward] = before, after
            clip = fmean(line["clip_ratio"] for name in names for line in made.metrics(name))
            rows.append([base, reward, *(f"{fmean(s.value for s in end):.3f}"
                                         for end in (before, after)),
                         f"{gain(before, after):+}", f"{clip:.4f}"])
    data = {", ".join(name): gain(*ends) for name, ends in found.items()}
    return Finding(["base", "reward", "sampled before", "sampled after", "gain [95%]", "clipped"],
                   rows, *judge(found), data,
                   [f"{len(made.seeds)} seeds, {before[0].n} held-out problems each. Accuracy is "
                    "by the exact reward, whatever training saw."])


def gain(before, after):
    """The mean over seeds of what accuracy gains, as a Score."""
    return combined((1, after), (-1, before))


def judge(found):
    """The verdict and its sentence, of {(base, reward): Scores before and after, of each seed}."""
    gains = {name: gain(*ends) for name, ends in found.items()}
    more = {reward: combined(*((sign * side, scores) for sign, base in ((1, RIGHT), (-1, OTHER))
                               for side, scores in zip((-1, 1), found[base, reward])))
            for reward in ("coin", "wrong")}
    clip = combined((1, found[RIGHT, "coin"][1]), (-1, found[RIGHT, "coin, no clip"][1]))
    wanted = [*(gains[RIGHT, reward] for reward in more), *more.values(), clip]
    verdict = ("reproduced" if all(one.low > 0 for one in wanted) else
               "reversed" if gains[OTHER, "coin"].low > 0 > more["coin"].high else
               "not reproduced")
    said = "; ".join(f"{base}: {gains[base, 'coin']:+} by a coin, {gains[base, 'wrong']:+} by "
                     f"wrong answers, {gains[base, 'exact']:+} by right ones" for base in BASES)
    return verdict, (f"Sampled accuracy gains, {said}. The first base leads by {more['coin']:+} "
                     f"with a coin and by {more['wrong']:+} with wrong answers; the clip adds "
                     f"{clip:+} to what a coin does there.")


def draw(figure, found):
    axes = figure.add_subplot()
    names = list(found.data)[::-1]
    for at, name in enumerate(names):
        score = found.data[name]
        axes.plot([score.low, score.high], [at, at], color="tab:blue", linewidth=2)
        axes.plot([score.value], [at], "o", color="tab:blue")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("gain in sampled held-out accuracy, exact reward [95%]")
