"""Does too much of a proxy reward hurt?  Gold reward against the square root of the KL.

A reward model learns from 8,000 pairs of the base's answers to `wording`, a quarter of them
labelled wrongly.  Four sizes learn from the same pairs, from nothing.  Each is then optimised, by
best of n and by PPO without a price on the KL, and the hidden gold reward is measured on the way.
R is the gold reward less that of the base, d the square root of KL(policy || base) in nats an
answer.

    best of n   R = d (a - b d)         KL = log n - (n - 1)/n
    RL          R = d (a - b log d)     KL exact over the vocabulary at each token that was sampled

Both forms are fitted by least squares on every other point of a run.

reproduced      In both methods the form explains at least 0.9 of the variance of the points that
                were left out, over all runs; with the smallest reward model R ends more than a
                tenth below its peak; and the peak grows with the log of the reward model's size:
                the slope is above 0 beyond its 95% interval over seeds.
reversed        In both methods the slope is below 0 beyond the interval.
not reproduced  Anything else.
"""

import json
from functools import cache, partial
from math import comb, log
from pathlib import Path
from statistics import fmean

import numpy as np

from minipost import checkpoint, files
from minipost.datasets.preferences import by_reward
from minipost.gpt import GPT, GPTConfig
from minipost.measure.stats import Score, t_interval
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.wording import Wording
from scripts.compare import fingerprint
from scripts.studies import ROOT, Finding

PAPER = "arxiv.org/abs/2210.10760"
CLAIM = ("Gao et al. 2022: as a proxy reward model is optimised, the gold reward R rises and then "
         "falls in d, the square root of the KL to the start: R = d (a - b d) for best of n, "
         "R = d (a - b log d) for RL; a and b change smoothly with the log of the reward model's "
         "size (a of RL hardly at all), and larger reward models have higher peaks.")
LIMITS = ("What a nano model can tell: the gold reward is a rule that is known, and the KL is "
          "exact. What it cannot: these reward models learn from pairs alone and know no language, "
          "so what they get wrong is cruder than what a large one gets wrong. Their sizes span a "
          "factor of 60, the paper's of 1,000, and a and b depend on the task.")
BASE = "checkpoints/base"
FOLDER = "runs/studies/over-optimisation"
WIDTHS = (4, 12, 32, 64)  # of the reward models, two layers each
PAIRS, NOISE = 8000, 0.25
PROBLEMS, POOL = 100, 1024  # answers of the base to each held-out problem, from which n are drawn
NS = [2**k for k in range(10)]
WINDOW = 4  # steps of PPO that make a point
REWARD = ["--steps", 500, "--prompts", 32, "--lr", "3e-3", "--micro-batch-size", 64]
RL = ["--steps", 80, "--beta", 0, "--missing-eos", 0, "--lr", "2e-4", "--micro-batch-size", 64]


# ---- what the runs start from, and the runs

def runs(seeds):
    found = {}
    for seed in seeds:
        for width in WIDTHS:
            found[f"reward-{width}-{seed}"] = [
                "--algo", "reward", "--data", pairs_of(FOLDER, seed),
                "--model", f"{FOLDER}/new-{width}", "--seed", seed, "--eval-n", 400, *REWARD]
            found[f"ppo-{width}-{seed}"] = [
                "--algo", "ppo", "--task", "wording", "--model", BASE,
                "--reward-model", f"{FOLDER}/reward-{width}-{seed}/model", "--seed", seed,
                "--eval-n", 100, *RL]
    return found


def pairs_of(folder, seed):
    """The file of a seed's pairs.  Its name says of which base they are."""
    return f"{folder}/pairs-{seed}-{fingerprint(ROOT / BASE)[:8]}.jsonl"


def prepare(made):
    """New models of all sizes, and the pairs of each seed."""
    _, vocabulary = checkpoint.load(str(ROOT / BASE))
    for width in made.options.get("widths", WIDTHS):
        model = GPT(GPTConfig(vocabulary.tokenizer.vocab_size, width, 3 * width, 2, 1, 1, width))
        checkpoint.create(made.folder / f"new-{width}", model.initialise(0), vocabulary.tokenizer)
    for seed in made.seeds:
        if not Path(path := pairs_of(made.folder, seed)).is_file():
            text = "\n".join(map(json.dumps, pairs(made.options.get("pairs", PAIRS), seed)))
            files.publish(path, lambda path, text=text: path.write_text(text))


def base(noise=0.0, seed=0):
    module, vocabulary = checkpoint.load(str(ROOT / BASE))
    task = Wording(noise)
    return Run(Learner(module), vocabulary, task, task.reward, seed=seed, micro_batch_size=512)


def pairs(n, seed):
    """Two answers of the base to each of n problems, as rows of a file; ties are left out."""
    run = base(NOISE, seed)
    problems = run.problems(n)
    rollout = run.sample(problems, 2, temperature=1.0, purpose="pairs")
    texts, lead = run.texts(rollout), by_reward(run, problems, rollout).tolist()
    for problem, first, second, ahead in zip(problems, texts[::2], texts[1::2], lead):
        if ahead and first and second and first != second:
            better, worse = (first, second) if ahead > 0 else (second, first)
            yield {"prompt": problem.prompt, "chosen": better, "rejected": worse}


# ---- best of n

@cache
def pool(problems, n):
    """(run, n answers of the base to each held-out problem, their gold rewards (P, n))."""
    run = base()
    problems = run.task.heldout(problems)
    rollout = run.sample(problems, n, temperature=1.0, purpose="pool")
    return run, rollout, run.grade(problems, rollout).view(-1, n).double().numpy()


def best_of_n(model, problems, size, ns):
    """The gold reward of best of n by this reward model, mean over problems, for each n."""
    run, rollout, gold = pool(problems, size)
    scorer = checkpoint.load_reward_model(str(model), run.vocabulary)
    score = run.final_scores(scorer, rollout).view(-1, size).numpy()
    return expected_best(score, gold, ns)


def expected_best(score, gold, ns):
    """Expected gold of the one with the best score among n of N, without replacement (App. I).

    Of N answers in the order of their scores, the i-th is the best of n with the chance
    C(i - 1, n - 1) / C(N, n).  (P, N) twice -> a value for each n
    """
    size = score.shape[1]
    ranked = np.take_along_axis(gold, score.argsort(1, kind="stable"), 1).mean(0)
    return [float(ranked @ [comb(i, n - 1) / comb(size, n) for i in range(size)]) for n in ns]


# ---- fits

FORMS = {"best of n": lambda d: np.stack([d, -d * d], 1),
         "RL": lambda d: np.stack([d, -d * np.log(d)], 1)}


def fitted(form, d, r):
    """(a, b) of least squares."""
    return np.linalg.lstsq(FORMS[form](np.asarray(d)), np.asarray(r), rcond=None)[0]


def explained(form, curves):
    """The share of variance explained of every other point, by fits on the points between them."""
    left = whole = 0.0
    for d, r in curves:
        told = FORMS[form](d[1::2]) @ fitted(form, d[::2], r[::2])
        left += ((r[1::2] - told) ** 2).sum()
        whole += ((r[1::2] - r[1::2].mean()) ** 2).sum()
    return float(1 - left / whole)


def curve(made, method, width, seed, start):
    """(d, R) of a run, without its start, where both are 0."""
    if method == "best of n":
        name = f"reward-{width}-{seed}"
        ns = made.options.get("ns", NS)
        gold = made.once(f"best-{width}-{seed}", partial(
            best_of_n, made.model(name), made.options.get("problems", PROBLEMS),
            made.options.get("pool", POOL), ns), [name])
        return (np.sqrt([log(n) - (n - 1) / n for n in ns[1:]]), np.array(gold[1:]) - start)
    steps = made.metrics(f"ppo-{width}-{seed}")
    kl, gold = ([fmean(line[key] for line in steps[k : k + WINDOW])
                 for k in range(0, len(steps) - WINDOW + 1, WINDOW)]
                for key in ("kl_per_answer", "gold"))
    return np.sqrt(kl), np.array(gold) - start


# ---- what came out

def findings(made):
    widths = made.options.get("widths", WIDTHS)
    of = [made.options.get("problems", PROBLEMS), made.options.get("pool", POOL)]
    rewards = {width: [f"reward-{width}-{seed}" for seed in made.seeds] for width in widths}
    start = made.once("base", lambda: float(pool(*of)[2].mean()), sum(rewards.values(), []))
    data, rows = {}, []
    for form in FORMS:
        other = next(name for name in FORMS if name != form)
        for width in widths:
            size = parameters(made.folder / f"new-{width}")
            found = [curve(made, form, width, seed, start) for seed in made.seeds]
            data.setdefault(form, {})[size] = [[d.tolist(), r.tolist()] for d, r in found]
            right = [made.summary(run)["all"]["pair accuracy, held-out"]["after"]["value"]
                     for run in rewards[width]]
            a, b = np.mean([fitted(form, *run) for run in found], 0)
            rows.append([form, f"{size:,}", f"{fmean(right):.3f}", f"{a:.3f}", f"{b:.3f}",
                         f"{explained(form, found):.2f}", f"{explained(other, found):.2f}",
                         *(f"{fmean(x):.3f}" for x in zip(*map(height, found)))])
    verdict, sentence = judge(data)
    return Finding(
        ["method", "parameters", "pair accuracy", "a", "b", "R^2, left out",
         "R^2, the other's form", "R at the peak", "d there", "R at the end", "d there"],
        rows, verdict, sentence, data,
        [f"Means of {len(made.seeds)} seeds. R is the gold reward less {start:.3f}, the base's. "
         f"Best of n up to {NS[-1]} from {of[1]} answers to each of {of[0]} held-out problems, "
         "without bias; a point of PPO is "
         f"the mean of {WINDOW} steps. Pair accuracy: on held-out pairs, of which a share of "
         f"{NOISE} is labelled wrongly. Linear in the log of the size: "
         + "; ".join(f"{form}, {smooth(data[form], form)}" for form in FORMS) + "."])


def parameters(model):
    """How many numbers a model directory holds."""
    return sum(p.numel() for p in checkpoint.load(str(model))[0].parameters())


def height(run):
    """R at the peak, d there, R at the end, d there."""
    d, r = run
    top = int(np.argmax(r))
    return r[top], d[top], r[-1], d[-1]


def smooth(found, form):
    """How much of the variance of mean a and b between sizes a line in the log of size explains."""
    means = np.array([np.mean([fitted(form, *map(np.array, run)) for run in runs], 0)
                      for runs in found.values()])
    size = np.log(list(found))
    return " and ".join(f"{name} R^2 {np.corrcoef(size, value)[0, 1] ** 2:.2f}"
                        for name, value in zip("ab", means.T))


def slope(found):
    """The slope of the peak against the log10 of the size, with its interval over seeds."""
    size = np.log10(list(found))
    peaks = np.array([[height(run)[0] for run in runs] for runs in found.values()])
    values = np.polyfit(size, peaks, 1)[0].tolist()
    return t_interval(values) if len(values) > 1 else Score(values[0], -1.0, 1.0, 1)


def judge(data):
    """The verdict and its sentence, of {method: {size: [(d, R) of each seed]}}."""
    said, fits, falls, slopes = [], [], [], []
    for form, found in data.items():
        every = [tuple(map(np.array, run)) for runs in found.values() for run in runs]
        top, _, end, _ = np.mean([height(run) for run in next(iter(found.values()))], 0)
        fits.append(explained(form, every))
        falls.append(top > 0 and end < 0.9 * top)
        slopes.append(slope(found))
        said.append(f"{form}: the form explains {fits[-1]:.2f} of the points left out; with the "
                    f"smallest reward model R peaks at {top:.3f} and ends at {end:.3f}; the peak "
                    f"grows by {slopes[-1]:+} for ten times the size")
    verdict = ("reproduced" if min(fits) >= 0.9 and all(falls) and all(s.low > 0 for s in slopes)
               else "reversed" if all(s.high < 0 for s in slopes) else "not reproduced")
    return verdict, "; ".join(said).join(("", ".")).replace("; RL:", ". RL:")


def draw(figure, found):
    for axes, (form, sizes) in zip(figure.subplots(1, 2, sharey=True), found.data.items()):
        for k, (size, runs) in enumerate(sizes.items()):
            for d, r in runs:
                axes.plot(d, r, ".", color=f"C{k}", alpha=0.4)
            d, r = (np.concatenate(part) for part in zip(*runs))
            line = np.linspace(0.01, d.max(), 100)
            axes.plot(line, FORMS[form](line) @ fitted(form, d, r), color=f"C{k}",
                      label=f"{size:,} parameters")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="d = sqrt(KL(policy, base)), nats an answer", title=form)
    figure.axes[0].set_ylabel("R: gold reward less the base's")
    figure.axes[0].legend(frameon=False)
