"""The alignment and Fisher parts of BENCHMARKS.md: `python -m scripts.bench alignment fisher`.

alignment: reward models, RLHF from gold labels beside RLAIF at an equal budget, and the gold reward
without a KL price.  fisher: TRPO's Fisher-vector product in both forms.
"""

import json
import statistics
import subprocess
import sys
import time

from scripts.alternate import ROOT
from scripts.pages import machine, table, write

THREE, ONE = (0, 1, 2), (0,)
REWARD_MODELS = {  # name: (further options, seeds)
    "reward": ((), THREE), "orm --steps 220": ((), THREE), "prm": ((), THREE),
    "plackett-luce": ((), ONE), "reward, 20% of labels wrong": (("--noise", "0.2"), ONE),
}
PPO_STARTS, DPO_STARTS = ("--eval-every", "210"), ("--eval-every", "60")  # steps before PPO, DPO
ALIGNED = {
    "ppo": (PPO_STARTS, THREE), "rlaif": (PPO_STARTS, THREE), "ppo --beta 0": (PPO_STARTS, ONE),
    "dpo": ((), THREE), "rlaif --learner dpo": (DPO_STARTS, ONE),
    "rlaif --principle brief": (PPO_STARTS, ONE),
}
LAST = 4  # a run's last values are means over so many rollouts at its end


def trained(args, name, extra, seed):
    """One run with default settings: (summary, lines of metrics.jsonl), or its last error line."""
    algo, *flags = name.partition(",")[0].split()
    folder = "".join("_" if c in " /" else c for c in name if c not in ",%")
    out = ROOT / "runs" / f"bench-{folder}-{seed}"
    command = [sys.executable, "-m", "minipost.train", "--algo", algo, *flags, *extra, "--seed",
               str(seed), "--out", str(out), "--overwrite"]
    if algo != "distill" and "--model" not in flags:  # those start from the student
        command += ["--model", args.model]
    command += ["--steps", "2", "--eval-n", "20"] if args.quick else []
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return json.loads((out / "summary.json").read_text()), [json.loads(line) for line in lines]


TUNED = "eval/held-out/sampled"  # the metrics line of the last step before PPO or DPO has it


def show(s):
    return f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"


def reward_rows(args):
    """Held-out pair accuracy, calibration and best-of-n of every reward model."""
    for name, (extra, seeds) in REWARD_MODELS.items():
        for seed in seeds[:1] if args.quick else seeds:
            found = trained(args, name, extra, seed)
            if isinstance(found, str):
                yield [name, str(seed), f"failed: {found}", *[""] * 5]
                continue
            summary, all_ = found[0], found[0]["all"]
            after = {key.partition(",")[0]: row["after"] for key, row in all_.items()}
            yield [name, str(seed), summary["task"], show(after["pair accuracy"]),
                   show(after["calibration error"]), show(after["one sample"]),
                   show(after["best of 8"]), show(after["exact best of 8"]),
                   f"{summary['seconds']:.0f}"]


def last(lines, name):
    """A metric's mean over the last rollouts, or None where it was never logged."""
    values = [line[name] for line in lines if line.get(name) is not None][-LAST:]
    return statistics.mean(values) if values else None


def aligned_rows(args, gains):
    """Score, gold and KL of the pipelines.  `gains` receives {name: [(before, tuned, after)]}."""
    for name, (extra, seeds) in ALIGNED.items():
        for seed in seeds[:1] if args.quick else seeds:
            found = trained(args, name, extra, seed)
            if isinstance(found, str):
                yield [name, str(seed), f"failed: {found}", *[""] * 7]
                continue
            summary, lines = found
            tuned = next((line[TUNED] for line in lines if TUNED in line), None)
            agreement = [line["agreement"] for line in lines if line.get("agreement") is not None]
            labelled = sum(line.get("pairs", 0) for line in lines)
            gold = summary["all"]["sampled, held-out"]
            gains.setdefault(name, []).append(
                (gold["before"]["value"], tuned, gold["after"]["value"]))
            cells = [last(lines, key) if "kl_per_answer" in lines[-1] else None
                     for key in ("reward", "kl_per_answer")]
            yield [name, str(seed), show(gold["before"]), "" if tuned is None else f"{tuned:.3f}",
                   show(gold["after"]), *("" if c is None else f"{c:.2f}" for c in cells),
                   f"{statistics.mean(agreement):.3f}" if agreement else "", f"{labelled:,}",
                   f"{summary['seconds']:.0f}"]


def alignment(args):
    rewards = []
    for row in reward_rows(args):
        print(" | ".join(row), flush=True)
        rewards.append(row)
    gains, aligned = {}, []
    for row in aligned_rows(args, gains):
        print(" | ".join(row), flush=True)
        aligned.append(row)
    notes = []
    if gains.get("ppo") and gains.get("rlaif"):
        notes = ["", "Held-out gold gained with the judge's labels over that gained with gold "
                 f"labels, by seed: over the base model {ratios(gains, 0)}; over the fine-tuned "
                 f"policy {ratios(gains, 1)}.  Wanted: at least 0.90."]
    write(args.out, "alignment", [
        "## Reward models, RLHF and RLAIF", "", machine(), "",
        "`python -m scripts.bench alignment`; each row is `python -m minipost.train --algo METHOD "
        "--seed SEED` with default settings and what the row says.  Held out, 95% intervals.", "",
        "Reward models: which of two different answers of the base model to a held-out prompt is "
        "better (noise-free), how far the stated chance is from the truth, and the exact reward of "
        "one sample, of the best of 8 by the model, and of the truly best of the 8.  By chance "
        "alone the calibration error of n pairs is about 1 / sqrt(n), where the stated chances are "
        "the true ones.", "",
        *table(["method", "seed", "task", "pair accuracy", "calibration error", "one sample",
                "best of 8", "exact best of 8", "training s"], rewards), "",
        "RLHF (`ppo`: labels from the hidden gold reward) and RLAIF (labels from the judge), with "
        "the same number of steps, prompts and labels; `dpo` begins at the base model and has gold "
        "labels.  Gold is held out, one sampled answer to each prompt: before, after fine-tuning "
        "(`--eval-every` at the last step before PPO or DPO) and at the end.  The score is the "
        "reward model's own, in deviations of the fine-tuned policy's answers; KL is exact, in "
        "nats per answer; both over the last four rollouts.", "",
        *table(["method", "seed", "gold before", "gold after SFT", "gold after", "score",
                "KL per answer", "judge agrees with gold", "labels", "training s"], aligned),
        *notes,
    ])


def ratios(gains, start):
    """The gain of rlaif over the gain of ppo, from `start` on: by seed, and of the sums."""
    ours, theirs = ([row[2] - row[start] for row in gains[name]] for name in ("rlaif", "ppo"))
    each = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))
    return f"{each}, together {sum(ours) / sum(theirs):.2f}"


def fisher(args):
    """Seconds of one Fisher-vector product in both forms and of a gradient, alternated."""
    import torch

    from minipost import checkpoint
    from minipost.methods import trpo
    from minipost.optim import Learner
    from minipost.rollout import logprobs
    from minipost.run import Run
    from minipost.tasks.arithmetic import Arithmetic

    torch.set_num_threads(1)
    model, vocabulary = checkpoint.load(ROOT / args.model)
    task = Arithmetic()
    run = Run(Learner(model), vocabulary, task, task.reward)
    rollout = run.sample(run.problems(8), 4, temperature=1.0)
    batches = [rollout[i] for i in run.micro_batches(range(len(rollout)), rollout)]
    vector = torch.randn(run.policy.flat.shape, generator=torch.Generator().manual_seed(0))

    def gradient(learner, batch, temperature, vector):
        logprobs(learner.module, batch, temperature).sum().backward()
        return learner.grad

    forms = {"jacobian": trpo.product_jacobian, "hessian": trpo.product_hessian,
             "gradient": gradient}
    seconds, values = {name: [] for name in forms}, {}
    for _ in range(2 if args.quick else 9):
        for name, form in forms.items():
            start = time.perf_counter()
            values[name] = sum(form(run.policy, batch, 1.0, vector) for batch in batches)
            seconds[name].append(time.perf_counter() - start)
    gap = float((values["jacobian"] - values["hessian"]).norm() / values["hessian"].norm())
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    pairs = [h / j for j, h in zip(seconds["jacobian"][1:], seconds["hessian"][1:])]
    rows = [[name, f"{1000 * value:.0f} ms", f"{value / middle['gradient']:.2f}"]
            for name, value in middle.items()]
    write(args.out, "fisher", [
        "## TRPO's Fisher-vector product, two ways", "", machine(), "",
        "`python -m scripts.bench fisher`: one product over 32 answers of the base model, one "
        "process of one thread, the forms alternated; medians.", "",
        *table(["form", "time", "of a gradient"], rows), "",
        f"The gradient of a gradient takes {statistics.median(pairs):.2f} times as long "
        f"[{min(pairs):.2f}, {max(pairs):.2f}] as the Jacobian form, so TRPO uses the latter; "
        f"their results differ by {gap:.0e} of their norm in float32.",
    ])
