"""Do random and wrong rewards teach?  Of two bases one's commoner way is right, the other's wrong.

GRPO learns six-term sums from the exact reward, from a fair coin and from the wrong answers alone.
checkpoints/base works in steps that slip at random, so its likeliest answer is right.  The thinker
in a hurry counts large terms short, so its likeliest answer is often wrong.  A rollout is learnt in
eight gradient steps, so ratios move and the clip acts.  By the paper's account the clip is what
makes a coin teach: it lets likely tokens gain and not lose.  Without a clip the coin is a control.

reproduced      The coin raises the sampled accuracy of the base whose commoner way is right, and
                does not raise the other's, both beyond the 95% interval over seeds.
reversed        It raises the other's and not the first's.
not reproduced  Anything else.
"""

import zlib
from functools import partial
from statistics import fmean

from scripts.compare import over_seeds
from scripts.studies import Finding

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
BASES = {
    "commoner way right": ["--model", "checkpoints/base"],
    "commoner way wrong": ["--model", "checkpoints/thinker", "--hurried", "True"],
}
HERE = "scripts/studies/spurious_rewards.py"
REWARDS = {"exact": [], "coin": ["--reward", f"{HERE}:coin"],
           "wrong": ["--reward", f"{HERE}:wrong"],
           "coin, no clip": ["--reward", f"{HERE}:coin", "--clip", "1e6"]}
SETTINGS = ["--steps", "60", "--minibatch-size", "32", "--beta", "0", "--lr", "2e-4",
            "--clip", "0.2"]


def coin(prompts, completions, **columns):
    """1 or 0, whatever the answer is, and for a place in a batch of texts always the same."""
    return [float(zlib.crc32(f"{k} {prompt} {text}".encode()) >> 16 & 1)
            for k, (prompt, text) in enumerate(zip(prompts, completions))]


def wrong(prompts, completions, answer, **columns):
    """1 for an answer that is stated and wrong."""
    from minipost.tasks.arithmetic import Arithmetic

    found = [Arithmetic().parse(text) for text in completions]
    return [float(stated is not None and stated != right) for stated, right in zip(found, answer)]


def runs(seeds):
    return {run_of(base, reward, seed): [
        "--algo", "grpo", "--task", "arithmetic", *start, "--seed", seed, *SETTINGS, *given]
        for seed in seeds for base, start in BASES.items() for reward, given in REWARDS.items()}


def run_of(base, reward, seed):
    return f"{base}-{reward}-{seed}".replace(" ", "-").replace(",", "")


def findings(made):
    from minipost.measure.stats import Score

    data, rows = {}, []
    for base in BASES:
        for reward in REWARDS:
            ends = [accuracy(made, run_of(base, reward, seed)) for seed in made.seeds]
            befores, afters = ([Score(**end[when]) for end in ends] for when in ("before", "after"))
            n = len(ends)
            gain = over_seeds([a.value - b.value for a, b in zip(afters, befores)],
                              [*afters, *befores], [1 / n] * n + [-1 / n] * n, -1.0, 1.0)
            clip = fmean(m["clip_ratio"] for seed in made.seeds
                         for m in made.metrics(run_of(base, reward, seed)))
            data[f"{base}, {reward}"] = [gain.value, gain.low, gain.high]
            rows.append([base, reward, f"{fmean(s.value for s in befores):.3f}",
                         f"{fmean(s.value for s in afters):.3f}",
                         f"{gain:+}", f"{clip:.4f}"])
    verdict = judge(data)
    said = "; ".join(f"{base}: {show(data[f'{base}, coin'])}, without a clip "
                     f"{show(data[f'{base}, coin, no clip'])}, exact {show(data[f'{base}, exact'])}"
                     for base in BASES)
    return Finding(["base", "reward", "sampled before", "sampled after", "gain [95%]", "clipped"],
                   rows, verdict, f"What a coin adds to sampled accuracy, {said}.", data,
                   [f"{len(made.seeds)} seeds, 400 held-out problems each. The reward is what "
                    "training sees; accuracy is by the exact one where the reward is exact."])


def accuracy(made, run):
    """Sampled, held out, by the task's own reward."""
    return made.once(f"exact-{run}", partial(measured, made, run), [run])


def measured(made, run):
    """{"before", "after"}: the exact accuracy of the start and the end, whatever reward it had."""
    from dataclasses import asdict

    from minipost import checkpoint, train
    from minipost.measure.results import evaluate
    from minipost.optim import Learner
    from minipost.run import Run

    settings, _ = train.saved_in(made.folder / run)
    found = {}
    for when, directory in (("before", settings.options.model), ("after", made.model(run))):
        module, vocabulary = checkpoint.load(str(directory))
        work = Run(Learner(module), vocabulary, settings.task, settings.task.reward,
                   seed=settings.options.seed, max_new_tokens=settings.options.max_new_tokens)
        found[when] = asdict(evaluate(work, settings.task.heldout(settings.options.eval_n),
                                      1.0).score)
    return found


def judge(data):
    right, other = (data[f"{base}, coin"] for base in BASES)
    if right[1] > 0 and not other[1] > 0:
        return "reproduced"
    return "reversed" if other[1] > 0 and not right[1] > 0 else "not reproduced"


def show(gain):
    return f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]"


def draw(figure, found):
    axes = figure.add_subplot()
    names = list(found.data)[::-1]
    for at, name in enumerate(names):
        value, low, high = found.data[name]
        axes.plot([low, high], [at, at], color="tab:blue", linewidth=2)
        axes.plot([value], [at], "o", color="tab:blue")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("gain in sampled held-out accuracy, exact reward [95%]")
