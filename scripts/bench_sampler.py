"""A part of BENCHMARKS.md: `python -m scripts.bench sampler`.

How far the sampler's log-probs are from those of training, and whether it matters: GRPO as its demo
runs it, with the log-probs that were sampled and with recomputed ones.
"""

from dataclasses import replace
from statistics import mean

from minipost import parallel
from minipost.measure.results import evaluate
from minipost.measure.stats import Score, t_interval
from minipost.methods import grpo
from minipost.opening import open_run
from minipost.tasks.arithmetic import Arithmetic
from minipost.train import Options
from scripts.pages import machine, table, write

SETTINGS = (("float32", 2e-4), ("float32", 1e-3), ("bfloat16", 2e-4))


def learnt(args, dtype, lr, recompute, seed):
    """One run: (largest difference of each step, mean clip_ratio, held-out Score)."""
    options = Options(model=args.model, seed=seed, dtype=dtype)
    cfg = replace(grpo.Config(), lr=lr, **({"steps": 2} if args.quick else {}))
    task = Arithmetic()

    def work():
        run = open_run(options, task, "cpu")
        run.recompute = recompute
        learn, noted, clipped = grpo.train(run, cfg), [], []
        for _ in range(cfg.steps):
            clipped.append(next(learn)["clip_ratio"])
            noted += run.differences().values()
            run.step += 1
        held_out = evaluate(run, task.heldout(20 if args.quick else 400), 1.0)
        return noted, mean(clipped), held_out.score

    return parallel.launch(work, parallel.default_workers("cpu"))


def sampler(args):
    """Both ways for each setting and seed, and their difference over the seeds."""
    rows, seeds = [], (0,) if args.quick else (0, 1, 2)
    for dtype, lr in SETTINGS:
        found = {way: [learnt(args, dtype, lr, way, seed) for seed in seeds]
                 for way in (False, True)}
        noted = [x for run in found[False] for x in run[0]]
        scores = {way: [run[2] for run in runs] for way, runs in found.items()}
        gaps = [b.value - a.value for a, b in zip(scores[False], scores[True])]
        gain = t_interval(gaps) if len(gaps) > 1 else Score(gaps[0], -1.0, 1.0, 1)
        rows.append([
            dtype, f"{lr:g}", f"{max(noted):.1e}", f"{sum(x > 1e-5 for x in noted)}/{len(noted)}",
            *(f"{mean(run[1] for run in found[way]):.4f}" for way in (False, True)),
            *(f"{mean(score.value for score in scores[way]):.3f}" for way in (False, True)),
            gain.effect()])
    write(args.out, "sampler", [
        "## Sampler and trainer", "", machine(), "", "`python -m scripts.bench sampler`; GRPO with "
        f"default settings but the learning rate, seeds {', '.join(map(str, seeds))}.  Decoding "
        "and training use different kernels, so the log-prob of a sampled token differs by "
        "rounding.  `as sampled` corrects for the policy that the sampler recorded, `recomputed` "
        "for training's own.  Accuracy is sampled, held out, on 400 problems; the difference is "
        "paired by seed, with a 95% interval over the seeds.  A difference of rounding leads a run "
        "elsewhere, at a rate that is too high far away.", "",
        *table(["weights", "lr", "largest difference, nats", "steps over 1e-5",
                "clip_ratio as sampled", "recomputed", "accuracy as sampled", "recomputed",
                "difference"], rows)])
