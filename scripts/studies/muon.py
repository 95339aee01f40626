"""Does Muon earn its place beside AdamW in post-training?  SFT and GRPO of a model AdamW trained.

The thinker in a hurry, which AdamW trained, learns to count right by SFT and by GRPO.  Muon moves
the matrices of the layers and AdamW the rest, or AdamW moves all (minipost/optim.py).  Both have
the same problems, steps and answers a step.  What counts is how fast they learn: the mean over a
run's steps of the loss of SFT, and of GRPO's reward, on training problems that are fresh in every
step.  Each optimiser has a learning rate of its own in SFT and in GRPO, the best by that measure in
runs of another seed.  Muon's lead in SFT is the share of AdamW's loss that it saves.

reproduced      In SFT Muon has no lead beyond the 95% interval over seeds, and the interval leaves
                out a lead of a third.
reversed        In SFT Muon has a lead beyond the interval.
not reproduced  Neither: a lead of a third and none are both within the interval.
"""

from statistics import fmean

from minipost.measure.stats import Score, t_interval
from scripts import looks
from scripts.compare import SWEEP_SEED, average, difference, listed
from scripts.studies import Finding, best, firsts, swept

PAPER = "arxiv.org/abs/2502.16982"
CLAIM = ("Liu et al. 2025 (Moonlight): in pre-training Muon takes about half of AdamW's FLOPs (52 "
         "in 100 by their scaling laws) to the same loss, and in SFT of a model that AdamW "
         "pre-trained it has no clear advantage.")
LIMITS = ("What a nano model can tell: what the optimiser alone does to a model that AdamW "
          "trained, since problems, order and steps are the same, and each has its own learning "
          "rate. What it cannot: matrices of 128 rows have few directions that AdamW neglects, and "
          "the products of Newton and Schulz, which cost little beside a large batch, take time "
          "here. The runs are short, so nothing is said of weight decay, nor of pre-training, "
          "where the paper sees Muon's lead.")
TRIED = ("An arm from random weights was left out: in the 100 steps that there was time for, no "
         "optimiser learnt more than which tokens are common. The measure was the last quarter of "
         "a run, where SFT's loss is nearly nothing; it and the rule were changed before the runs "
         "that are shown.")
OPTIMIZERS = ("adamw", "muon")
COMMON = ["--task", "arithmetic", "--hurried", "True", "--model", "checkpoints/thinker",
          "--report", "False", "--workers", "1"]
SETTINGS = {
    "sft": ["--batch-size", "16", "--steps", "32", "--schedule", "linear", "--warmup-steps", "4"],
    "grpo": ["--beta", "0", "--prompts", "8", "--steps", "12"],
}
MEASURED = {"sft": "loss", "grpo": "reward"}
USUAL = 2e-4    # the learning rate about which others are tried
N, LARGE = 100, 1 / 3


def runs(seeds):
    """The first runs that choose rates."""
    return {try_of(algo, optimizer, rate): trial(algo, optimizer, rate)
            for algo in SETTINGS for optimizer in OPTIMIZERS for rate in firsts(USUAL)}


def then(made, done):
    """More runs that choose rates, and at last those that are shown."""
    more, shown = {}, {}
    for algo in SETTINGS:
        for optimizer in OPTIMIZERS:
            earned, missing = choices(made, algo, optimizer, done)
            more |= {try_of(algo, optimizer, rate): trial(algo, optimizer, rate)
                     for rate in missing}
            shown |= {run_of(algo, optimizer, seed): [
                *command(algo, optimizer, best(earned), seed), "--eval-n", N]
                for seed in made.seeds}
    return more or shown


def command(algo, optimizer, rate, seed):
    return ["--algo", algo, *COMMON, *SETTINGS[algo], "--optimizer", optimizer, "--lr", rate,
            "--seed", seed]


def trial(algo, optimizer, rate):
    return [*command(algo, optimizer, rate, SWEEP_SEED), "--eval-n", 1]


def run_of(algo, optimizer, seed):
    return f"{algo}-{optimizer}-{seed}"


def try_of(algo, optimizer, rate):
    return f"try-{algo}-{optimizer}-{rate:g}"


def choices(made, algo, optimizer, done=None):
    """{rate: what is to be high}, rates still to be run.  done: run names; None: all are."""
    sign = -1 if MEASURED[algo] == "loss" else 1
    return swept(lambda rate: sign * measured(made, algo, try_of(algo, optimizer, rate)), USUAL,
                 lambda rate: done is None or try_of(algo, optimizer, rate) in done)


def measured(made, algo, run):
    """The mean loss, or reward, over a run's steps."""
    return fmean(line[MEASURED[algo]] for line in made.metrics(run))


def findings(made):
    rows, data, leads = [], {}, {}
    for algo in SETTINGS:
        means, ends = {}, {}
        for optimizer in OPTIMIZERS:
            names = [run_of(algo, optimizer, seed) for seed in made.seeds]
            means[optimizer] = [measured(made, algo, name) for name in names]
            done = [made.summary(name) for name in names]
            ends[optimizer] = [Score(**one["all"]["sampled, held-out"]["after"]) for one in done]
            data[algo, optimizer] = choices(made, algo, optimizer)[0]
            lead = at_end = ""
            if optimizer == "muon":
                leads[algo] = ahead(algo, means["muon"], means["adamw"])
                lead = f"{leads[algo]:+}"
                at_end = f"{difference(ends['muon'], ends['adamw']):+}"
            rows.append([algo, optimizer, f"{best(data[algo, optimizer]):g}",
                         f"{MEASURED[algo]} {fmean(means[optimizer]):.4f}", lead,
                         f"{average(ends[optimizer])}", at_end,
                         f"{fmean(one['seconds'] for one in done):.1f}"])
    return Finding(
        ["learns by", "optimiser", "lr", "mean over the run", "lead",
         "sampled accuracy, held out, at the end", "lead there", "seconds"],
        rows, *judge(leads), data,
        [f"{len(made.seeds)} seeds. Loss and reward are of fresh training problems; SFT's lead is "
         f"a share of AdamW's loss, GRPO's one in reward. Accuracy is of {N} held-out problems. "
         "SFT: 32 steps of 16 demonstrations; GRPO: 12 steps of 8 times 8 answers."])


def ahead(algo, ours, theirs):
    """Muon's lead, a Score over seeds, paired: of loss the share that is saved."""
    return t_interval([1 - a / b if MEASURED[algo] == "loss" else a - b
                       for a, b in zip(ours, theirs, strict=True)])


def judge(leads):
    """leads: {algo: Muon's lead}, Scores."""
    tuned = leads["sft"]
    verdict = ("reversed" if tuned.low > 0 else
               "reproduced" if tuned.high < LARGE else "not reproduced")
    earned = [algo.upper() for algo, lead in leads.items() if lead.low > 0]
    lost = [algo.upper() for algo, lead in leads.items() if lead.high < 0]
    return verdict, (
        f"Muon's lead is {tuned:+} of AdamW's mean loss in SFT and {leads['grpo']:+} of mean "
        "reward in GRPO (in the paper's pre-training it saves half of the FLOPs, in SFT nothing "
        "clear). It earns its place "
        + (f"in {listed(earned)}" if earned else "in neither")
        + (f" and is behind in {listed(lost)}." if lost else "."))


def draw(figure, found):
    for axes, algo in zip(figure.subplots(1, len(SETTINGS)), SETTINGS):
        for optimizer, colour in zip(OPTIMIZERS, (looks.BLUE, looks.RED)):
            earned = found.data[algo, optimizer]
            rates = sorted(earned)
            axes.plot(rates, [abs(earned[rate]) for rate in rates], "o-", color=colour,
                      label=optimizer)
        axes.set(xscale="log", xlabel=f"learning rate, {algo.upper()}",
                 ylabel=f"mean {MEASURED[algo]} over a run")
    figure.axes[0].legend(frameon=False)
