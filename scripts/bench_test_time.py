"""The parts test-time and game24 of BENCHMARKS.md: `python -m scripts.bench test-time game24`.

test-time: every arm of every method in minipost/test_time.  game24: the table of Tree of Thoughts
(arxiv.org/abs/2305.10601, table 2) with our rows beside the paper's.  A number is the mean over
seeds.  Its interval is that of the mean over problems, where each problem counts with its mean over
the seeds.
"""

import json
import subprocess
import sys
from dataclasses import replace

from minipost import train
from minipost.measure.stats import paired, share
from scripts.alternate import ROOT
from scripts.compare import clear, fingerprint, to_do
from scripts.pages import machine, table, write

SEEDS = (0, 1, 2)
GAME = "--task countdown --numbers 4 --target 24"
TEXT = "--task search --numbers 4 --target 24 --most 16 --max-new-tokens 480"  # search in the text
LEARNT = {   # model: how it is trained; the reward models stand beside checkpoints/verifier
    "orm": "--algo orm --steps 220 --model checkpoints/thinker --task arithmetic "
           "--hurried True",
    "prm-24": f"--algo prm --model checkpoints/thinker {GAME}",
    "searcher": f"--algo sft --model checkpoints/thinker {TEXT} --steps 1500 --lr 2e-3",
    "reasoner": f"--algo r1-zero --model runs/test-time/searcher/model {TEXT} --steps 100",
}
ORM, PRM_24 = (f"verifier runs/test-time/{name}/model" for name in ("orm", "prm-24"))
BEST = f"best-of-n --n 400 --outcome-{ORM}"
BEST_24 = f"best-of-n {GAME} --group-size 32 --{PRM_24}"
METHODS = {  # command: seeds; greedy answers are the same with every seed
    "cot --n 400": (0,),
    "self-consistency --n 400": SEEDS,
    BEST: SEEDS,
    f"best-of-n --n 400 --{ORM} --aggregate last": SEEDS,
    "best-of-n --n 400 --hurried False": SEEDS,
    f"{BEST_24} --n 100": SEEDS,
    "beam --n 400": SEEDS,
    "beam --n 400 --aggregate value": SEEDS,
    "speculative-rejection --n 100": SEEDS,
    "particles --n 400": SEEDS,
    "adaptive-consistency --n 400": SEEDS,
    "by-difficulty --n 400": SEEDS,
    "by-difficulty --n 400 --oracle True --probes 32": SEEDS,
    "budget-forcing --n 400": SEEDS,
    "tot --n 100": SEEDS,
    "mcts --n 100": SEEDS,
    "uct --n 100": SEEDS,
    "graph-of-thoughts --n 200": SEEDS,
    "self-feedback --n 400": SEEDS,
    "self-polish --n 400": SEEDS,
    "universal-self-consistency --n 400": SEEDS,
    "react --n 400": SEEDS,
    "memory --n 400": (0,),
}
WANTED = {
    "cot --n 400": "Wanted: worked at least 60 points above direct.",
    "self-consistency --n 400": "Wanted: n=17 at least 15 points above n=1.  In a hurry it falls.",
    BEST: "Wanted: verifier above vote, beyond the interval.",
    "tot --n 100": "Wanted: above best of n at equal tokens, for b=1 and for b=5.",
    "self-feedback --n 400": "Wanted: self-feedback above retry.",
    "memory --n 400": "Wanted: nearest at least 80 points above no memory.  Locks: k of n keys, "
                      "and 1 - (1 - 1/n)^k, are what a perfect agent reaches with memory and "
                      "without.",
}
FURTHER = {BEST: [["verifier", "both verifiers"]]}  # pairs beside those of the method's file
GAME_ROWS = {  # row: (command, arm, arm of any of 5, the paper's row)
    "direct (IO)": (f"self-consistency {GAME} --direct True --curve 1 5 32 --group-size 32", "n=1",
                    "any of n=5", "7.3"),
    "worked steps (CoT)": (f"self-consistency {GAME} --curve 1 5 32 --group-size 32", "n=1",
                           "any of n=5", "4.0"),
    "worked steps, greedy": (f"self-consistency {GAME} --temperature 0 --curve 1 --group-size 1",
                             "n=1", None, ""),
    "self-consistency of 32": (f"self-consistency {GAME} --curve 1 5 32 --group-size 32", "n=32",
                               None, "9.0 (of 100)"),
    "best of 32, PRM": (BEST_24, "verifier", None, ""),
    "best of n, own verdicts, tokens of b=1": ("tot", "best of n, tokens of b=1",
                                               "best of n, tokens of b=1, any of 5", ""),
    "best of n, own verdicts, tokens of b=5": ("tot", "best of n, tokens of b=5",
                                               "best of n, tokens of b=5, any of 5", ""),
    "the same until sure, tokens of b=5": ("tot", "best of n until sure, tokens of b=5",
                                           "best of n until sure, tokens of b=5, any of 5", ""),
    "tree of thoughts, b=1": ("tot", "breadth-first, b=1", "breadth-first, b=1, any of 5", "45"),
    "tree of thoughts, b=5": ("tot", "breadth-first, b=5", "breadth-first, b=5, any of 5", "74"),
    "MCTS": ("mcts", "mcts", None, ""),
    **{f"{votes} in the text, {when}": (
        f"self-consistency --model runs/test-time/{model}/model {TEXT} --curve 1 5 16 "
        "--group-size 16", arm, among, "")
       for when, model in (("taught", "searcher"), ("after R1-Zero", "reasoner"))
       for votes, arm, among in (("search", "n=1", "any of n=5"),
                                 ("vote of 16 searches", "n=16", None))},
    "any of the samples: direct": (
        f"self-consistency {GAME} --direct True --curve 1 5 32 --group-size 32", None,
        "any of n=32", "33 (of 100)"),
    "any of the samples: worked": (f"self-consistency {GAME} --curve 1 5 32 --group-size 32", None,
                                   "any of n=32", "49 (of 100)"),
}
_done = {}


def learn(command):
    """Train the models that a command names, if they are not there, or are of another start."""
    for name, flags in LEARNT.items():
        out = f"runs/test-time/{name}"
        if f"{out}/model" not in command:
            continue
        learn(flags)
        settings = train.settings_of(flags.split())
        origin = fingerprint(ROOT / settings.options.model)
        if to_do(ROOT / out, settings, origin) != "nothing":
            clear(ROOT / out, origin)
            subprocess.run([sys.executable, "-m", "minipost.train", *flags.split(), "--out", out,
                            "--overwrite"],
                           check=True)


def measured(command, seeds=SEEDS):
    """{arm: (each problem's mean reward over seeds, tokens per problem)}, pairs, seconds.

    pairs: (first, last), the arms that the command compares, and others that it also compares.
    """
    learn(command)
    if (command, seeds) not in _done:
        runs, arms = [], {}
        for seed in seeds:
            full = [sys.executable, "-m", "minipost.evaluate", "--method", *command.split(),
                    "--seed", str(seed), "--json"]
            print("  ", " ".join(full[1:]), flush=True)
            runs.append(json.loads(subprocess.run(full, stdout=subprocess.PIPE, text=True,
                                                  check=True).stdout))
        for arm in runs[0]["all"]:
            rewards = zip(*(run["arms"][arm]["rewards"] for run in runs), strict=True)
            tokens = sum(run["all"][arm]["tokens per problem"] for run in runs) / len(runs)
            arms[arm] = [sum(row) / len(row) for row in rewards], tokens
        pairs = [runs[0]["metric"].partition(": ")[2], *runs[0]["pairs"]]
        _done[command, seeds] = (arms, [pair.split(" -> ") for pair in pairs],
                                 [run["seconds"] for run in runs])
    return _done[command, seeds]


def gain(rewards, over):
    if len(rewards) != len(over) or rewards is over:
        return ""
    found = paired(over, rewards)  # of two shares
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high)).effect()


def test_time(args):
    """Write the arms of every method.  After each method, write the results so far."""
    lines = []
    for command, seeds in METHODS.items():
        seeds = seeds[:1] if args.quick else seeds
        arms, ((first, last), *pairs), seconds = measured(command, seeds)
        rows = [[f"**{arm}**" if arm in (first, last) else arm, str(share(rewards)),
                 f"{tokens:,.0f}", gain(rewards, arms[first][0])]
                for arm, (rewards, tokens) in arms.items()]
        size = len(arms[last][0])
        lines += [f"`{command}`: n {size}, seed{'s' * (len(seeds) > 1)} "
                  f"{', '.join(map(str, seeds))}; {min(seconds):.0f}-{max(seconds):.0f} s each", "",
                  *table(["way to answer", "accuracy [95%]", "tokens per problem", f"less {first}"],
                         rows), ""]
        if said := [f"{after} less {before}, {gain(arms[after][0], arms[before][0])}"
                    for before, after in [*pairs, *FURTHER.get(command, [])]]:
            lines += [f"Paired: {'; '.join(said)}.", ""]
        if command in WANTED:
            lines += [WANTED[command], ""]
        write(args.out, "test-time", [
            "## At test time", "", machine(), "",
            "`python -m scripts.bench test-time`; each table is `python -m minipost.evaluate "
            "--method COMMAND --seed SEED` on held-out problems, of checkpoints/thinker unless "
            "COMMAND or the method's file (MODEL) names another model.  "
            "Accuracies are means over the seeds, differences are paired by problem.  Reward "
            "models under runs/test-time: "
            + "; ".join(f"{name}, `python -m minipost.train {LEARNT[name]}`"
                        for name in ("orm", "prm-24"))
            + ".  Every way to answer elicits a mode that "
            "the model was trained in; none emerged.", "", *lines[:-1]])


def game24(args):
    """Write the table of the Game of 24."""
    rows, seeds = [], SEEDS[:1] if args.quick else SEEDS
    for name, (command, top, among, paper) in GAME_ROWS.items():
        arms, *_ = measured(f"{command} --n 100", seeds)
        tokens = arms[top or among][1]
        rows.append([name, *(str(share(arms[arm][0])) if arm else "" for arm in (top, among)),
                     f"{tokens:,.0f}", paper])
    write(args.out, "game24", [
        "## The Game of 24", "", machine(), "",
        "`python -m scripts.bench game24`: the 100 held-out hands, mean over seeds "
        f"{', '.join(map(str, seeds))}, checkpoints/thinker (0.86M parameters).  Tokens are all "
        "that were sampled for a problem, verdicts among them, a question that several hands raise "
        "being asked once.  No row asks an exact checker before it answers.  "
        "\"any of\" is the best of 5 answers (of 32 in the last rows), which an oracle would have "
        "to choose.  The last column is GPT-4 in percent (Yao et al. 2023, table 2); its b=5 row "
        "is the authors' figure for top-1.  The paper's hands are the same hundred.  The search in "
        "the text is one answer of a model of the same size that was taught such texts ("
        f"`python -m minipost.train {LEARNT['searcher']}`), and of the same after R1-Zero ("
        f"`python -m minipost.train {LEARNT['reasoner']}`).", "",
        *table(["way to answer", "top-1 [95%]", "any of 5 (32) [95%]", "tokens per problem",
                "GPT-4"], rows)])
