"""Does too much of a proxy reward hurt?  Gold reward against the square root of the KL.

A reward model learns from some 6,000 pairs of the base's answers to `wording`, a quarter of them
labelled wrongly.  Four sizes learn from the same pairs, from nothing.  Each is optimised, by best
of n and by PPO without a price on the KL, and the hidden gold reward is measured on the way.  R is
the gold reward less that of the base, d the square root of KL(policy || base) in nats an answer.

    best of n   R = d (a - b d)         KL = log n - (n - 1)/n
    RL          R = d (a - b log d)     KL exact over the vocabulary at each token that was sampled

Both forms are fitted by least squares: on every other point of a run, to see whether they fit, and
on the half of its points with smaller d, to see which one foretells the other half.  The highest of
noisy points is too high, and a form that is fitted to a plateau bends down.  So the peak is looked
for without a form, where the mean of the other seeds is highest, and R there and at the end are
means of neighbouring points.

reproduced      In both methods the form explains at least 0.9 of the variance of the points that
                were left out, over all runs, and in every seed foretells the farther halves better
                than the other method's form does; with the smallest reward model R ends more than a
                tenth below its peak, beyond the 95% interval over seeds; and the peak grows with
                the log of the reward model's size: the slope is above 0 beyond that interval.
reversed        In both methods the slope is below 0 beyond the interval.
not reproduced  Anything else.
"""

import json
import math
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np

from minipost import checkpoint, files
from minipost.datasets.preferences import by_reward
from minipost.gpt import GPT, GPTConfig
from minipost.measure.stats import t_interval
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
          "factor of 56, the paper's of 1,000, and a and b depend on the task.")
TRIED = ("The rates, the steps of PPO and the points of a run were changed after tries; the rule, "
         "which took the highest point for the peak and did not compare the forms, was replaced "
         "before the runs that are shown.")
BASE = "checkpoints/base"
FOLDER = "runs/studies/over-optimisation"
WIDTHS = {4: "3e-3", 12: "3e-3", 32: "2e-3", 64: "1e-3"}  # of two layers each: learning rate
PAIRS, NOISE = 8000, 0.25   # drawn; ties and what is held out are not learnt from
PROBLEMS, POOL = 100, 1024  # answers of the base to each held-out problem, from which n are drawn
NS = [2**k for k in range(10)]
WINDOW = 2                  # steps of PPO that make a point
REWARD = ["--steps", 500, "--prompts", 32, "--micro-batch-size", 64]
RL = ["--steps", 40, "--beta", 0, "--missing-eos", 0, "--lr", "1.5e-4"]
FORMS = {"best of n": lambda d: np.stack([d, -d * d], 1),
         "RL": lambda d: np.stack([d, -d * np.log(d)], 1)}


def runs(seeds):
    found = {}
    for seed, width in ((seed, width) for seed in seeds for width in WIDTHS):
        found[f"reward-{width}-{seed}"] = [
            "--algo", "reward", "--data", pairs_of(FOLDER, seed), "--model",
            f"{FOLDER}/new-{width}", "--seed", seed, "--lr", WIDTHS[width], "--eval-n", 100,
            *REWARD]
        found[f"ppo-{width}-{seed}"] = [
            "--algo", "ppo", "--task", "wording", "--model", BASE, "--reward-model",
            f"{FOLDER}/reward-{width}-{seed}/model", "--seed", seed, "--eval-n", 100, *RL]
    return found


def pairs_of(folder, seed):
    """The file of a seed's pairs.  Its name says of which base they are."""
    return f"{folder}/pairs-{seed}-{fingerprint(ROOT / BASE)[:8]}.jsonl"


def prepare(made):
    """New models of all sizes, and the pairs of each seed."""
    words = base().vocabulary.tokenizer
    for width in made.options.get("widths", WIDTHS):
        model = GPT(GPTConfig(words.vocab_size, width, 3 * width, 2, 1, 1, width))
        checkpoint.create(made.folder / f"new-{width}", model.initialise(0), words)
    for seed in made.seeds:
        if not Path(path := pairs_of(made.folder, seed)).is_file():
            text = "\n".join(map(json.dumps, pairs(made.options.get("pairs", PAIRS), seed)))
            files.publish(path, lambda path, text=text: path.write_text(text))


def base(noise=0.0, seed=0, start=ROOT / BASE):
    module, vocabulary = checkpoint.load(str(start))
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


@cache
def pool(start, problems, n):
    """(run, n answers of the base to each held-out problem, their gold rewards (P, n))."""
    run = base(start=start)
    problems = run.task.heldout(problems)
    rollout = run.sample(problems, n, temperature=1.0, purpose="pool")
    return run, rollout, run.grade(problems, rollout).view(-1, n).double().numpy()


def mean_gold(*of):
    return float(pool(*of)[2].mean())


def best_of(model, ns, *of):
    """The share of pairs that a reward model orders right, and the gold reward of its best of n."""
    run, rollout, gold = pool(*of)
    scorer = checkpoint.load_reward_model(str(model), run.vocabulary)
    score = run.final_scores(scorer, rollout).view(gold.shape).numpy()
    lead = [x[:, ::2] - x[:, 1::2] for x in (score, gold)]
    right = (lead[0] * lead[1] > 0)[lead[1] != 0].mean()
    return {"right": float(right), "gold": expected_best(score, gold, ns)}


def expected_best(score, gold, ns):
    """Expected gold of the one with the best score among n of N, without replacement.

    Of N answers in the order of their scores, the i-th is the best of n with the chance
    C(i - 1, n - 1) / C(N, n).  (P, N) twice -> a value for each n
    """
    size = score.shape[1]
    ranked = np.take_along_axis(gold, score.argsort(1, kind="stable"), 1).mean(0)
    return [sum(math.comb(i, n - 1) / math.comb(size, n) * g for i, g in enumerate(ranked))
            for n in ns]


def rl(lines):
    """sqrt(KL) and gold reward of the points of a PPO run."""
    found = np.array([(line["kl_per_answer"], line["gold"]) for line in lines])
    kl, gold = found[: len(found) // WINDOW * WINDOW].reshape(-1, WINDOW, 2).mean(1).T
    return np.sqrt(kl), gold


def fitted(form, d, r):
    """(a, b) of least squares."""
    return np.linalg.lstsq(FORMS[form](d), r, rcond=None)[0]


def explained(form, curves):
    """The share of variance explained of every other point, by fits on the points between them."""
    left = [r[1::2] - FORMS[form](d[1::2]) @ fitted(form, d[::2], r[::2]) for d, r in curves]
    whole = [r[1::2] - r[1::2].mean() for _, r in curves]
    return float(1 - np.square(np.hstack(left)).sum() / np.square(np.hstack(whole)).sum())


def foretold(form, runs):
    """The mean squared error on the farther half of the points, by fits on the nearer half."""
    left = []
    for d, r in runs:
        near, far = np.array_split(np.argsort(d, kind="stable"), [len(d) // 2])
        left.append(r[far] - FORMS[form](d[far]) @ fitted(form, d[near], r[near]))
    return float(np.square(np.hstack(left)).mean())


def heights(runs):
    """R at the peak, d there, R at the end, d there, of each seed's run with one reward model.

    The other seeds say where the peak is, so that it is not where a run has luck.
    """
    smooth = [[np.array([x[max(0, k - 1) : k + 2].mean() for k in range(len(x))]) for x in run]
              for run in runs]
    found = []
    for run in smooth:
        d, r = run
        top = np.mean([other[1] for other in smooth if other is not run], 0).argmax()
        found.append((r[top], d[top], r[-1], d[-1]))
    return found


def findings(made):
    widths = made.options.get("widths", WIDTHS)
    of = ROOT / BASE, *made.options.get("pool", (PROBLEMS, POOL))
    start = made.once("base", mean_gold, *of)
    best = {(width, seed): made.once(f"best-{width}-{seed}", best_of,
                                     made.model(f"reward-{width}-{seed}"), NS, *of)
            for width in widths for seed in made.seeds}
    root = np.sqrt([math.log(n) - (n - 1) / n for n in NS])
    data, rows = {form: {} for form in FORMS}, []
    for form, other in zip(FORMS, reversed(FORMS)):
        for width in widths:
            model, _ = checkpoint.load(str(made.folder / f"new-{width}"))
            size = sum(p.numel() for p in model.parameters())
            points = [(root[1:], np.array(best[width, seed]["gold"][1:])) if form == "best of n"
                      else rl(made.metrics(f"ppo-{width}-{seed}")) for seed in made.seeds]
            found = data[form][size] = [(d, gold - start) for d, gold in points]
            figures = [fmean(best[width, seed]["right"] for seed in made.seeds),
                       *np.mean([fitted(form, *run) for run in found], 0),
                       explained(form, found), explained(other, found),
                       foretold(form, found) ** 0.5, foretold(other, found) ** 0.5,
                       *np.mean(heights(found), 0)]
            rows.append([form, f"{size:,}", *(f"{x:.3f}" for x in figures)])
    verdict, sentence = judge(data)
    return Finding(
        ["method", "parameters", "right", "a", "b", "R^2, left out",
         "R^2, the other's form", "error, farther half", "of the other's form",
         "R at the peak", "d there", "R at the end", "d there"],
        rows, verdict, sentence, data,
        [f"Means of {len(made.seeds)} seeds. The base's gold reward is {start:.3f}. Best of n, up "
         f"to {NS[-1]}, is without bias from {of[2]} answers to each of {of[1]} held-out problems; "
         f"a point of PPO is the mean of {WINDOW} steps. Right: share of pairs of these answers "
         "that are ordered as by the gold reward. A line in the log of the size explains of the "
         "variance of a and b: "
         + "; ".join(f"{form}, {smooth(form, data[form])}" for form in FORMS) + "."])


def smooth(form, found):
    """How much of the variance of a and b between sizes a line in the log of the size explains."""
    means = np.array([np.mean([fitted(form, *run) for run in runs], 0) for runs in found.values()])
    return " and ".join(f"{np.corrcoef(np.log(list(found)), value)[0, 1] ** 2:.2f}"
                        for value in means.T)


def slope(found):
    """How much the peak grows with ten times the size, with its interval over seeds."""
    peaks = [[top for top, *_ in heights(runs)] for runs in found.values()]
    return t_interval(np.polyfit(np.log10(list(found)), np.array(peaks), 1)[0].tolist())


def judge(data):
    """The verdict and its sentence, of {form: {size: [(d, R) of each seed]}}."""
    said, held, slopes = [], [], []
    for form, other in zip(FORMS, reversed(FORMS)):
        found = data[form]
        fit = explained(form, [run for runs in found.values() for run in runs])
        seeds = list(zip(*found.values()))  # each the runs of all sizes
        better = sum(foretold(form, runs) < foretold(other, runs) for runs in seeds)
        ends = heights(found[min(found)])
        fall = t_interval([0.9 * top - end for top, _, end, _ in ends])
        top, _, end, _ = np.mean(ends, 0)
        slopes.append(slope(found))
        held.append(fit >= 0.9 and better == len(seeds) and top > 0 and fall.low > 0)
        said.append(f"{form[0].upper()}{form[1:]}: the form explains {fit:.2f} of the variance of "
                    f"the points left out and foretells the farther half better than the other in "
                    f"{better} of {len(seeds)} seeds; R with the smallest reward model peaks at "
                    f"{top:.3f} and ends at {end:.3f}, below nine tenths of the peak by "
                    f"{fall:+}, and the peak grows by {slopes[-1]:+} with ten times the size.")
    verdict = ("reproduced" if all(held) and all(s.low > 0 for s in slopes) else
               "reversed" if all(s.high < 0 for s in slopes) else "not reproduced")
    return verdict, " ".join(said)


def draw(figure, found):
    for axes, (form, sizes) in zip(figure.subplots(1, 2), found.data.items()):
        for k, (size, runs) in enumerate(sizes.items()):
            d, r = (np.concatenate(part) for part in zip(*runs))
            line = np.linspace(0.01, d.max(), 100)
            axes.plot(d, r, ".", color=f"C{k}", alpha=0.4)
            axes.plot(line, FORMS[form](line) @ fitted(form, d, r), color=f"C{k}",
                      label=f"{size:,} parameters")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="d = sqrt(KL(policy, base)), nats an answer", title=form)
    figure.axes[0].set_ylabel("R: gold reward less the base's")
    figure.axes[0].legend(frameon=False)
