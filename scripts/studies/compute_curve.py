"""Is the end of an RL run foretold by its beginning?  A sigmoid in compute, fitted on a quarter.

    R(C) = R0 + (A - R0) / (1 + (M / C)^B)

R is the mean reward of a step's answers, over windows of ten steps, C the tokens sampled so far, R0
the reward of the first window.  A, B and M are fitted on the first quarter of the run, on all
windows but the first, and give R in the rest.  In the paper R is accuracy on held-out problems.
The runs are those of the study entropy-law.

reproduced      In every seed the foretold reward of the last tenth of the run is at most 0.03 off,
                and at most half as far off as that of the end of the first quarter.
reversed        In every seed it is further off than that.
not reproduced  Anything else.
"""

import numpy as np

from scripts.studies import Finding, entropy_law

PAPER = "arxiv.org/abs/2510.13786"
CLAIM = ("Khatri et al. 2025: accuracy on held-out problems against compute follows a sigmoid, and "
         "one that is fitted on the first 50,000 of 100,000 hours of GPUs, or on 16,000 of 45,000, "
         "extrapolates to the end.")
LIMITS = ("What a nano model can tell: how well three numbers are fixed by the first quarter of "
          "a curve, with the noise of 512 answers a step. What it cannot: the paper's claim is "
          "about recipes that stay stable for months. Here a run ends after minutes, long before "
          "its ceiling.")
TRIED = ("After the first runs were seen the fit was replaced, which had not found the least "
         "squares; the rule and the settings are as they were.")


def runs(seeds):
    return entropy_law.runs(seeds)


def sigmoid(compute, start, ceiling, power, middle):
    return start + (ceiling - start) / (1 + (middle / compute) ** power)


def fitted(compute, reward, start):
    """(A, B, M) of least squares, R0 <= A <= 1.

    For given B and M the best A is known.  B and log M are searched on a grid, then on grids of
    half the size around the best, since the errors lie in a narrow, bent valley.
    """
    low, high = (np.array([0.1, np.log(compute[0] / 100)]),
                 np.array([5.0, np.log(compute[-1] * 100)]))
    middle, half = (low + high) / 2, (high - low) / 2
    for _ in range(25):
        power, log_m = np.clip(np.linspace(middle - half, middle + half, 81), low, high).T
        rise = 1 / (1 + np.exp(power[:, None, None] * (log_m[:, None] - np.log(compute))))
        height = (rise @ (reward - start)) / np.square(rise).sum(-1)         # A - R0 of each B, M
        height = np.clip(height, 0.0, 1.0 - start)
        error = np.square(height[..., None] * rise + start - reward).sum(-1)
        b, m = np.unravel_index(error.argmin(), error.shape)
        middle, half = np.array([power[b], log_m[m]]), half / 2
    return start + height[b, m], power[b], np.exp(log_m[m])


def findings(made):
    rows, data, close, far = [], [], [], []
    for seed in made.seeds:
        compute, reward = entropy_law.windows(made.metrics(f"../direct/{seed}"), "num_tokens",
                                              "reward")
        part, last = len(reward) // 4, max(1, len(reward) // 10)
        best = fitted(compute[1:part], reward[1:part], reward[0])
        told = sigmoid(compute, reward[0], *best)
        end, quarter = float(reward[-last:].mean()), float(reward[part - 3 : part].mean())
        error, constant = abs(float(told[-last:].mean()) - end), abs(quarter - end)
        close.append(error <= 0.03 and error <= constant / 2)
        far.append(error > constant)
        data.append({"compute": compute.tolist(), "reward": reward.tolist(), "told": told.tolist(),
                     "part": part})
        rows.append([str(seed), *(f"{x:.3g}" for x in best), f"{quarter:.3f}",
                     f"{told[-last:].mean():.3f}", f"{end:.3f}", f"{error:.3f}"])
    verdict = "reproduced" if all(close) else "reversed" if all(far) else "not reproduced"
    return Finding(["seed", "A", "B", "M, tokens", "R after a quarter", "R at the end, foretold",
                    "R at the end", "error"], rows, verdict,
                   "The reward of a run's last tenth, foretold and measured: "
                   + "; ".join(f"{row[5]} and {row[6]}" for row in rows) + ".", data,
                   ["Fitted on the first quarter of each run. R is the reward of the answers that "
                    "are learnt from; problems are drawn anew in each step."])


def draw(figure, found):
    axes = figure.add_subplot()
    for k, run in enumerate(found.data):
        axes.plot(run["compute"], run["reward"], ".", color=f"C{k}", alpha=0.5, label=f"seed {k}")
        axes.plot(run["compute"], run["told"], color=f"C{k}")
        axes.axvline(run["compute"][run["part"] - 1], color=f"C{k}", linestyle=":", linewidth=0.8)
    axes.set(xscale="log", xlabel="tokens sampled (dotted: where the fit ends)", ylabel="reward")
    axes.legend(frameon=False)
