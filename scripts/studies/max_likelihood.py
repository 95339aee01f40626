"""Does the log of success teach more than success?  MaxRL against GRPO, pass@k exact.

Both start from checkpoints/base on countdown, where right texts can be listed, so that pass@k is
exact (minipost/measure/passes.py).  They draw the same problems, equally many answers to each, and
make equally many steps at one learning rate.  The interval of a difference is the wider one of two:
over hands, since problems that share one are alike, and over seeds.

reproduced      MaxRL's mean pass@8 is above GRPO's beyond the 95% interval, and its pass@1 is not
                below GRPO's beyond its interval.
reversed        MaxRL's mean pass@8 is below GRPO's beyond the 95% interval.
not reproduced  Anything else.
"""

from statistics import fmean

from minipost.measure.stats import Score, clustered, pass_at, t_interval
from minipost.tasks.countdown import Countdown
from scripts import looks
from scripts.studies import ROOT, Finding
from scripts.studies.pass_at_k import BASE, GRID, chances, mean_at

PAPER = "arxiv.org/abs/2602.02710"
CLAIM = ("Tajwar et al. 2026: a policy gradient of log p in place of p is at least level with GRPO "
         "at pass@1 and ahead of it at larger k, on every model and task that they tried.")
LIMITS = ("What a nano model can tell: the curves are exact, and all but the advantage is equal. "
          "What it cannot: a base of 0.86M parameters solves few of these problems in another way "
          "than by a lucky draw, and training goes through the same few hundred hands again and "
          "again. The paper's gain comes from hard prompts that are rarely solved.")
TRIED = "Neither the rule nor the settings were changed after tries."
METHODS = {
    "grpo": ["--beta", "0"],
    "maxrl": [],
}
SETTINGS = ["--steps", "60", "--prompts", "32", "--group-size", "16", "--lr", "2e-4"]
KS = [1, 8, 64, 1024]
N = 400  # held-out problems


def runs(seeds):
    return {f"{algo}-{seed}": ["--algo", algo, "--task", "countdown", "--model", BASE,
                               "--seed", seed, "--eval-n", 100, *SETTINGS, *given]
            for seed in seeds for algo, given in METHODS.items()}


def findings(made):
    n = made.options.get("n", N)
    hands = [tuple(sorted(p.columns["numbers"])) for p in Countdown().heldout(n)]
    data = {"base": [made.once("base", chances, ROOT / BASE, {}, n)]}
    tokens = {"base": 0.0}
    for algo in METHODS:
        names = [f"{algo}-{seed}" for seed in made.seeds]
        data[algo] = [made.once(f"chances-{name}", chances, made.model(name), {}, n)
                      for name in names]
        tokens[algo] = fmean(made.summary(name)["tokens"] for name in names)
    rows = [[name, str(len(found)), f"{tokens[name]:,.0f}",
             *(f"{mean_at(found, k):.3f}" for k in KS)] for name, found in data.items()]
    leads = {k: lead(data["maxrl"], data["grpo"], k, hands) for k in KS}
    rows.append(["maxrl less grpo", "", "", *(f"{leads[k]:+}" for k in KS)])
    return Finding(
        ["policy", "seeds", "tokens", *(f"pass@{k:,}" for k in KS)], rows,
        *judge(leads), data, [f"{n} held-out problems with three numbers; pass@k is exact."])


def lead(first, second, k, hands):
    """pass@k of `first` over `second`, paired by seed and problem: the wider interval of two."""
    gaps = [[pass_at(p, k) - pass_at(q, k) for p, q in zip(*pair, strict=True)]
            for pair in zip(first, second, strict=True)]
    both = [clustered(list(map(fmean, zip(*gaps))), hands), t_interval(list(map(fmean, gaps)))]
    return Score(both[0].value, min(s.low for s in both), max(s.high for s in both), both[0].n)


def judge(leads):
    verdict = ("reversed" if leads[8].high < 0 else
               "reproduced" if leads[8].low > 0 and leads[1].high >= 0 else "not reproduced")
    return verdict, (f"On held-out countdown MaxRL is ahead of GRPO by {leads[1]:+} at pass@1, "
                     f"{leads[8]:+} at pass@8 and {leads[64]:+} at pass@64.")


def draw(figure, found):
    axes = figure.subplots()
    for name, each in found.data.items():
        axes.plot(GRID, [mean_at(each, k) for k in GRID], color=looks.colour(name), label=name,
                  linestyle="--" if name == "base" else "-")
    axes.set(xscale="log", xlabel="k", ylabel="pass@k, held out, exact")
    axes.legend(frameon=False)
