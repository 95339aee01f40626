"""Does Muon learn faster than AdamW, from nothing and where AdamW has been before?

A new model of the student's shape learns worked sums by SFT ("from nothing"); the thinker in a
hurry, which AdamW trained, learns to count right by SFT and by GRPO.  Muon moves the matrices of
the layers and AdamW the rest, or AdamW moves all (minipost/optim.py).  Both have the same problems
and steps.  In each of the three each optimiser has a learning rate of its own.  A run of another
seed chooses it: by the loss on the fresh training problems of its last quarter, or the reward
there.  From nothing, Muon also makes half of the steps, with a schedule of that length.

reproduced      From nothing, Muon's loss in the last quarter is below AdamW's beyond the 95%
                interval over seeds, and that of half of its steps is not above AdamW's beyond it;
                and in SFT of the thinker Muon's loss is not below AdamW's beyond it.
reversed        From nothing Muon's loss is above AdamW's beyond the interval, and in SFT of the
                thinker it is below.
not reproduced  Anything else.
"""

from math import ceil
from statistics import fmean

from minipost import checkpoint
from minipost.gpt import GPT
from minipost.measure.stats import Score, t_interval
from scripts import looks
from scripts.compare import SWEEP_SEED, average, difference, listed
from scripts.studies import ROOT, Finding, best, firsts, swept

PAPER = "arxiv.org/abs/2502.16982"
CLAIM = ("Liu et al. 2025 (Moonlight): in pre-training Muon takes about half of AdamW's FLOPs (52 "
         "in 100 by their scaling laws) to the same loss, and in SFT of a model that AdamW "
         "pre-trained it has no clear advantage.")
LIMITS = ("What a nano model can tell: what the optimiser alone does, since problems, order and "
          "steps are the same, and each has its own rate. What it cannot: matrices of 64 or 128 "
          "rows have few directions that AdamW neglects, and Newton and Schulz's products, which "
          "are free beside a large batch, take time here. The runs are short, so nothing is said "
          "of weight decay, without which the paper's Muon loses its lead in long ones.")
TRIED = ""
FOLDER, NEW, HALF = "runs/studies/muon", "from nothing", "muon, half the steps"
OPTIMIZERS = ("adamw", "muon")
HURRIED = ["--task", "arithmetic", "--hurried", "True", "--model", "checkpoints/thinker"]
SETTINGS = {  # name: flags, steps, the usual rate
    NEW: (["--algo", "sft", "--task", "arithmetic", "--model", f"{FOLDER}/new", "--batch-size",
           "32"], 300, 2e-3),
    "SFT": (["--algo", "sft", *HURRIED, "--batch-size", "32"], 40, 2e-4),
    "GRPO": (["--algo", "grpo", *HURRIED, "--beta", "0", "--prompts", "16"], 20, 2e-4),
}
COMMON = ["--report", "False", "--workers", "1"]
MEASURED = {"GRPO": "reward"}   # what is compared: the loss elsewhere
N = 200


def prepare(made):
    """A model with the student's shape and words, and random weights."""
    module, vocabulary = checkpoint.load(str(ROOT / "checkpoints/student"))
    checkpoint.create(made.folder / "new", GPT(module.config).initialise(0), vocabulary.tokenizer)


def runs(seeds):
    """The first runs that choose rates."""
    return {name: given for setting in SETTINGS for optimizer in OPTIMIZERS
            for rate in firsts(SETTINGS[setting][2])
            for name, given in trial(setting, optimizer, rate).items()}


def then(made, done):
    """More runs that choose rates, and at last those that are shown."""
    more, shown = {}, {}
    for setting in SETTINGS:
        for optimizer in OPTIMIZERS:
            earned, missing = choices(made, setting, optimizer, done)
            for rate in missing:
                more |= trial(setting, optimizer, rate)
            for arm in arms(setting, optimizer):
                shown |= {run_of(setting, arm, seed): [
                    *command(setting, optimizer, best(earned), seed, arm == HALF), "--eval-n", N]
                    for seed in made.seeds}
    return more or shown


def arms(setting, optimizer=None):
    """What is compared in a setting, or what of it an optimiser trains."""
    found = [*OPTIMIZERS, *[HALF] * (setting == NEW)]
    return [arm for arm in found if optimizer in (None, arm.partition(",")[0])]


def trial(setting, optimizer, rate):
    """A run that chooses a rate, {its name: its arguments}."""
    return {try_of(setting, optimizer, rate): [
        *command(setting, optimizer, rate, SWEEP_SEED), "--eval-n", 1]}


def command(setting, optimizer, rate, seed, half=False):
    flags, steps, _ = SETTINGS[setting]
    return [*flags, *COMMON, "--optimizer", optimizer, "--lr", rate, "--seed", seed, "--steps",
            steps // 2 if half else steps]


def named(*parts):
    return "-".join(map(str, parts)).replace(",", "").replace(" ", "-").lower()


def run_of(setting, arm, seed):
    return named(setting, arm, seed)


def try_of(setting, optimizer, rate):
    return named("try", setting, optimizer, f"{rate:g}")


def choices(made, setting, optimizer, done=None):
    """{rate: what is to be high}, rates still to be run.  done: run names; None: all are."""
    return swept(lambda rate: worth(made, setting, try_of(setting, optimizer, rate)),
                 SETTINGS[setting][2],
                 lambda rate: done is None or try_of(setting, optimizer, rate) in done)


def worth(made, setting, run):
    """The mean reward over the last quarter of a run's steps, or the mean loss with a minus."""
    key = MEASURED.get(setting, "loss")
    values = [line[key] for line in made.metrics(run)]
    return fmean(values[-ceil(len(values) / 4) :]) * (1 if key == "reward" else -1)


def findings(made):
    rows, data, leads = [], {}, {}
    for setting in SETTINGS:
        at_end, sampled = {}, {}
        for arm in arms(setting):
            names = [run_of(setting, arm, seed) for seed in made.seeds]
            at_end[arm] = [worth(made, setting, name) for name in names]
            done = [made.summary(name) for name in names]
            sampled[arm] = [Score(**one["all"]["sampled, held-out"]["after"]) for one in done]
            optimizer = arm.partition(",")[0]
            data[setting, optimizer] = choices(made, setting, optimizer)[0]
            lead = lower = ""
            if arm != "adamw":
                leads[setting, arm] = gap(at_end[arm], at_end["adamw"])
                lower = f"{leads[setting, arm]:+}"
                lead = f"{difference(sampled[arm], sampled['adamw']):+}"
            rows.append([setting, arm, f"{best(data[setting, optimizer]):g}",
                         f"{abs(fmean(at_end[arm])):.4f}", lower, f"{average(sampled[arm])}", lead,
                         f"{fmean(one['seconds'] for one in done):.1f}"])
    return Finding(
        ["learns", "optimiser", "lr", "loss, of GRPO reward, at the end", "better than AdamW by",
         "sampled accuracy, held out", "lead over AdamW", "seconds"], rows, *judge(leads), data,
        [f"{len(made.seeds)} seeds. Loss and reward are of training problems that are fresh in "
         f"every step, over the last quarter of the steps. Accuracy is of {N} held-out problems. "
         + " ".join(f"{setting}: {steps} steps." for setting, (_, steps, _) in SETTINGS.items())])


def gap(ours, theirs):
    """How much better ours are, a Score over seeds, paired."""
    return t_interval([a - b for a, b in zip(ours, theirs, strict=True)])


def judge(leads):
    """leads: {(setting, arm): how much better than AdamW}, Scores."""
    new, half, tuned = leads[NEW, "muon"], leads[NEW, HALF], leads["SFT", "muon"]
    verdict = "not reproduced"
    if new.low > 0 and half.high >= 0 and tuned.low <= 0:
        verdict = "reproduced"
    elif new.high < 0 and tuned.low > 0:
        verdict = "reversed"
    earned = [setting for setting in SETTINGS if leads[setting, "muon"].low > 0]
    lost = [setting for setting in SETTINGS if leads[setting, "muon"].high < 0]
    return verdict, (
        f"Muon is better than AdamW by {new:+} nats a token from nothing, with half of its steps "
        f"by {half:+}; in SFT of the thinker by {tuned:+} nats, in GRPO by "
        f"{leads['GRPO', 'muon']:+} of reward. It earns its place in "
        + (listed(earned) if earned else "none of the three")
        + (f" and does harm in {listed(lost)}." if lost else "."))


def draw(figure, found):
    for axes, setting in zip(figure.subplots(1, len(SETTINGS)), SETTINGS):
        for optimizer, colour in zip(OPTIMIZERS, (looks.BLUE, looks.RED)):
            earned = found.data[setting, optimizer]
            rates = sorted(earned)
            axes.plot(rates, [abs(earned[rate]) for rate in rates], "o-", color=colour,
                      label=optimizer)
        reward = setting in MEASURED
        axes.set(xscale="log", xlabel=f"learning rate, {setting}",
                 ylabel="reward at the end" if reward else "loss at the end",
                 **({} if reward else {"yscale": "log"}))
    figure.axes[0].legend(frameon=False)
