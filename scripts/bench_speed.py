"""The parts speed and peers of BENCHMARKS.md: `python -m scripts.bench speed peers`.

`speed` compares GRPO, sampling, SFT and the start with TRL and transformers.  `peers` compares a
step of every other method that TRL has.  A comparison counts only if both sides did the same work:
the same rows, the same first losses where nothing is sampled, and answers of the same length.
"""

import importlib.util
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from scripts.alternate import (
    CORES,
    NOISE,
    ROOT,
    WARM,
    Bench,
    Failed,
    column,
    measure,
    ms,
    row,
    sec,
    step_time,
    yes,
)
from scripts.bench_methods import FAST, KL, PAIRS
from scripts.bench_peer import (
    EVERY,
    GROUP,
    HELD_OUT,
    PROMPTS,
    ROOM,
    ROWS,
    TARGET,
)
from scripts.pages import machine, table, write

METHODS = "scripts.bench_methods"
LOSSES = 3      # first losses that must agree
SAME = 1e-3     # to this
ALIKE = 0.05    # so far apart may be what depends on hundreds of sampled answers, as a share


def same_work(found, losses=LOSSES):
    """How long the rows of both sides are.  Failed if they did not do the same work.

    found: {"own": results, "peer": results}.  Mean lengths come from hundreds of samples, so they
    differ by chance alone.
    """
    own, peer = found["own"], found["peer"]
    rows = {tuple(result["row"]) for result in [*own, *peer] if result.get("row")}
    if len(rows) > 1:
        raise Failed(f"the two sides trained on other rows, of {sorted(map(len, rows))} tokens")
    if rows:
        for a, b in ((a["losses"][:losses], b["losses"][:losses]) for a, b in zip(own, peer)):
            if not all(abs(x - y) <= SAME for x, y in zip(a, b, strict=True)):
                raise Failed(f"the first losses differ: {a} for minipost, {b} for the peer")
        return str(len(rows.pop()))
    mine, theirs = (median(r["length"] for r in results) for results in (own, peer))
    if abs(mine / theirs - 1) > ALIKE:
        raise Failed(f"the answers have {mine:.1f} tokens for minipost, {theirs:.1f} for the peer")
    return f"{mine:.1f} and {theirs:.1f}"


# ---- the rows of `speed`

def grpo_rows(bench):
    """A GRPO step, the start and the whole process, measured in the same processes."""
    steps, few = (6, 6) if bench.quick else (50, 15)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}"]
    found = bench.rounds(
        5,
        own=lambda _: bench.job("own", "grpo", steps),
        peer=lambda _: bench.job("peer", "grpo", steps),
        ranks=lambda _: bench.job("peer", "grpo", few, launcher=launcher, OMP_NUM_THREADS="1"),
        cli=lambda _: measure(command_line(bench.folder, steps)),
        floor=lambda _: bench.job("own", "floor", 1, module=METHODS),
    )
    own, peer = found["own"], found["peer"]
    first, whole = (lambda r: r["ends"][0] - r["start"]), (lambda r: r["seconds"])
    mine = column(step_time, own)
    bench.notes += [f"Mean completion length in the GRPO steps: {same_work(found)} tokens."]
    bench.floor = floor_rows(own, found["floor"])
    return [
        row("one GRPO step; TRL", mine, column(step_time, peer), ms, (">=", 2.0)),
        row(f"one GRPO step; TRL as {CORES} processes of 1 thread (torchrun, gloo)", mine,
            column(step_time, found["ranks"]), ms, (">=", 1.9)),
        row("start to first finished GRPO step; TRL", column(first, own), column(first, peer), sec,
            (">=", 3.0)),
        row(f"whole process of {steps} GRPO steps; TRL", column(whole, own), column(whole, peer),
            sec, (">=", 2.2)),
        row("the same as `python -m minipost.train`, which also evaluates, logs and saves; TRL "
            "does not", column(whole, found["cli"]), column(whole, peer), sec),
    ]


def command_line(folder, steps):
    """The GRPO job as a user would start it, with as little evaluation as possible."""
    options = {
        "algo": "grpo", "data": folder / "prompts.jsonl", "model": folder / "model",
        "reward": ROOT / "scripts" / "bench_peer.py:letter_share", "steps": steps,
        "prompts": PROMPTS, "group-size": GROUP, "minibatch-size": PROMPTS * GROUP,
        "max-new-tokens": ROOM, "beta": 0, "lr": 1e-5, "eval-n": 1, "show": 0, "save-every": 0,
        "out": folder / "run",
    }
    return [sys.executable, "-m", "minipost.train", "--overwrite",
            *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def memory_rows(bench):
    steps = 3 if bench.quick else 12
    found = bench.rounds(5, own=lambda _: bench.job("own", "grpo", steps, watch=True),
                         peer=lambda _: bench.job("peer", "grpo", steps, watch=True))
    own, peer = ([result["peak"] for result in found[side]] for side in ("own", "peer"))
    return [row(f"peak memory of the process tree in {steps} GRPO steps (PSS); TRL; ratio "
                "minipost/peer", own, peer, lambda b: f"{b / 2**20:.0f} MiB", ("<=", 0.55), True)]


def sample_rows(bench):
    steps = 4 if bench.quick else 20
    found = bench.rounds(5, own=lambda _: bench.job("own", "sample", steps),
                         peer=lambda _: bench.job("peer", "sample", steps))
    if found["own"][0]["prompts"] != found["peer"][0]["prompts"]:
        raise Failed("the two sides encoded the prompts differently")
    own, peer = ([r["tokens"] / median(r["calls"][WARM:]) for r in found[side]]
                 for side in ("own", "peer"))
    size = len(found["own"][0]["prompts"][0])
    return [row(f"sampling, tokens/s: {PROMPTS} prompts of {size} tokens x {GROUP}, {ROOM} new "
                "tokens, no EOS; transformers' generate; ratio minipost/peer", own, peer,
                lambda rate: f"{rate:,.0f}", (">=", 2.2), True)]


def sft_rows(bench):
    steps = 6 if bench.quick else 30
    found = bench.rounds(5, own=lambda _: bench.job("own", "sft", steps),
                         peer=lambda _: bench.job("peer", "sft", steps))
    return [row(f"one SFT step, {ROWS} rows of {same_work(found, losses=3)} tokens, loss on all "
                "but BOS; TRL",
                column(step_time, found["own"]), column(step_time, found["peer"]), ms,
                (">=", 1.7))]


def import_rows(bench):
    def python(*command):
        return lambda _: measure([sys.executable, *command])

    found = bench.rounds(
        5, help=python("-m", "minipost.train", "--help"),
        knobs=python("-m", "minipost.train", "--algo", "grpo", "--help"),
        method=python("-c", "import minipost.methods.grpo"), torch=python("-c", "import torch"),
        trl=python("-c", "from trl import GRPOTrainer"),
    )
    seconds = {name: [result["seconds"] for result in results] for name, results in found.items()}
    return [
        row("`python -m minipost.train --help`; `import torch`; ratio minipost/peer",
            seconds["help"], seconds["torch"], sec, ("<=", 2.0), True),
        row("`python -m minipost.train --algo grpo --help`; `import torch`; ratio minipost/peer",
            seconds["knobs"], seconds["torch"], sec, ("<=", 1.0), True),
        row("`import minipost.methods.grpo`; `from trl import GRPOTrainer`",
            seconds["method"], seconds["trl"], sec),
    ]


def reach_rows(bench):
    """Training seconds to a held-out accuracy, from the shipped base model."""
    what = f"training to {TARGET:.0%} sampled held-out accuracy on arithmetic; TRL"
    if not (ROOT / bench.base / "model.safetensors").is_file():
        return [[what, f"skipped: {bench.base} holds no model.safetensors", "", "", ">= 3.0", ""]]
    steps = EVERY if bench.quick else 200
    found = bench.rounds(3, **{
        side: lambda seed, side=side: bench.job(side, "reach", steps, model=bench.base, seed=seed)
        for side in ("own", "peer")})
    for side, results in found.items():
        print(f"  {side}: " + "; ".join(" ".join(f"{x:.3f}" for x in r["scores"]) for r in results))
    own, peer = ([r["reached"] for r in found[side]] for side in ("own", "peer"))
    return [row(what, own, peer, sec, (">=", 3.0))]


# ---- the floor

def parts_of(result):
    """Median seconds of a step, of its sampling, and of the rest: training, reward and update."""
    ends, sampled = result["ends"], result["sampled"]
    return {"step": step_time(result),
            "sampling": median(b - a for a, b in list(zip(ends, sampled[1:]))[WARM - 1 :]),
            "training": median(b - a for a, b in list(zip(sampled, ends))[WARM:])}


def floor_rows(own, floors):
    """What a step takes, and its matrix products alone: one row for each of its parts."""
    measured, rows = [parts_of(result) for result in own], []
    for what, parts in (("step", ("sampling", "training")), ("sampling", ("sampling",)),
                        ("training", ("training",))):
        products, batched = ([sum(result[kind][part] for part in parts) for result in floors]
                             for kind in ("products", "batched"))
        rows.append(floor_row(f"GRPO {what}", [parts[what] for parts in measured],
                              products, batched, 0.55 if what == "step" else None))
    return rows


def floor_row(what, seconds, products, batched=None, wanted=None):
    """A line of the table; `wanted`: the share of the time that the products should be."""
    shares = [a / b for a, b in zip(products, seconds)]
    share = median(products) / median(seconds)
    return [what, ms(median(seconds)), ms(median(products)), ms(median(batched)) if batched else "",
            f"{share:.0%} [{min(shares):.0%}, {max(shares):.0%}]",
            *(["", ""] if wanted is None else [f">= {wanted:.0%}", yes(share >= wanted)])]


FLOOR = ["what", "measured", "its matrix products alone", "attention's batched products",
         "the products' share", "wanted", "reached"]

FLOOR_NOTE = f"""\
The products are those of the step's passes with their real shapes, in {min(4, CORES)} processes of
one thread at the same time, each with the faster of PyTorch's kernels; a prompt is read once for
its group.  Training includes the reward and the update.  Attention's are not in the share."""


# ---- the rows of `peers`

PEERS = {
    "dpo": f"DPO, {PAIRS} pairs of {{}} tokens, the reference asked at each step; DPOTrainer",
    "dpo-once": f"DPO, {PAIRS} pairs of {{}} tokens, the reference asked once, beforehand; "
                "DPOTrainer, `precompute_ref_log_probs`",
    "kto": f"KTO, {2 * PAIRS} answers of {{}} tokens with their prompts; KTOTrainer",
    "reward": f"reward model, {PAIRS} pairs of {{}} tokens; RewardTrainer",
    "rloo": f"RLOO, KL {KL}, {PROMPTS} x {GROUP} answers of {{}} tokens; RLOOTrainer",
    "grpo-kl": f"GRPO, KL {KL} (k3), {PROMPTS} x {GROUP} answers of {{}} tokens; GRPOTrainer",
    "distill": f"distillation on the student's own answers, forward KL, {PROMPTS * GROUP} answers "
               "of {} tokens; DistillationTrainer (GKD)",
}


def method_rows(bench, job):
    """A step of a method on both sides."""
    steps = 5 if bench.quick else 15
    found = bench.rounds(3, **{side: lambda _, side=side: bench.job(side, job, steps,
                                                                    module=METHODS)
                               for side in ("own", "peer")})
    first = [median(result["losses"][0] for result in results) for results in found.values()]
    if job == "distill" and abs(first[0] / first[1] - 1) > ALIKE:
        raise Failed(f"the first divergences differ: {first[0]:.4f} for minipost, {first[1]:.4f} "
                     "for the peer")
    return [row(PEERS[job].format(same_work(found)), column(step_time, found["own"]),
                column(step_time, found["peer"]), ms, (">=", 1.8))]


def ppo_rows(bench):
    """PPO's update beside its products."""
    found = bench.rounds(
        3, own=lambda _: bench.job("own", "ppo", 5 if bench.quick else 15, module=METHODS),
        floor=lambda _: bench.job("own", "floor", 1, module=METHODS))
    return [floor_row("PPO's update", [parts_of(r)["training"] for r in found["own"]],
                      [r["products"]["ppo"] for r in found["floor"]])]


NOTES = f"""\
minipost runs in its default number of processes ({min(4, CORES)} here, of one thread each), as a
user's run does.  The peer runs in one process with {CORES} threads where its row does not say
otherwise, in its fastest settings: float32 (`bf16=False`), no gradient checkpointing,
`optim="adamw_torch_fused"`, no logging, evaluation or saving, no loader workers, dynamic cache.

Both: AdamW, the same learning rate, no weight decay, gradients clipped to norm 1, no KL (beta 0),
temperature 1, and one update per rollout of {PROMPTS} prompts x {GROUP} completions of up to
{ROOM} tokens.  The model has random weights: 4 layers, width 128, 4 heads, FFN 344, 512 tokens,
{{parameters:,}} parameters.  The time to an accuracy starts from the base model instead, with
minipost's default GRPO settings but beta 0 on both sides and the same prompts at each step; every
{EVERY} steps, outside the clock, {HELD_OUT} held-out problems are sampled.

Medians over alternated fresh processes, 5 rounds (3 for the time to an accuracy); a step is the
median of its process after {WARM} warm-up steps.  The ratio is peer/minipost where the row does not
say otherwise; in brackets the lowest and highest of the pairs."""


PEERS_NOTE = f"""\
Settings as in the part `speed`, but 3 rounds.  Where no answers are sampled, the rows are the same
in the same order, a prompt of 16 tokens and an answer of 48 each, and the first {LOSSES} losses of
both sides agree to {SAME}, at a learning rate of {FAST}.  Where answers are sampled, their mean
lengths, and the first divergence of distillation, agree to {ALIKE:.0%}.  Else the row would say
that it failed.  The teacher is another model of the same size."""


@contextmanager
def prepared(args, *sides):
    """A Bench with the inputs of these sides' jobs, or None where a library is not installed."""
    libraries = ("trl", "transformers") if "peer" in sides else ()
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {' and '.join(missing)} cannot be imported here "
              "(pip install -e '.[bench]')")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="minipost-bench-") as folder:
        bench = Bench(Path(folder), args.model, args.quick)
        try:
            bench.size = bench.job("prepare", "files", 0, model=folder)["parameters"]
            for side in sides:
                bench.job(side, "grpo", 1)  # writes bytecode and fills the file cache
        except Failed as failure:
            print(f"skipped: {failure}")
            bench = None
        yield bench


def made(parts, bench, blanks):
    """The rows of these parts, {name: part}.  A part that fails has one row that says so."""
    rows = []
    for name, part in parts.items():
        print(name, flush=True)
        try:
            rows += part(bench)
        except Failed as failure:
            rows.append([f"failed: {name}: {failure}", *[""] * blanks, "no"])
    return rows


COLUMNS = ["what; peer", "minipost", "peer", "ratio [min, max over pairs]", "wanted", "reached"]


def noise(bench):
    return (f"Rounds done again because something else took over {NOISE:.0%} of the CPUs: "
            f"{bench.discarded}; most that it took in a round that counts: {bench.worst:.0%}.")


def speed(args):
    """GRPO, sampling, SFT and the start beside the public libraries."""
    with prepared(args, "own", "peer") as bench:
        if bench is None:
            return
        rows = made({part.__name__: part for part in (
            grpo_rows, memory_rows, sample_rows, sft_rows, import_rows, reach_rows)}, bench, 4)
    write(args.out, "speed", [
        "## Speed, side by side", "", machine("transformers", "trl"), "",
        "`python -m scripts.bench speed`", "", *table(COLUMNS, rows), "",
        NOTES.format(parameters=bench.size), "", *bench.notes, noise(bench), "",
        *table(FLOOR, bench.floor), "", FLOOR_NOTE,
    ])


def peers(args):
    """A step of every other method that TRL has, and PPO's update beside its products."""
    with prepared(args, "own", "peer") as bench:
        if bench is None:
            return
        rows = made({job: lambda bench, job=job: method_rows(bench, job) for job in PEERS}, bench,
                    4)
        alone = made({"ppo": ppo_rows}, bench, 5)
    write(args.out, "peers", [
        "## A step of other methods, side by side", "", machine("transformers", "trl"), "",
        "`python -m scripts.bench peers`", "", *table(COLUMNS, rows), "", PEERS_NOTE, "",
        *table(FLOOR, alone), "",
        "TRL has no PPO any more.  Its update here: policy, reference and critic look at "
        f"{PROMPTS * GROUP} answers to as many prompts, then policy and critic learn from them in "
        "one gradient step.", "", noise(bench),
    ])
