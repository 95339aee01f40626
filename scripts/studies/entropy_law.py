"""Does entropy foretell what RL reaches?  R = -a e^H + b, fitted on the first quarter of a run.

GRPO without a KL penalty learns six-term sums that are answered at once.  R is the mean reward of a
step's answers and H their mean entropy per token, both over windows of ten steps, and both of all
answers, also of groups that tie.  In the paper R is accuracy on held-out problems.  a and b are
fitted on the first quarter of the windows and give R from H in the other three.

reproduced      In every seed the mean error of R over the last three quarters is at most 0.03 and
                at most half of what it is if R stays as at the end of the first quarter.
reversed        In every seed it is larger than that of a constant.
not reproduced  Anything else.
"""

from statistics import fmean

import numpy as np

from scripts.studies import Finding

PAPER = "arxiv.org/abs/2505.22617"
CLAIM = ("Cui et al. 2025: without intervention a policy trades entropy for accuracy on held-out "
         "problems along R = -a e^H + b; fitted on early steps it predicts the rest of a run to "
         "about one point of accuracy, and -a + b is the ceiling when the entropy is gone.")
LIMITS = ("What a nano model can tell: whether the law holds for answers of two tokens, where "
          "entropy and the chance of a right answer are nearly the same thing. What it cannot: "
          "in long chains of thought most tokens have no entropy and a few decide. That the law "
          "holds here or fails here says little about its a and b for a large model.")
TRIED = ("After the first runs were seen the logged entropy was mended, which had left out groups "
         "that tie, and the runs were made again; the rule and the settings are as they were.")
RUN = ["--algo", "grpo", "--task", "arithmetic", "--direct", "True", "--model", "checkpoints/base",
       "--lr", "1e-4", "--beta", "0", "--group-size", "16", "--steps", "600", "--save-every", "200"]
WINDOW = 10


def runs(seeds):
    return {f"../direct/{seed}": [*RUN, "--seed", seed] for seed in seeds}


def windows(lines, *names, size=WINDOW):
    """Means over windows of `size` steps, an array for each name."""
    count = len(lines) // size
    return [np.array([fmean(line[name] for line in lines[k * size : (k + 1) * size])
                      for k in range(count)]) for name in names]


def fitted(entropy, reward):
    """a and b of R = -a e^H + b, by least squares."""
    slope, b = np.polyfit(np.exp(entropy), reward, 1)
    return -slope, b


def findings(made):
    rows, data, small, worse = [], [], [], []
    for seed in made.seeds:
        entropy, reward = windows(made.metrics(f"../direct/{seed}"), "entropy", "reward")
        part = len(reward) // 4
        a, b = fitted(entropy[:part], reward[:part])
        told = b - a * np.exp(entropy)
        error, constant = (float(np.abs(x - reward[part:]).mean())
                           for x in (told[part:], np.full(len(reward) - part, reward[part - 1])))
        small.append(error <= 0.03 and error <= constant / 2)
        worse.append(error > constant)
        data.append({"entropy": entropy.tolist(), "reward": reward.tolist(), "told": told.tolist(),
                     "part": part})
        rows.append([str(seed), *(f"{x:.3f}" for x in (
            a, b, reward[part - 1], told[-1], reward[-1], error, constant, b - a))])
    verdict = "reproduced" if all(small) else "reversed" if all(worse) else "not reproduced"
    errors, constants = (", ".join(row[k] for row in rows) for k in (6, 7))
    return Finding(["seed", "a", "b", "R after a quarter", "R at the end, foretold", "R at the end",
                    "mean error", "of a constant", "foretold ceiling"], rows, verdict,
                   "Mean error of the foretold reward over the last three quarters of a run: "
                   f"{errors} ({len(rows)} seeds); of a constant: {constants}.", data,
                   ["The law is fitted on the first quarter of each run. R is the reward of the "
                    "answers that are learnt from; problems are drawn anew in each step."])


def draw(figure, found):
    axes = figure.add_subplot()
    for k, run in enumerate(found.data):
        order = np.argsort(run["entropy"])
        axes.plot(run["entropy"], run["reward"], ".", color=f"C{k}", alpha=0.6, label=f"seed {k}")
        axes.plot(np.array(run["entropy"])[order], np.array(run["told"])[order], color=f"C{k}")
        axes.axvline(run["entropy"][run["part"] - 1], color=f"C{k}", linestyle=":", linewidth=0.8)
    axes.set(xlabel="entropy, nats a token (dotted: where the fit ends)", ylabel="reward")
    axes.legend(frameon=False)
