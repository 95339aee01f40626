"""Does a teacher's word on every token teach for fewer FLOPs than a reward for each answer?

The thinker in a hurry learns six-term sums by GRPO, or by on-policy distillation: the reverse KL to
a teacher at each token of its own answers.  The teacher is the thinker after GRPO of another seed.
Each arm's learning rate is the one whose run, of another seed, ends with the highest accuracy on
training problems.

FLOPs are those of matrix products (scripts/floor.py), with N weights that multiply a token of the
student and N_T of the teacher: 2N for each token that is sampled, 2N_T for each of which the
teacher says its distribution, 6N for each that is learnt from.  GRPO learns nothing from groups
whose answers all have the same reward, and they cost it no training.  A prompt is read once for the
answers to it.  What counts is how many FLOPs an arm needs until sampled held-out accuracy is 0.9.

reproduced      GRPO needs at least five times the FLOPs of on-policy distillation, the teacher's
                own training left out: the whole 95% interval of the ratio over seeds is above 5.
reversed        Distillation needs more than GRPO: the whole interval is below 1.
not reproduced  Anything else; also where one of the two does not reach 0.9 in every seed.
"""

from functools import cache
from math import ceil, exp, log
from statistics import fmean

import numpy as np

from minipost import checkpoint
from minipost.measure.results import evaluate
from minipost.measure.stats import Score, t_interval
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from scripts import looks
from scripts.compare import SWEEP_SEED, average
from scripts.floor import Pass, operations
from scripts.studies import ROOT, Finding, best, firsts, swept

PAPER = "arxiv.org/abs/2505.09388"
CLAIM = ("Yang et al. 2025 (Qwen3, table 21): from the same start an 8B model has 74.4 on AIME24 "
         "after on-policy distillation in 1,800 GPU hours, and 67.6 after RL in 17,920. Lu 2025 "
         "(<https://thinkingmachines.ai/blog/on-policy-distillation>): a student of "
         "an RL-trained teacher of its own size is level with it in a seventh to a tenth of the "
         "steps.")
LIMITS = ("What a nano model can tell: what one number for an answer and a distribution for each "
          "token teach for the same FLOPs, from the same weights, with the teacher's price known. "
          "What it cannot: here the teacher is a student that RL has taught, so it is of the same "
          "size, and no distribution of it is far from what the student can do. A large model's "
          "answers have thousands of tokens, of which one reward says as little as of thirty, and "
          "its teacher is there already, so nobody counts its price.")
TRIED = ("The answers of a step, the steps of a run and the teacher's schedule were chosen on "
         "tries of other seeds, which were shorter. An arm that learns the teacher's answers was "
         "left out, for time. The rule is as it was.")
START, FOLDER = "checkpoints/thinker", "runs/studies/on-policy-distillation"
GRPO, OWN = "grpo", "distill"
GROUP = 8
COMMON = ["--task", "arithmetic", "--hurried", "True", "--model", START, "--report", "False",
          "--workers", "1"]
RL = ["--algo", "grpo", "--beta", "0", "--group-size", GROUP]
PROMPTS = {"teacher": 16, GRPO: 8, OWN: 16}     # of a step
ARMS = {GRPO: [*RL, "--prompts", PROMPTS[GRPO], "--steps", "16"],
        OWN: ["--algo", "distill", "--teacher", f"{FOLDER}/teacher/model", "--on-policy", "1",
              "--mix", "1", "--batch-size", PROMPTS[OWN], "--schedule", "constant",
              "--warmup-steps", "0", "--steps", "8"]}
USUAL = 2e-4    # the learning rate about which others are tried
TEACHER = [*RL, *COMMON, "--prompts", PROMPTS["teacher"], "--steps", "16", "--lr", USUAL,
           "--schedule", "linear", "--seed", SWEEP_SEED + 1]
TASK = Arithmetic(hurried=True)
LABELS = {GRPO: "GRPO", OWN: "on-policy distillation"}
UNIT = 1e9
HELD_OUT = "eval/held-out/sampled"
N, ENOUGH, TIMES = 100, 0.9, 5


def runs(seeds):
    """The teacher, and the first runs that choose rates."""
    return {"teacher": [*TEACHER, "--eval-n", N],
            **{try_of(arm, rate): trial(arm, rate) for arm in ARMS for rate in firsts(USUAL)}}


def then(made, done):
    """More runs that choose rates, and at last those that are shown."""
    chosen, found = {}, {}
    for arm in ARMS:
        earned, missing = choices(made, arm, done)
        found |= {try_of(arm, rate): trial(arm, rate) for rate in missing}
        chosen[arm] = best(earned)
    return found or {
        run_of(arm, seed): [*command(arm, chosen[arm], seed), "--eval-n", N, "--eval-every", 1]
        for seed in made.seeds for arm in ARMS}


def command(arm, rate, seed):
    return [*ARMS[arm], *COMMON, "--lr", rate, "--seed", seed]


def trial(arm, rate):
    return [*command(arm, rate, SWEEP_SEED), "--eval-n", 1]


def run_of(arm, seed):
    return f"{arm}-{seed}"


def try_of(arm, rate):
    return f"try-{arm}-{rate:g}"


def choices(made, arm, done=None):
    """{rate: accuracy on training problems}, rates still to be run.  done: run names; None: all."""
    return swept(lambda rate: made.once(f"right-{try_of(arm, rate)}", accuracy,
                                        made.model(try_of(arm, rate)), made.options.get("n", N)),
                 USUAL, lambda rate: done is None or try_of(arm, rate) in done)


def opened(directory):
    module, vocabulary = checkpoint.load(str(directory))
    return Run(Learner(module), vocabulary, TASK, TASK.reward, seed=SWEEP_SEED, max_new_tokens=64)


def accuracy(directory, n):
    """Of sampled answers to n training problems, which no run has drawn for itself."""
    run = opened(directory)
    with run.at(10**6):
        problems = run.problems(n)
    return evaluate(run, problems, 1.0).score.value


# ---- what a run costs

@cache
def weights(directory):
    """The weights that multiply a token (N)."""
    return operations(checkpoint.load(str(directory))[0].config, Pass(1, 1)) // 2


@cache
def asked():
    """The mean number of a prompt's tokens."""
    run = opened(ROOT / START)
    return fmean(len(run.prompt_ids(p.prompt)) for p in TASK.heldout(N))


def sizes(made):
    """N of the student and of the teacher."""
    return weights(ROOT / START), weights(made.model("teacher"))


def flops(lines, kind, prompt, student, teacher):
    """FLOPs from the start to the end of each step.

    lines: metrics.  prompt: tokens of a prompt.  student, teacher: N and N_T.
    """
    total, before, found = 0.0, 0, []
    for line in lines:
        read = line["num_tokens"] - before + prompt * PROMPTS[kind]
        before = line["num_tokens"]
        if kind == OWN:
            total += read * (2 * student + 2 * teacher + 6 * student)
        else:
            total += read * (2 * student + 6 * student * (1 - line["frac_reward_zero_std"]))
        found.append(total)
    return found


def curve(made, arm, seed):
    """[(FLOPs, sampled held-out accuracy)] of a run, from before its first step on."""
    lines = made.metrics(run_of(arm, seed))
    before = made.summary(run_of(arm, seed))["all"]["sampled, held-out"]["before"]["value"]
    costs = flops(lines, arm, asked(), *sizes(made))
    return [(0.0, before), *((cost, line[HELD_OUT]) for cost, line in zip(costs, lines)
                             if HELD_OUT in line)]


def reached(points, level=ENOUGH):
    """The FLOPs at which a curve first has this accuracy, on lines between its points, or None."""
    for (x, low), (y, high) in zip(points, points[1:]):
        if low < level <= high:
            return x + (y - x) * (level - low) / (high - low)
    return None


def steps(curves):
    """The step by whose end each curve first has that accuracy, as words."""
    found = [next((k for k, (_, y) in enumerate(points) if y >= ENOUGH), None)
             for points in curves]
    return ", ".join("none" if k is None else str(k) for k in found)


def ratio(above, below):
    """The geometric mean over seeds of above / below, with its interval; None if one is unknown."""
    if None in (*above, *below):
        return None
    found = t_interval([log(a / b) for a, b in zip(above, below, strict=True)])
    return Score(exp(found.value), exp(found.low), exp(found.high), found.n)


# ---- what the runs say

def findings(made):
    curves = {arm: [curve(made, arm, seed) for seed in made.seeds] for arm in ARMS}
    needs = {arm: [reached(points) for points in curves[arm]] for arm in ARMS}
    price = flops(made.metrics("teacher"), "teacher", asked(), *sizes(made))[-1]
    times = ratio(needs[GRPO], needs[OWN])
    dear = ratio(needs[GRPO], [one and one + price for one in needs[OWN]])
    rows = []
    for arm in ARMS:
        said = [f"{one / UNIT:.1f}" if one else "not reached" for one in needs[arm]]
        spent = fmean(points[-1][0] for points in curves[arm]) / UNIT
        after = average(ends(made, [run_of(arm, seed) for seed in made.seeds]))
        rows.append([LABELS[arm], f"{best(choices(made, arm)[0]):g}", ", ".join(said),
                     steps(curves[arm]), f"{spent:.0f}", f"{after}"])
    teacher, = ends(made, ["teacher"])
    lead = equal(curves)
    return Finding(
        ["arm", "lr", f"GFLOPs to {ENOUGH}, of each seed", "steps", "GFLOPs in all",
         "sampled accuracy at the end"], rows, judge(times),
        said_of(times, dear, needs, price), curves,
        [f"{len(made.seeds)} seeds; {N} held-out problems each, sampled after every step. A step "
         f"has {PROMPTS[GRPO] * GROUP} answers of GRPO, {PROMPTS[OWN]} of distillation; where "
         "few are enough, one of them is much of the figure. At equal FLOPs, all of those of "
         f"distillation, distillation is ahead of GRPO by {lead:+}. The teacher took "
         f"{price / UNIT:.0f} GFLOPs and is right on {teacher} of the same problems."])


def equal(curves):
    """Distillation's lead in accuracy over GRPO at the FLOPs of all its steps, paired by seed."""
    return t_interval([ours[-1][1] - float(np.interp(ours[-1][0], *zip(*theirs)))
                       for ours, theirs in zip(curves[OWN], curves[GRPO], strict=True)])


def ends(made, names):
    return [Score(**made.summary(name)["all"]["sampled, held-out"]["after"]) for name in names]


def judge(times):
    """times: GRPO's FLOPs over distillation's, a Score or None."""
    if times and times.low > TIMES:
        return "reproduced"
    return "reversed" if times and times.high < 1 else "not reproduced"


def said_of(times, dear, needs, price):
    if times is None:
        reach = {arm: sum(one is not None for one in needs[arm]) for arm in (GRPO, OWN)}
        return (f"Of {len(needs[GRPO])} seeds GRPO reaches {ENOUGH} in {reach[GRPO]}, on-policy "
                f"distillation in {reach[OWN]}.")
    saved = fmean(needs[GRPO]) - fmean(needs[OWN])
    return (f"To reach {ENOUGH} GRPO takes {times} times the FLOPs of on-policy distillation"
            + (", no difference" if times.low <= 1 <= times.high else "")
            + " (in the paper it takes 10 times the hours and ends lower), and "
            f"{dear} times with the teacher's own training"
            + (f", which pays for itself from {ceil(price / saved)} students on."
               if times.low > 1 else "."))


def draw(figure, found):
    axes = figure.add_subplot()
    for arm in ARMS:
        for k, points in enumerate(found.data[arm]):
            x, y = zip(*points)
            axes.plot([one / UNIT for one in x], y, color=looks.colour(arm), marker="o",
                      markersize=3, label="_" if k else LABELS[arm])
    axes.axhline(ENOUGH, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="symlog", xlim=(0, None), xlabel="GFLOPs, the teacher's training left out",
             ylabel="sampled accuracy, held out")
    axes.legend(frameon=False, loc="lower right")
