"""Compare the RL methods at an equal budget of sampled tokens: `make compare`.

    python -m scripts.compare --methods grpo,ppo --seeds 5
    python -m scripts.compare --jobs 8              eight runs at a time, for a machine of 16 cores

Every method trains from the same checkpoint on the same task until it has sampled --budget response
tokens, once per seed, with the default settings of its file but for the size of its step.  That is
chosen first, so that no method loses by it alone: one run, of another seed, with each of a few
multiples of the file's default, and with more of them while the best one is the largest or the
smallest.  The one is taken whose answers to training problems earned most over the last quarter of
its steps.  Held-out problems have no part in the choice.

Held-out accuracy is measured during training.  All samples that serve learning count, including the
greedy answers of self-critical, the groups that dapo discards, the branches of vineppo and the
answers of all policies of es.  Samples that serve measurement do not count.  The result is a part
of BENCHMARKS.md and a plot.

Ctrl-C stops after the step in progress, and the same command continues from there.  A run is not
made again if runs/compare holds it with the same settings and from the same weights.  The command
does not notice a change to the code.  Remove runs/compare after such a change.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from threading import Lock

from minipost import methods, train
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError
from minipost.measure.stats import Score, paired, t_interval, weighted
from minipost.tasks import TASKS
from scripts import looks
from scripts.alternate import last_line
from scripts.pages import machine, table, write

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("reinforce", "self-critical", "rloo", "reinforce-pp", "a2c", "ppo", "trpo", "grpo",
           "dr-grpo", "dapo", "process-grpo", "gspo", "cispo", "sapo", "entropy", "minimum-risk",
           "maxrl", "vineppo", "prime", "es")
TASK, KNOBS, LONGEST = "arithmetic", "--hurried True --terms 10", 128
STEPS = 100_000     # more than any budget allows, so the budget ends a run
FACTORS = (0.5, 1, 2, 4)  # of the default step, tried for every method
FARTHEST = 32       # the largest factor that is tried, and one over the smallest
SWEEP_SEED = 1000   # of the runs that choose
PARSING = Lock()    # the parser of options reads source, which Python 3.11 cannot in two threads
STEP = {"trpo": "delta", "es": "alpha"}  # the setting that is a method's step; lr elsewhere


@dataclass(frozen=True)
class Outcome:
    """The results of one finished run."""

    before: Score       # held-out, sampled
    after: Score
    greedy: Score       # held-out, greedy, after
    tokens: int
    seconds: float      # of training, without evaluation
    curve: tuple        # (step, tokens, held-out sampled accuracy), first to last
    rewards: tuple = ()  # sampled, after, of each held-out problem


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error."""

    seed: int
    message: str


# ---- the runs

def flags(args, algo, seed, size=None):
    """The options of one run for minipost.train.  size: of its step, the default if None.

    A run that chooses a size measures nothing on held-out problems on its way.
    """
    sweeps = seed == SWEEP_SEED
    options = {
        "algo": algo, "task": args.task, **knobs(args), "seed": seed, "model": args.model,
        "budget": args.budget, "steps": STEPS, "eval-every": 0 if sweeps else args.eval_every,
        "eval-n": 1 if sweeps else args.eval_n, "save-every": args.eval_every,
        "max-new-tokens": args.max_new_tokens, "workers": args.workers,
        **({} if size is None else {step_of(algo): size}),
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def knobs(args):
    """The task's knobs, {name: value}."""
    words = shlex.split(args.knobs)
    return dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))


def step_of(algo):
    return STEP.get(algo, "lr")


def sizes(algo):
    """The sizes of a step that are tried."""
    return [float(f"{default_step(algo) * factor:.6g}") for factor in FACTORS]


def default_step(algo):
    return getattr(methods.load(algo).Config(), step_of(algo))


def place(args, algo, seed, size=None):
    """The directory of a run.  size: of its step, if it is one of those that choose it."""
    tail = "" if size is None else f"-{size:g}"
    return args.runs / f"{args.task}-{algo}-{seed}{tail}"


def fingerprint(model):
    """A digest of a model directory's files, without its card."""
    digest = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def to_do(directory, wanted, origin):
    """What a run still needs: "nothing", to "resume" or to "start".

    wanted: its settings, from train.settings_of.  origin: the fingerprint of its start checkpoint.
    """
    try:
        found, _ = train.saved_in(directory)
        same = replace(found, options=replace(found.options, out="")) == wanted
        same = same and (directory / "origin").read_text() == origin
    except (MinipostError, OSError):
        same = False
    if not same:
        return "start"
    if (directory / "summary.json").is_file() and (directory / "rewards.json").is_file():
        return "nothing"
    return "resume" if (directory / "state" / "state.safetensors").is_file() else "start"


class Runner:
    """Makes runs.  After a signal to stop, those in progress save and end.

    A run has its own session, so a Ctrl-C reaches it only once, from here.  A second signal makes a
    run stop without saving, which must only happen if the user presses twice.
    """

    def __init__(self):
        self.children, self.stopped = set(), False

    def handle(self, number, frame):
        again, self.stopped = self.stopped, True
        for child in list(self.children):
            child.send_signal(signal.SIGINT)
        print("\nstopping at once" if again else
              "\nfinishing the step in progress, then saving (once more: stop at once)",
              file=sys.stderr, flush=True)

    def run(self, directory, arguments):
        """Start or continue a run.  -> None, or its last line of output if it failed"""
        with open(directory / "log.txt", "a+", encoding="utf-8") as file:
            start = file.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [sys.executable, "-m", "minipost.train", *arguments], cwd=ROOT, stdout=file,
                stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
            self.children.add(child)
            if self.stopped:  # the signal came while there was no child to tell
                child.send_signal(signal.SIGINT)
            code = child.wait()
            self.children.remove(child)
            file.seek(start)
            said = last_line(file.read())
        if code < 0:
            return f"ended by signal {-code} after saying: {said}"
        return said if code else None


def own_cores():
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_jobs(parser, jobs):
    """End with one sentence where each of so many runs could not have a core."""
    cores = len(own_cores())
    if not 1 <= jobs <= cores:
        parser.error(f"--jobs {jobs}: expected 1 to {cores}, the cores of this machine")


def side_by_side(jobs, tasks):
    """What each task returns, in their order.  jobs: so many run at once, each on its own cores."""
    if jobs == 1:
        for task in tasks:
            yield task()
        return
    cores, shares = own_cores(), SimpleQueue()
    for k in range(jobs):
        shares.put(cores[k * len(cores) // jobs : (k + 1) * len(cores) // jobs])

    def on_a_share(task):
        share = shares.get()
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, share)  # of this thread and of processes that it starts
            return task()
        finally:
            shares.put(share)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(on_a_share, tasks)


def all_of(args, runner, runs):
    """Make runs.  runs: (method, seed, size of its step).  -> one by one what `complete` says"""
    origin = fingerprint(ROOT / args.model)

    def one(algo, seed, size):
        if runner.stopped:
            return "nothing", None
        directory = place(args, algo, seed, size if seed == SWEEP_SEED else None)
        return complete(runner, directory, flags(args, algo, seed, size), origin)

    return side_by_side(args.jobs, [partial(one, *run) for run in runs])


def make(args, runner):
    """All runs, as {method: [Outcome or Failure, one per seed]}; None if stopped."""
    runs = [(algo, seed, args.chosen[algo]) for seed in range(args.seeds) for algo in args.methods]
    found = {algo: [] for algo in args.methods}
    for k, ((algo, seed, _), (needs, failed)) in enumerate(
            zip(runs, all_of(args, runner, runs)), 1):
        print(f"{k}/{len(runs)}  {algo}, seed {seed}: ", end="")
        if runner.stopped:
            print("stopped", flush=True)
            return None
        directory = place(args, algo, seed)
        outcome = Failure(seed, failed) if failed else read(directory)
        found[algo].append(outcome)
        print(f"failed: {failed} (see {shown(directory)}/log.txt)" if failed else
              f"{outcome.before.value:.3f} -> {outcome.after.value:.3f}, "
              f"{outcome.tokens:,} tokens, {outcome.seconds:.0f} s"
              + (", made earlier" if needs == "nothing" else ""), flush=True)
    return found


def choose(args, runner):
    """{method: the size of its step}; None if stopped.  Nothing is chosen without --sweep."""
    if not args.sweep:
        return dict.fromkeys(args.methods)
    earned, best = {algo: {} for algo in args.methods}, {}
    left = [(algo, SWEEP_SEED, size) for algo in args.methods for size in sizes(algo)]
    while left:
        for (algo, seed, size), (_, failed) in zip(left, all_of(args, runner, left)):
            if runner.stopped:
                return None
            reward = -math.inf if failed else at_the_end(place(args, algo, seed, size))
            earned[algo][size] = reward
            print(f"{algo}, {step_of(algo)} {size:g}: reward {reward:.3f}", flush=True)
        left = [(algo, SWEEP_SEED, size) for algo in args.methods
                for size in farther(earned[algo], default_step(algo))]
    for algo, rewards in earned.items():
        first = max(rewards, key=rewards.__getitem__)
        best[algo] = first if rewards[first] > -math.inf else None
        said = ", ".join(f"{size:g} {value:.3f}" for size, value in sorted(rewards.items()))
        print(f"{algo}: reward by {step_of(algo)}: {said}", flush=True)
    return best


def farther(earned, usual):
    """The next step size to try, in a list: beyond the largest or the smallest if that is the best.

    earned: {size: reward}.  usual: the default size, from which none is farther than FARTHEST.
    """
    best = max(earned, key=earned.__getitem__)
    wanted = {max(earned): 2 * best, min(earned): best / 2}.get(best)
    near = wanted and 1 <= FARTHEST * wanted / usual <= FARTHEST**2
    return [float(f"{wanted:.6g}")] if near else []


def at_the_end(directory):
    """The mean reward of answers to training problems over the last quarter of a run's steps."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    if not all("reward" in step for step in steps):
        raise MinipostError(f"{shown(directory)}: a step logs no metric 'reward', by which --sweep "
                            "1 chooses; let the method yield it, or take --sweep 0")
    rewards = [step["reward"] for step in steps]
    return mean(rewards[-max(1, len(rewards) // 4) :])


def shown(directory):
    """A run directory's name for commands and for the reader."""
    return directory.relative_to(ROOT) if directory.is_relative_to(ROOT) else directory


def complete(runner, directory, given, origin):
    """Start or continue a run if needed.  -> what it needed, its last output if it failed"""
    with PARSING:
        settings, failed = train.settings_of(given), None
    needs, reward = to_do(directory, settings, origin), settings.options.reward
    if needs == "start":
        clear(directory, origin)
        failed = runner.run(directory, [*given, "--out", str(shown(directory)),
                                         "--overwrite"])
    elif needs == "resume":
        failed = runner.run(directory, ["--resume", str(shown(directory)),
                                         *(["--reward", *reward] if reward else [])])
    return needs, failed


def clear(directory, origin):
    """Make room for a new run.  The rest of an older run no longer looks finished."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "state", ignore_errors=True)
    for stale in ("summary.json", "rewards.json", "config.json", "log.txt"):
        (directory / stale).unlink(missing_ok=True)
    (directory / "origin").write_text(origin)


def read(directory):
    """The Outcome of a finished run."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    split = summary["metric"].partition(", ")[2]
    sampled, greedy = (summary["all"][f"{name}, {split}"] for name in ("sampled", "greedy"))
    before, after = Score(**sampled["before"]), Score(**sampled["after"])
    name, last = f"eval/{split}/sampled", metrics[-1]["step"]
    curve = [(0, 0, before.value),
             *((m["step"], m["num_tokens"], m[name]) for m in metrics
               if name in m and m["step"] < last),
             (last, summary["tokens"], after.value)]
    return Outcome(before, after, Score(**greedy["after"]), summary["tokens"], summary["seconds"],
                   tuple(curve), rewards(directory, f"sampled, {split}"))


def rewards(directory, name, when="after"):
    """What each held-out problem earned after a finished run, or before it, by this metric."""
    found = json.loads((directory / "rewards.json").read_text(encoding="utf-8"))
    return tuple(found[name][when])


# ---- what the runs say

def over_seeds(values, scores, weights, least, most):
    """A mean over seeds with its 95% interval: at either end, the wider one of two intervals.

    The first is Student's t over the seeds' values.  It covers all that differs between seeds, both
    training and sampled answers.  But three accuracies in steps of 1/400 can agree by chance, and
    then it has no width.  So the second combines the evaluations' own intervals.

    All seeds are measured on the same problems, so the interval speaks of other seeds on these
    problems, not of other problems: what is hard for every seed does not average out.
    """
    found = weighted(scores, weights)
    both = [found, t_interval(values)] if len(values) > 1 else [found]
    return Score(found.value, max(least, min(s.low for s in both)),
                 min(most, max(s.high for s in both)), found.n)


def average(scores):
    """The mean over seeds of a method's accuracy, each seed measured once."""
    n = len(scores)
    return over_seeds([s.value for s in scores], scores, [1 / n] * n, 0.0, 1.0)


def paired_difference(ours, theirs, most=1.0):
    """The mean over seeds of ours - theirs, paired by seed and problem.

    ours, theirs: of each seed the rewards of the same problems; without one on either side, a
    problem is left out.  most: the largest difference that there can be.
    """
    each = [paired(*zip(*[(b, a) for a, b in zip(*sides, strict=True) if None not in (a, b)]))
            for sides in zip(ours, theirs, strict=True)]
    return over_seeds([one.value for one in each], each, [1 / len(each)] * len(each), -most, most)


def difference(ours, theirs):
    """The same of Scores, which are paired by seed alone.

    The interval is too wide, since answers to the same problems count as independent.
    """
    n = len(ours)
    gaps = [a.value - b.value for a, b in zip(ours, theirs, strict=True)]
    return over_seeds(gaps, [*ours, *theirs], [1 / n] * n + [-1 / n] * n, -1.0, 1.0)


def ranked(found):
    """The methods without a failed run, best final accuracy first."""
    whole = [algo for algo, runs in found.items() if not failures(runs)]
    return sorted(whole, key=lambda algo: -mean(run.after.value for run in found[algo]))


def failures(runs):
    return [run for run in runs if isinstance(run, Failure)]


def gaps(found):
    """{method: its difference to the best one}, for all but the best."""
    best, *others = ranked(found) or [None]
    return {algo: gap(found[algo], found[best]) for algo in others}


def gap(ours, theirs):
    """The difference of two methods' Outcomes."""
    return paired_difference(*([run.rewards for run in runs] for runs in (ours, theirs)))


COLUMNS = ["method", "step", "sampled before", "sampled after [95%]",
           "difference to the best [95%]",
           "greedy after [95%]", "response tokens", "training s", "steps"]


def step_said(algo, chosen):
    """The size of a method's step, as a setting."""
    size = chosen.get(algo)
    if size is None:
        size = getattr(methods.load(algo).Config(), step_of(algo))
    return f"{step_of(algo)} {size:g}"


def rows(found, chosen):
    """The table, best method first.  A method with a failed run shows no figures.

    chosen: {method: the size of its step, None for the default}.
    """
    order, behind, cells = ranked(found), gaps(found), []
    for algo in order:
        runs = found[algo]
        steps = sorted(run.curve[-1][0] for run in runs)
        cells.append([
            algo, step_said(algo, chosen), f"{mean(run.before.value for run in runs):.3f}",
            str(average([run.after for run in runs])),
            f"{behind[algo]:+}" if algo in behind else "is the best",
            str(average([run.greedy for run in runs])), f"{mean(run.tokens for run in runs):,.0f}",
            f"{median(run.seconds for run in runs):.0f}",
            f"{steps[0]}" if steps[0] == steps[-1] else f"{steps[0]}-{steps[-1]}",
        ])
    for algo in found:
        said = [f"seed {run.seed}: {run.message}" for run in failures(found[algo])]
        if said:
            cells.append([algo, f"failed: {'; '.join(said)}".replace("|", "\\|"), *[""] * 7])
    return cells


def verdict(found):
    """One sentence: which methods do not differ from the best beyond noise, and which do."""
    order, behind = ranked(found), gaps(found)
    if len(order) < 2:
        return "There are no two methods to compare."
    near = [algo for algo in order[1:] if behind[algo].low <= 0 <= behind[algo].high]
    far = [algo for algo in order[1:] if algo not in near]
    said = [f"{order[0]} comes out highest"]
    if near:
        said.append(f"{listed(near)} {'does' if len(near) == 1 else 'do'} not differ from it "
                    "beyond noise (the interval of the paired difference contains 0)")
    if far:
        said.append(f"{listed(far)} {'is' if len(far) == 1 else 'are'} behind it by more than "
                    "noise")
    return "; ".join(said) + "."


def pairs(found):
    """One sentence: which pairs of methods differ beyond noise, of how many."""
    order = ranked(found)
    apart = []
    for k, better in enumerate(order):
        for worse in order[k + 1 :]:
            if gap(found[better], found[worse]).low > 0:
                apart.append(f"{better} over {worse}")
    count = len(order) * (len(order) - 1) // 2
    return (f"Of {count} pairs of methods {len(apart)} differ beyond noise"
            + (f": {', '.join(apart)}." if apart else "."))


def bound(directories):
    """One sentence: how often TRPO's accepted steps broke the KL bound; empty if there are none."""
    kept = broken = 0
    for directory in directories:
        delta = json.loads((directory / "config.json").read_text())["method"]["delta"]
        for line in (directory / "metrics.jsonl").read_text().splitlines():
            step = json.loads(line)
            kept += step["accepted"] == 1
            broken += step["accepted"] == 1 and (step["kl"] is None or step["kl"] > delta)
    return f"TRPO broke its KL bound in {broken} of {kept} accepted steps." if kept else ""


def listed(names):
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def report(args, found, given):
    """The part of BENCHMARKS.md, as lines."""
    order = ranked(found)
    call = f"python -m scripts.compare {shlex.join(given)}".strip() if given else "make compare"
    every = " ".join(flags(args, "METHOD", "SEED", "SIZE" if args.sweep else None))
    answers = found[order[0]][0].after.n if order else args.eval_n
    other = [f"--{flag} SIZE with {algo}" for algo, flag in STEP.items()
             if args.sweep and algo in found and flag != "lr"]
    picture = Path(os.path.relpath(args.plot, args.out.resolve().parent)).as_posix()
    trust = [place(args, "trpo", seed) for seed in range(args.seeds)] if "trpo" in order else []
    away = [f"{algo} ({methods.load(algo).TASK})" for algo in found
            if args.task != methods.load(algo).TASK]
    notes = [
        f"A run ends with the step that reaches {args.budget:,} response tokens, so it samples up "
        "to one step more.  Everything sampled to learn from counts: self-critical's greedy "
        "answers, the groups that dapo drops and the branches of vineppo are in it, evaluations "
        "are not.  Seconds are the "
        "median over seeds, of training and saving alone"
        + (f", {args.jobs} runs at a time." if args.jobs > 1 else "."),
        "",
        f"Sampled: one answer at temperature 1 to each of {answers} held-out problems per seed; "
        "with the same seed all methods start from the same weights and answer the same problems "
        "with the same random numbers.  " + (
            "Intervals are for the mean over seeds, t over the seeds' values, but at neither end "
            "narrower than the evaluations' own intervals put together; the difference to the best "
            "is paired by seed, t over the seeds' differences, and never narrower than the paired "
            "intervals of the problems put together.  "
            "They speak of other seeds on these problems, not of other problems.  "
            if args.seeds > 1 else
            "With one seed the intervals know the noise of the evaluation only, not that of "
            "training.  ") +
        "The best method is picked from the same runs, and no interval is widened for the number "
        "of comparisons.",
        "",
        "Other settings are the defaults of each method's file"
        + (f"; those of {listed(away)} are for another task." if away else ".")
        + ("  process-grpo is told which steps are right, the others only which answers."
           if "process-grpo" in args.methods else ""),
    ]
    return [
        "## RL methods at an equal budget of tokens", "", machine(), "",
        f"`{call}`; each run is `python -m minipost.train {every}`"
        + (f" ({listed(other)})" if other else "") + f", for {args.seeds} "
        f"seed{'s' if args.seeds > 1 else ''}.", "",
        *table(COLUMNS, rows(found, args.chosen)), "",
        verdict(found) + (f"  {pairs(found)}" if len(order) > 1 else "")
        + (f"  {bound(trust)}" if trust else ""), "",
        *([f"![Held-out accuracy against response tokens, by method]({picture})", ""]
          if order else []),
        *notes,
    ]


def title(args):
    seeds = "one seed" if args.seeds == 1 else (
        f"lines: mean of {args.seeds} seeds, bands: lowest to highest")
    return (f"RL methods on {args.task}, {args.budget:,} response tokens each\n"
            f"{seeds}; {args.eval_n} held-out problems")


# ---- the plot

TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)


def pooled(runs):
    """The curves of several seeds as one: [(tokens, mean, lowest, highest), ...].

    It combines the seeds at each step that all of them have, and then at their ends.
    """
    inner = [{step: point for step, *point in run.curve[:-1]} for run in runs]
    steps = sorted(set.intersection(*map(set, inner)))
    points = [[curve[step] for curve in inner] for step in steps]
    points.append([run.curve[-1][1:] for run in runs])
    return [(mean(t for t, _ in at), mean(v for _, v in at), min(v for _, v in at),
             max(v for _, v in at)) for at in points]


def draw(path, found, heading):
    """Write the plot as SVG, or as PNG if its name says so.

    On the left the curves, each with its name at its end.  The scale is the arcsine of the square
    root: on it, the noise of a share is about the same at every height, and on a linear one curves
    near 1 would overlap.  On the right how far each ends from the best, with the interval of the
    difference.  The SVG has the same bytes for the same runs and the same matplotlib.
    """
    import matplotlib
    import numpy
    from matplotlib.figure import Figure

    scale = (lambda share: numpy.arcsin(numpy.clip(share, 0, 1) ** 0.5),
             lambda height: numpy.sin(numpy.clip(height, 0, numpy.pi / 2)) ** 2)
    with matplotlib.rc_context({"svg.hashsalt": "minipost", "font.size": 9}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        axes, right = figure.subplots(1, 2, width_ratios=(2, 1))
        bottom, ends = 1.0, []
        for algo in reversed(ranked(found)):  # the best lies on top
            tokens, middle, low, high = zip(*pooled(found[algo]))
            bottom = min(bottom, *low)
            axes.fill_between(tokens, low, high, color=looks.colour(algo), alpha=0.09, linewidth=0)
            axes.plot(tokens, middle, **looks.line(algo), markersize=4, linewidth=1.6)
            ends.append((tokens[-1], middle[-1], f"{algo}  {middle[-1]:.3f}", looks.colour(algo)))
        axes.set_title(heading, loc="left", fontsize=10)
        axes.set(xlabel="response tokens sampled",
                 ylabel="held-out accuracy, sampled at temperature 1 (arcsine scale)")
        axes.set_yscale("function", functions=scale)
        bottom = max((tick for tick in TICKS if tick <= bottom - 0.01), default=0.0)
        axes.set_yticks([tick for tick in TICKS if tick >= bottom])
        axes.set_ylim(bottom, 1.0)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        looks.label_ends(axes, ends)
        behind(right, found)
        for part in (axes, right):
            part.grid(color="#dddddd", linewidth=0.6)
            part.set_axisbelow(True)
            part.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        svg = path.suffix == ".svg"
        figure.savefig(path, dpi=110, metadata={"Date": None} if svg else None)


def behind(axes, found):
    """How far each method's runs end from those of the best, at the same seeds and problems."""
    best, others = ranked(found)[:1], ranked(found)[1:]
    axes.set_title(f"final accuracy less that of\n{'/'.join(best)}, 95% intervals", loc="left",
                   fontsize=10)
    for at, algo in enumerate(others):
        off = gaps(found)[algo]
        axes.errorbar(off.value, at, xerr=[[off.value - off.low], [off.high - off.value]],
                      color=looks.colour(algo), marker=looks.line(algo)["marker"], capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(others)), others)
    axes.invert_yaxis()


# ---- command line

def parse(argv):
    """The options.  --quick changes the defaults to those of a short trial in its own folder."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    tasks = sorted(name for name, task in TASKS.items() if not task.hidden)
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, a,b,c")
    parser.add_argument("--task", choices=tasks, help=f"with its own knobs; {TASK} if not given")
    parser.add_argument("--knobs", help="of the task, in one string")
    parser.add_argument("--model", help="model directory to start from (checkpoints/thinker, or "
                                        "checkpoints/base with --task)")
    parser.add_argument("--max-new-tokens", type=int,
                        help=f"longest response ({LONGEST}, or 48 with --task)")
    parser.add_argument("--sweep", type=int, choices=(0, 1),
                        help="choose each method's step first (1)")
    parser.add_argument("--budget", type=int, help="response tokens of each run (280000)")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on (5)")
    parser.add_argument("--eval-every", type=int, default=4, help="steps between evaluations (4)")
    parser.add_argument("--eval-n", type=int, help="held-out problems (400)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core, to 4")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of "
                                                           "the cores (1)")
    parser.add_argument("--runs", type=Path, help="where the runs lie (runs/compare)")
    parser.add_argument("--out", type=Path, help="report to write (BENCHMARKS.md)")
    parser.add_argument("--plot", type=Path, help="plot to write (docs/pictures/compare-TASK.svg)")
    parser.add_argument("--quick", action="store_true", help="a short trial in runs/compare-quick")
    args = parser.parse_args(argv)
    args.methods = list(dict.fromkeys(args.methods.split(",")))
    args.knobs = args.knobs or ("" if args.task else KNOBS)
    args.model = args.model or f"checkpoints/{'base' if args.task else 'thinker'}"
    args.max_new_tokens = args.max_new_tokens or (48 if args.task else LONGEST)
    args.task = args.task or TASK
    args.chosen = dict.fromkeys(args.methods)
    for algo in args.methods:
        if algo not in methods.names():
            parser.error(f"no method {algo!r} to compare; there are {', '.join(methods.names())}")
        if "policy" not in methods.load(algo).EXPORTS:
            parser.error(f"{algo} makes no policy, so there are no answers of it to compare")
        if not hasattr(methods.load(algo).Config(), step_of(algo)):
            parser.error(f"{algo} has no setting {step_of(algo)}, which is the size of its step; "
                         "name the one that is in STEP of scripts/compare.py")
    folder = ROOT / "runs" / ("compare-quick" if args.quick else "compare")
    picture = f"compare-{args.task}.svg"
    fallback = {
        "sweep": 0, "budget": 3_000, "seeds": 1, "eval_n": 10, "runs": folder,
        "out": folder / "report.md", "plot": folder / picture,
    } if args.quick else {
        "sweep": 1, "budget": 280_000, "seeds": 5, "eval_n": 400, "runs": folder,
        "out": ROOT / "BENCHMARKS.md", "plot": ROOT / "docs/pictures" / picture,
    }
    for name, value in fallback.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("budget", "seeds", "eval_every", "eval_n"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected at least "
                         "1")
    check_jobs(parser, args.jobs)
    if not (ROOT / args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: holds no config.json")
    args.runs, args.plot = args.runs.resolve(), args.plot.resolve()
    return args


def start(given):
    args = parse(given)
    if find_spec("matplotlib") is None:  # fail before the runs, not after them
        raise MinipostError("the plot needs matplotlib (pip install -e '.[plot]')")
    runner = Runner()
    before = {s: signal.signal(s, runner.handle)
              for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        args.chosen = choose(args, runner)
        found = None if args.chosen is None else make(args, runner)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if found is None:
        print("go on with:", shlex.join(["python", "-m", "scripts.compare", *given]),
              file=sys.stderr)
        return 130
    if ranked(found):
        draw(args.plot, found, title(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out, "compare", report(args, found, given), "make")
    return 1 if any(failures(runs) for runs in found.values()) else 0


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
