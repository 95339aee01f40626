"""Compare methods that learn from one fixed set of answers: `make compare-offline`.

    python -m scripts.compare_offline --tasks countdown --seeds 3

For each seed, the start checkpoint answers training problems several times.  The answers go into
JSONL files: with whether each is right, without it for sft, and as pairs.  Every method trains on
those files and nothing else, with the same number of gradient steps on the same number of answers.
Each trained model is then measured on held-out problems of the task, with the same problems and
random numbers for all.  The value that OREO learns also guides a beam search.

The result is a part of BENCHMARKS.md.  Ctrl-C stops after the step in progress, and the same
command continues from there.  Existing runs with the same settings and data are not made again.
The command does not notice a change to the code.  Remove runs/compare-offline after such a change.
"""

import argparse
import hashlib
import json
import random
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from minipost import checkpoint, files, parallel
from minipost.cli.options import fail_in_one_sentence
from minipost.errors import MinipostError
from minipost.measure.stats import Score
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.countdown import Countdown
from scripts.alternate import last_line
from scripts.compare import (
    Runner,
    average,
    complete,
    difference,
    fingerprint,
    listed,
)
from scripts.pages import machine, table, write

ROOT = Path(__file__).resolve().parents[1]
PAIRS = 4   # most pairs of a prompt's answers, each answer in one pair
SPARE = 16  # training problems kept back; the runs see them as held out and do not learn from them


@dataclass(frozen=True)
class Setting:
    """A task, its flags, the longest answer in tokens, and the gradient steps of every method."""

    task: object
    flags: tuple
    max_new_tokens: int
    steps: int


SETTINGS = {
    "arithmetic": Setting(Arithmetic(terms=8), ("--terms", "8"), 72, 100),
    "countdown": Setting(Countdown(), (), 48, 200),
}
KINDS = ("texts", "answers", "pairs")  # the files of a set
METHODS = {  # name: (its file, its settings that are not the defaults); 64 answers per step
    "sft": ("texts", {"lr": 2e-4, "batch-size": 64}),
    "rft": ("answers", {"batch-size": 64, "eval-n": 128}),  # all, or none of 8 may be a right one
    "dpo": ("pairs", {"pairs": 32, "beta": 1.0, "lr": 5e-5}),
    "rpo": ("pairs", {"pairs": 32, "beta": 1.0, "lr": 5e-5}),
    "kto": ("answers", {"batch-size": 64, "beta": 1.0, "lr": 2e-5}),
    "oreo": ("answers", {"batch-size": 64}),
}
START = "start"


# ---- the fixed set

def answers(args, setting, seed):
    """The start checkpoint's answers: {prompt: [(completion, right)]}."""
    model, vocabulary = checkpoint.load(ROOT / args.model)
    task = setting.task
    run = Run(Learner(model), vocabulary, task, task.reward, seed=seed,
              max_new_tokens=setting.max_new_tokens)
    problems = task.sample(args.prompts + SPARE, random.Random(f"compare-offline {seed}"))
    with run.aside():
        rollout = run.sample(problems, args.group_size, temperature=1.0, purpose="compare-offline")
    found, rewards = defaultdict(list), run.grade(problems, rollout).tolist()
    for place, text, reward in zip(rollout.prompt.tolist(), run.texts(rollout), rewards):
        if text:
            found[problems[place].prompt].append((text, reward == 1.0))
    return list(found.items())


def collect(args, setting, seed, folder):
    """Write the set: a file of each kind, and for each a file of spare problems."""
    found = parallel.launch(lambda: answers(args, setting, seed), args.workers)
    for name, part in (("", found[:-SPARE]), ("-spare", found[-SPARE:])):
        rows = [{"prompt": prompt, "completion": text, "label": right}
                for prompt, said in part for text, right in said]
        pairs = []
        for prompt, said in part:
            right, wrong = ([text for text, good in said if good == side] for side in (True, False))
            pairs += [{"prompt": prompt, "chosen": a, "rejected": b}
                      for a, b in list(zip(right, wrong))[:PAIRS]]
        if not pairs:
            raise MinipostError("no prompt of a set has a right and a wrong answer; ask for more "
                                "with --prompts or --group-size")
        texts = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
        for kind, lines in zip(KINDS, (texts, rows, pairs)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            files.publish(folder / f"{kind}{name}.jsonl",
                          lambda path, text=text: path.write_text(text))


def digest(folder):
    """A digest of the set's files."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.jsonl")):
        found.update(path.read_bytes())
    return found.hexdigest()


# ---- the runs

def flags(args, setting, folder, algo, seed):
    """The options of one run for minipost.train."""
    kind, settings = METHODS[algo]
    options = {
        "algo": algo, "data": folder / f"{kind}.jsonl", "eval-data": folder / f"{kind}-spare.jsonl",
        "seed": seed, "model": args.model, "steps": args.steps or setting.steps, "eval-n": 8,
        "max-new-tokens": setting.max_new_tokens, "show": 0, "save-every": 0,
        "workers": args.workers, **settings,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def measure(args, setting, seed, model, value=None):
    """{metric: Score} of a model directory on the task's held-out problems."""
    # It has its own session, like the runs, so Ctrl-C lets it finish.
    command = [sys.executable, "-m", "minipost.evaluate", "--model", str(model), "--task",
               setting.task.name, *setting.flags, "--n", str(args.eval_n), "--seed", str(seed),
               "--max-new-tokens", str(setting.max_new_tokens), "--workers", str(args.workers),
               "--json", *(["--value", str(value)] if value else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          start_new_session=True)
    if done.returncode:
        raise MinipostError(f"{shlex.join(command)}: {last_line(done.stderr)}")
    row, = json.loads(done.stdout)
    return {name: Score(**score) for name, score in row.items() if isinstance(score, dict)}


def make(args, runner, name):
    """{method: [{metric: Score}, one per seed]}; None if stopped."""
    setting, found = SETTINGS[name], defaultdict(list)
    for seed in range(args.seeds):
        folder = args.runs / f"{name}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        start = fingerprint(ROOT / args.model)
        made = json.dumps({"prompts": args.prompts, "group_size": args.group_size, "model": start,
                           "setting": repr(setting), "seed": seed, "files": KINDS})
        if not (folder / "set.json").is_file() or (folder / "set.json").read_text() != made:
            collect(args, setting, seed, folder)
            files.publish(folder / "set.json", lambda path, made=made: path.write_text(made))
        origin = start + digest(folder)
        if not runner.stopped:
            found[START].append(measure(args, setting, seed, args.model))
        for algo in METHODS:
            if runner.stopped:
                return None
            directory = folder / algo
            _, failed = complete(
                runner, directory, flags(args, setting, folder, algo, seed), origin)
            if runner.stopped:
                return None
            if failed:
                raise MinipostError(f"{directory}: {failed}")
            value = directory / "critic"
            found[algo].append(measure(args, setting, seed, directory / "model",
                                       value if value.is_dir() else None))
            print(f"{name}, seed {seed}, {algo}: " + ", ".join(
                f"{metric} {score}" for metric, score in found[algo][-1].items()), flush=True)
    return found


# ---- what the runs say

COLUMNS = ["method", "sampled [95%]", "oreo less this, paired [95%]", "greedy [95%]",
           "value-guided beam [95%]"]


def scores(runs, metric):
    return [run[metric] for run in runs if metric in run]


def rows(found):
    """The table, in the order of sampled accuracy."""
    best, cells = scores(found["oreo"], "sampled"), []
    for algo in sorted(
            found, key=lambda algo: -mean(s.value for s in scores(found[algo], "sampled"))):
        runs = found[algo]
        beam = scores(runs, "beam")
        cells.append([
            algo, str(average(scores(runs, "sampled"))),
            "" if algo == "oreo" else f"{difference(best, scores(runs, 'sampled')):+}",
            str(average(scores(runs, "greedy"))), str(average(beam)) if beam else "",
        ])
    return cells


def verdict(found):
    """Sentences: which methods OREO is ahead of, and what its value adds to its policy."""
    ours = scores(found["oreo"], "sampled")
    gaps = {algo: difference(ours, scores(runs, "sampled")) for algo, runs in found.items()
            if algo != "oreo"}
    said = [("ahead of {} beyond the interval", [a for a, g in gaps.items() if g.low > 0]),
            ("not told from {}", [a for a, g in gaps.items() if g.low <= 0 <= g.high]),
            ("behind {} beyond the interval", [a for a, g in gaps.items() if g.high < 0])]
    gain = difference(scores(found["oreo"], "beam"), scores(found["oreo"], "greedy"))
    return ("OREO's policy is "
            + "; ".join(text.format(listed(names)) for text, names in said if names)
            + f".  Value-guided beam less greedy, of OREO: {gain:+}.")


def report(args, found, given):
    """The part of BENCHMARKS.md, as lines."""
    call = f"python -m scripts.compare_offline {shlex.join(given)}" if given else \
        "make compare-offline"
    lines = [
        "## Learning from one fixed set of answers", "", machine(), "",
        f"`{call}`.  Per seed ({args.seeds}) {args.group_size} answers of {args.model} to each of "
        f"{args.prompts} training problems, right and wrong; every method makes the same number of "
        "gradient steps on 64 of those answers each (dpo and rpo on 32 pairs).  sft learns all "
        "answers, rft the right ones, dpo and rpo pairs of a right and a wrong one, kto and oreo "
        "all answers with whether they are right.  rpo teaches a reward model from the same pairs "
        "first.  Settings that are not the defaults stand in METHODS of the script; those of dpo "
        "and kto were chosen on training problems of arithmetic, rpo has dpo's, oreo's were chosen "
        "on those of countdown.  Held out, one answer per problem; intervals are over seeds, never "
        "narrower than the evaluations' own put together, and speak of other seeds on these "
        "problems, not of other problems; differences are paired by seed.  No interval is "
        "widened for the number of comparisons.", "",
    ]
    for name, runs in found.items():
        setting = SETTINGS[name]
        knobs = " ".join((setting.task.name, *setting.flags))
        lines += [f"`{knobs}`, {args.steps or setting.steps} steps, {args.eval_n} held-out "
                  "problems:", "", *table(COLUMNS, rows(runs)), "", verdict(runs), ""]
    return lines[:-1]


def start(given):
    parser = argparse.ArgumentParser(prog="python -m scripts.compare_offline", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--tasks", default=",".join(SETTINGS), help="some of them, a,b")
    parser.add_argument("--model", default="checkpoints/base", help="model directory to start from")
    parser.add_argument("--prompts", type=int, default=512, help="training problems answered")
    parser.add_argument("--group-size", type=int, default=8, help="answers to each")
    parser.add_argument("--steps", type=int, default=0, help="gradient steps; 0: the task's own")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--eval-n", type=int, default=400, help="held-out problems")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core, to 4")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compare-offline")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md", help="report to write")
    args = parser.parse_args(given)
    args.runs = args.runs.resolve()
    args.workers = args.workers or parallel.default_workers("cpu")
    if not (ROOT / args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: holds no config.json")
    names = list(dict.fromkeys(args.tasks.split(",")))
    for name in names:
        if name not in SETTINGS:
            parser.error(f"no task {name!r} to compare on; there are {', '.join(SETTINGS)}")
    for name, least in (("prompts", 1), ("group_size", 2), ("steps", 0), ("seeds", 1),
                        ("eval_n", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected at least "
                         f"{least}")
    runner, found = Runner(), {}
    before = {s: signal.signal(s, runner.handle)
              for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for name in names:
            found[name] = make(args, runner, name)
            if found[name] is None:
                print("go on with:",
                      shlex.join(["python", "-m", "scripts.compare_offline", *given]),
                      file=sys.stderr)
                return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out, "compare-offline", report(args, found, given), "make")
    return 0


def main(argv=None):
    return fail_in_one_sentence(lambda: start(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
