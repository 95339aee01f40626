"""The part proof of BENCHMARKS.md: `python -m scripts.bench proof`.

It holds the results of `make prove` in three worlds.
"""

import json
import subprocess
import sys

from scripts.alternate import ROOT
from scripts.pages import machine, table, write

SEEDS = (0, 1, 2)


def found(args, seed):
    """All figures of one world, and the last sentence of its run."""
    out = ROOT / "runs" / f"prove-{seed}.json"
    command = [sys.executable, "-m", "minipost.prove", "--seed", str(seed), "--out", str(out)]
    command += ["--horizon", "2", "--samples", "20"] if args.quick else []
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode and not out.is_file():
        raise SystemExit(done.stderr.strip())
    facts = json.loads(out.read_text(encoding="utf-8"))
    print(done.stdout.strip().splitlines()[-1], flush=True)
    return facts, done.stdout.strip().splitlines()[-1].partition(".")[0]


def proof(args):
    """Tables of the first world, with the range of the figures in all worlds."""
    seeds = SEEDS[: 1 if args.quick else 3]
    worlds, verdicts = zip(*(found(args, seed) for seed in seeds))
    first = worlds[0]

    def across(section, k, name):
        """A figure in the first world, and its lowest and highest in all worlds."""
        values = [world[section][k][name] for world in worlds]
        return f"{values[0]:.3f} [{min(values):.3f}, {max(values):.3f}]"

    estimates = [[row["name"], row["aim"],
                  "elsewhere" if row["factor"] is None else f"{row['factor']:g} x",
                  "" if row["factor"] is None else
                  f"{max(world['estimates'][k]['error'] for world in worlds):.0e}",
                  across("estimates", k, "off_answer"), across("estimates", k, "off"),
                  across("estimates", k, "noise"), f"{row['size']:.3f}",
                  f"{row['sampled']['value']:.3f} [{row['sampled']['low']:.3f}, "
                  f"{row['sampled']['high']:.3f}]"] for k, row in enumerate(first["estimates"])]
    leads = [[row["name"], f"{row['reward']:.3f}", f"{row['kl_ref']:.3f}",
              f"{row['objective']:.4f}", across("leads", k, "left"),
              "" if row["own"] is None else "pi*" if row["own"] == row["left"] else "its own",
              row["why"]] for k, row in enumerate(first["leads"])]
    optimum = [[row["name"], f"{row['mean']:.0e}", f"{row['rms']:.0e}", row["zero"], row["why"]]
               for row in first["optimum"]]
    clipped = [[row["name"], across("clipped", k, "kl"), across("clipped", k, "off"),
                across("clipped", k, "off_free")] for k, row in enumerate(first["clipped"])]
    sizes = "; ".join(f"{across('sizes', k, 'off')} for {row['answers']}"
                      for k, row in enumerate(first["sizes"]))
    write(args.out, "proof", [
        "## What is proved", "", machine(), "",
        "`python -m scripts.bench proof`: `python -m minipost.prove` with seeds "
        f"{', '.join(map(str, seeds))}, one after another: {', '.join(verdicts)}, in "
        f"{', '.join(format(world['seconds'], '.0f') for world in worlds)} s. "
        f"A world has {first['vocab']} ids and answers of up to {first['horizon']} tokens; figures "
        "are of seed 0, in brackets the lowest and highest of all. "
        "J = E r, J_b = E r - beta KL(pi || ref), pi* = ref exp(r/beta) / Z.", "",
        "The mean of a method's own step over all rollouts of one or two answers, against the "
        "exact gradient. The rest is the share of the mean that points elsewhere: where it is "
        "divided by answers, and as it is shipped, mostly by tokens. Noise is the deviation of one "
        "step as a share of the mean's size; sampled are "
        f"{first['estimates'][0]['sampled']['n']} steps, with their 95% interval.", "",
        *table(["method", "gradient of", "proved", "to", "rest, per answer", "rest", "noise",
                "size", "size, sampled"], estimates), "",
        "Why, where it is not all of the gradient:", "",
        *(f"- {row['name']}: {row['why']}" for row in first["estimates"] if row["why"]), "",
        f"Divided by its own tokens, REINFORCE's mean step has a rest of {sizes} answers.", "",
        "The rest after the policy has moved since it sampled, with the clip and without:", "",
        *table(["method", "KL of the move", "clipped", "no clip"], clipped), "",
        "Steps where the policy is exactly pi*:", "",
        *table(["method", "mean step", "typical step", "proved zero", "because"], optimum), "",
        "Where following the mean step leads from the reference (800 steps of Adam on the "
        "nano-GPT, OREO with its value 1600); "
        f"at pi* J_b is {first['leads'][0]['best']:.4f}. Left is KL(pi || pi*) as a share of what "
        "it was.", "",
        *table(["method", "J", "KL to ref", "J_b", "left", "proved to reach", "because"], leads),
    ])
