"""How cost grows: GRPO steps and sampling by size of model, prompt, answer and group.

    python -m scripts.bench scale

From one centre per model, one thing grows at a time.  minipost and TRL make the same steps, each in
a fresh process that has a limit of time and of memory.  What does not fit the budget is left out,
and the table says so.

    python -m scripts.bench scale --rest                                what was left out, too
    python -m scripts.bench_scale draw                                  the plot, once more
    python -m scripts.bench_scale own --model DIR ... --out RESULT.json one process of a measurement
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from minipost.gpt import GPT, GPTConfig
from scripts.alternate import CORES, ROOT, Bench, Failed, measure
from scripts.bench_peer import LR, Digits, each_step, grpo_trainer, letter_share
from scripts.floor import floor
from scripts.pages import machine, table, write

BUDGET = 19 * 60    # seconds of the whole part
STEPS = 8           # most steps of a process; the first is left out where there are more
ENOUGH = 8.0        # seconds of steps after the first that suffice
LONG = 20.0         # seconds of a first step that is measured itself
START = {"own": 6, "peer": 14}  # estimated seconds until a process has made its first small step
SLOWER = {"own": 3, "peer": 4}  # estimated time of a step: so many times its floor, and so many
CALLS = {"own": 2e-4, "peer": 1.5e-3}  # seconds for each layer and token of an answer
LIMIT = 3           # a process is ended after so many times its estimate,
SHORTEST, LONGEST = 60, 290  # within these seconds
RESULTS = ROOT / "runs" / "scale.json"
MEMORY = 0.6        # share of the machine's memory that a process tree may take
SIDES = {"own": "minipost", "peer": "TRL"}


@dataclass(frozen=True)
class Point:
    """One size of a GRPO step."""

    prompts: int
    prompt_tokens: int
    group_size: int
    new_tokens: int

    @property
    def rows(self):
        return self.prompts * self.group_size

    @property
    def tokens(self):
        """Tokens that a plain implementation reads and samples."""
        return self.rows * (self.prompt_tokens + self.new_tokens)

    def __str__(self):
        return (f"{self.prompts} x {self.group_size} answers of {self.new_tokens}, prompts of "
                f"{self.prompt_tokens}")


@dataclass(frozen=True)
class Scale:
    """A size of model, the centre of its points, and its share of the budget.

    peer_tokens: tokens in one forward and backward pass of the peer, a number that its activations
    leave room for.
    """

    name: str
    config: GPTConfig
    centre: Point
    share: float
    peer_tokens: int

    def points(self):
        """The centre, then one thing at a time in the sizes that it grows to."""
        found = [self.centre]
        for axis, sizes in AXES.items():
            found += [replace(self.centre, **{axis: size}) for size in sizes]
        return list(dict.fromkeys(found))


AXES = {"new_tokens": (48, 256, 1024), "prompt_tokens": (16, 512), "group_size": (8, 64)}
WORDS = {"new_tokens": "tokens of an answer", "prompt_tokens": "tokens of a prompt",
         "group_size": "answers of a group"}
CONTEXT = 2048
SCALES = (
    Scale("0.86M", GPTConfig(512, max_position_embeddings=CONTEXT), Point(8, 16, 8, 256), 0.2,
          2**15),
    Scale("12M", GPTConfig(4096, 384, 1024, 6, 6, 6, 64, CONTEXT), Point(2, 16, 8, 256), 0.3,
          2**13),
    Scale("135M", GPTConfig(49_152, 576, 1536, 30, 9, 3, 64, CONTEXT), Point(1, 16, 8, 48), 0.5,
          2**11),
)

TRIAL = (Scale("tiny", GPTConfig(512, 32, 48, 1, 2, 2, 16, CONTEXT), Point(2, 4, 2, 8), 1.0, 512),)


# ---- what is measured

def floor_of(config, point):
    """{"sampling": s, "step": s} of the matrix products alone, each core doing its part of them."""
    parts = {"prompts": point.prompts, "group_size": point.group_size}
    split = next((n for n, size in parts.items() if size % CORES == 0), None)
    if split:
        parts[split] //= CORES
    found = floor(config, prompt_tokens=point.prompt_tokens, new_tokens=point.new_tokens,
                  threads=1 if split else CORES, **parts)
    return {"sampling": found["sampling"], "step": sum(found.values())}


def estimate(side, config, point, least):
    """Seconds that a process will take, from the floor of a step."""
    step = SLOWER[side] * least["step"] + \
        CALLS[side] * config.num_hidden_layers * point.new_tokens
    return START[side] + (step if step >= LONG else step + min(max(ENOUGH, step), STEPS * step))


def command(side, folder, scale, point, limit, out):
    options = {**asdict(point), "model": folder, "peer_tokens": scale.peer_tokens, "out": out}
    return ["timeout", "--kill-after=5", f"{limit:.0f}",
            sys.executable, "-m", "scripts.bench_scale", side,
            *(str(part) for name, value in options.items()
              for part in (f"--{name.replace('_', '-')}", value))]


def seconds(found, what):
    """The median seconds of a step, or of the sampling in it, without the first of several."""
    return median(found[what][1:] or found[what])


@dataclass
class Row:
    """What a point gave: by side the process's result, or what is said in its place."""

    size: str       # of the model
    point: Point
    least: dict
    found: dict

    def seconds(self, side, what):
        """Of a step ("steps") or the sampling in it ("sampling"); None where there is no result."""
        return seconds(self.found[side], what) if isinstance(self.found[side], dict) else None

    def cells(self):
        p, cells = self.point, []
        for what, least in (("steps", "step"), ("sampling", "sampling")):
            own, peer = (self.seconds(side, what) for side in SIDES)
            cells += [time_of(own) if own else self.found["own"],
                      time_of(peer) if peer else self.found["peer"],
                      f"{peer / own:.2f}" if own and peer else "",
                      f"{self.least[least] / own:.0%}" if own else ""]
        peaks = [f"{found['peak'] / 2**30:.2f}" if isinstance(found, dict) else ""
                 for found in (self.found[side] for side in SIDES)]
        return [self.size, f"{p.prompts} x {p.group_size}", str(p.prompt_tokens),
                str(p.new_tokens), *cells, " / ".join(peaks)]


def time_of(s):
    return f"{s:.1f} s" if s >= 10 else f"{s:.2f} s" if s >= 1 else f"{1000 * s:.0f} ms"


def scale(args):
    """Measure every point that fits the budget, and write table and plot.

    With args.rest, what the last call measured stands, and the budget is for what it left out.
    """
    missing = [name for name in ("trl", "transformers") if find_spec(name) is None]
    if missing:
        print(f"scale: skipped, {' and '.join(missing)} cannot be imported here "
              "(pip install -e '.[bench]')")
        return
    begun, left_out, share = time.monotonic(), [], 0.0
    rows = measured() if args.rest else []
    known = {(row.size, row.point) for row in rows}
    with tempfile.TemporaryDirectory(prefix="minipost-scale-") as folder:
        bench = Bench(Path(folder), args.model, args.quick)
        for size in TRIAL if args.quick else SCALES:
            share += size.share
            create(Path(folder) / size.name, size.config)
            # What costs least comes first, so that most points fit.
            for point in sorted(set(size.points()) - {p for name, p in known if name == size.name},
                                key=lambda point: (point.tokens, point.rows)):
                least = floor_of(size.config, point)
                needed = {side: estimate(side, size.config, point, least) for side in SIDES}
                about, left = sum(needed.values()), begun + share * BUDGET - time.monotonic()
                if about > left:
                    left_out.append(f"{size.name}, {point} (about {about:.0f} s)")
                    continue
                print(f"{size.name}, {point}: about {about:.0f} s of {left:.0f}", flush=True)
                bench.quick = args.quick or 2 * about > left  # then no round is done again
                rows.append(Row(size.name, point, least, both(bench, size, point, needed)))
    order = [size.name for size in (*SCALES, *TRIAL)]
    rows.sort(key=lambda row: (order.index(row.size), row.point.tokens, row.point.rows))
    picture = (args.out if args.quick else ROOT / "docs/pictures/scale").with_suffix(".svg")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(row) for row in rows]))
    if find_spec("matplotlib"):
        draw(picture, rows)
    else:
        print("no plot, because matplotlib cannot be imported (pip install -e '.[plot]'); then "
              "python -m scripts.bench_scale draw makes it from the same results")
    write(args.out, "scale", report(rows, left_out, bench, picture))


def measured():
    """The rows of the last call."""
    return [Row(**{**row, "point": Point(**row["point"])})
            for row in json.loads(RESULTS.read_text())]


def both(bench, size, point, needed):
    """What the two sides' processes gave: their results, or what is said in their place."""
    def process(side):
        out, start = bench.folder / "result.json", time.monotonic()
        limit = min(LONGEST, max(SHORTEST, LIMIT * needed[side]))
        out.unlink(missing_ok=True)
        try:
            whole = measure(command(side, bench.folder / size.name, size, point, limit, out),
                            watch=True)
        except Failed as failure:
            spent, said = time.monotonic() - start, str(failure)
            return {"others": 0.0, "seconds": spent, "said": f"over {limit:.0f} s" if spent >= limit
                    else f"over {memory() / 2**30:.0f} GiB" if out_of_memory(said)
                    else f"failed: {said[-80:]}"}
        return {**whole, **json.loads(out.read_text())}

    kept = bench.rounds(1, **{side: lambda _, side=side: process(side) for side in SIDES})
    return {side: found.get("said") or found for side, (found,) in kept.items()}


def out_of_memory(said):
    return any(word in said for word in ("can't allocate", "MemoryError", "Cannot allocate",
                                         "bad_alloc", "could not create a memory"))


# ---- the report

NOTES = """\
A row is one GRPO step: sampling, reward, and one update.  The models have random weights and the
shapes of `scripts/bench_scale.py`: {shapes}.  Prompts are random digits, answers have exactly the
length that the row says, and the rest is as in the table of speed: float32, the same weights,
reward and optimiser, beta 0.  minipost runs in its default number of processes and with its default
micro-batches.  TRL runs in one process with {cores} threads and as many rows in a pass as its
activations leave room for ({passes}).

A time is the median of a process after its first step, or that step if it took over {long:.0f} s.
A ratio is TRL/minipost.  The share is that of the matrix products alone in minipost's time
(`scripts/floor.py`: each of {cores} cores makes its part of them and nothing else).  Memory is the
peak of the process tree (PSS).  A process may take {memory:.0f} GiB and {limit} times its estimated
time, at most {longest} s; one that took more has no time in the table."""


def report(rows, left_out, bench, picture):
    """The lines of the part."""
    shapes = "; ".join(
        f"{s.name}: {c.num_hidden_layers} layers, width {c.hidden_size}, "
        f"{c.num_attention_heads} heads, {c.num_key_value_heads} of keys, FFN "
        f"{c.intermediate_size}, {c.vocab_size:,} tokens" for s in SCALES for c in [s.config])
    passes = ", ".join(f"{s.peer_tokens:,} tokens at {s.name}" for s in SCALES)
    columns = ["model", "prompts x group", "prompt", "answer",
               *(f"{what}{part}" for what in ("step", "sampling")
                 for part in (": minipost", ": TRL", ": ratio", ": share of products")),
               "memory, GiB: minipost / TRL"]
    return [
        "## How cost grows", "", machine("transformers", "trl"), "",
        "`python -m scripts.bench scale`, then `--rest` for what it left out.", "",
        *([f"![Time of a GRPO step and of its sampling, by size](docs/pictures/{picture.name})", ""]
          if picture.exists() else []),
        *table(columns, [row.cells() for row in rows]), "",
        NOTES.format(shapes=shapes, passes=passes, cores=CORES, long=LONG, limit=LIMIT,
                     longest=LONGEST, memory=memory() / 2**30), "",
        f"Left out, because the {BUDGET // 60} minutes of a call were not enough: "
        + ("; ".join(left_out) or "nothing") + ".", "",
        f"Rounds done again because something else took too much of the CPUs: {bench.discarded}; "
        f"most that it took in a round that counts: {bench.worst:.0%}."]


COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57")
LINES = {"own": ("-", "o"), "peer": ("--", "s")}


def draw(path, rows):
    """The plot: above a step, below its sampling; one column for each thing that grows."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = {row.size for row in rows}
    sizes = [size for size in (*TRIAL, *SCALES) if size.name in names]
    with matplotlib.rc_context({"svg.hashsalt": "minipost", "font.size": 9}):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        panels = figure.subplots(2, len(AXES), sharey="row", sharex="col", squeeze=False)
        for column, axis in enumerate(AXES):
            for line, (what, least) in enumerate((("steps", "step"), ("sampling", "sampling"))):
                axes = panels[line][column]
                for k, size in enumerate(sizes):
                    along = sorted((row for row in rows if row.size == size.name and
                                    replace(row.point, **{axis: getattr(size.centre, axis)})
                                    == size.centre), key=lambda row: getattr(row.point, axis))
                    colour = COLOURS[k % len(COLOURS)]
                    axes.plot([getattr(row.point, axis) for row in along],
                              [row.least[least] for row in along], color=colour, linestyle=":",
                              linewidth=1.4)
                    for side, (dash, mark) in LINES.items():
                        known = [(getattr(row.point, axis), row.seconds(side, what))
                                 for row in along if row.seconds(side, what)]
                        axes.plot(*zip(*known) if known else ([], []), color=colour,
                                  linestyle=dash, marker=mark, markersize=4, linewidth=1.6)
                axes.set(xscale="log", yscale="log")
                axes.set_xticks(AXES[axis], [f"{n:,}" for n in AXES[axis]])
                axes.minorticks_off()
                axes.grid(color="#dddddd", linewidth=0.6)
                axes.spines[["top", "right"]].set_visible(False)
            panels[1][column].set_xlabel(WORDS[axis])
        panels[0][0].set_ylabel("seconds of a GRPO step")
        panels[1][0].set_ylabel("seconds of its sampling")
        handles = [Line2D([], [], color=COLOURS[k % len(COLOURS)], label=size.name)
                   for k, size in enumerate(sizes)]
        handles += [Line2D([], [], color="#444444", linestyle=dash, marker=mark, markersize=4,
                           label=SIDES[side]) for side, (dash, mark) in LINES.items()]
        handles.append(Line2D([], [], color="#444444", linestyle=":",
                              label="matrix products alone"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles),
                      frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


# ---- one process

def create(folder, config):
    """A model directory of random weights, with a tokenizer that fills the model's vocabulary.

    A digit is one token.  What is added to the tokenizer of the base model spells no text.
    """
    from minipost import checkpoint
    from minipost.tokenizer import Backend, Tokenizer
    from scripts.pretrain import tokenizer

    raw = json.loads(tokenizer().backend.to_str())
    pieces = raw["model"]["vocab"]
    pieces |= {f"word{i}": i for i in range(len(pieces), config.vocab_size)}
    words = Tokenizer(Backend.from_str(json.dumps(raw)))
    checkpoint.create(folder, GPT(config).initialise(seed=0), words)


class Clock:
    """The seconds of some calls."""

    def __init__(self):
        self.seconds = []

    def around(self, act):
        def timed(*args, **options):
            start = time.monotonic()
            found = act(*args, **options)
            self.seconds.append(time.monotonic() - start)
            return found

        return timed


def enough(seconds):
    """Whether the steps that were made suffice: one long one, or a first one and some more."""
    return seconds[:1] >= [LONG] or sum(seconds[1:]) >= ENOUGH or len(seconds) >= STEPS


def own(args, point):
    """The steps of minipost, as a user's run makes them."""
    from minipost import checkpoint, parallel
    from minipost.methods import grpo
    from minipost.optim import Learner
    from minipost.run import Run

    def main():
        model, vocabulary = checkpoint.load(args.model)
        vocabulary.eos = frozenset([vocabulary.tokenizer.vocab_size])       # never drawn
        run = Run(Learner(model), vocabulary, Digits(point.prompt_tokens - 1), letter_share,
                  max_new_tokens=point.new_tokens)
        step, sampling = Clock(), Clock()
        run.rollout = sampling.around(run.rollout)
        cfg = grpo.Config(steps=STEPS, prompts=point.prompts, group_size=point.group_size,
                          minibatch_size=point.rows, beta=0.0, lr=LR)
        advance = step.around(grpo.train(run, cfg).__next__)
        while parallel.rank() or not enough(step.seconds):  # the others end with rank 0
            length = advance()["completions/mean_length"]
            run.step += 1
        return {"steps": step.seconds, "sampling": sampling.seconds, "length": length}

    workers = parallel.default_workers("cpu")
    limit_memory(workers)
    return parallel.launch(main, workers)


def peer(args, point):
    """The steps of TRL."""
    step, sampling, ends = Clock(), Clock(), []

    def tick(model, state, control):
        ends.append(time.monotonic())
        step.seconds = [b - a for a, b in zip(ends, ends[1:])]
        control.should_training_stop = enough(step.seconds)

    limit_memory(1)
    problems = Digits(point.prompt_tokens - 1).sample(point.prompts * STEPS)
    tokens = point.prompt_tokens + point.new_tokens
    size = next(n for n in range(point.rows, 0, -1)
                if point.rows % n == 0 and (n * tokens <= args.peer_tokens or n == 1))
    vars(args).update(steps=STEPS, seed=0)
    trainer = grpo_trainer(args, problems, letter_share, num_generations=point.group_size,
                           max_completion_length=point.new_tokens, per_device_train_batch_size=size,
                           gradient_accumulation_steps=point.rows // size)
    trainer.add_callback(each_step(tick))
    never = [trainer.model.config.vocab_size]                               # never drawn
    trainer.eos_token_ids = trainer.generation_kwargs["eos_token_id"] = never
    trainer.generation_config.eos_token_id = never
    trainer.model.generate = sampling.around(trainer.model.generate)
    lengths = []
    trainer.reward_funcs[0] = noting(lengths)
    trainer.train()
    return {"steps": step.seconds, "sampling": sampling.seconds, "length": median(lengths)}


def noting(lengths):
    """The reward, which also notes how long the completions are."""
    def reward(prompts, completions, completion_ids, **columns):
        lengths.extend(map(len, completion_ids))
        return letter_share(prompts, completions)

    return reward


def limit_memory(processes):
    """Let an allocation fail that would take more than this process's part of the memory."""
    most = memory() // processes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def memory():
    """Bytes that a process tree may take."""
    return int(MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def main():
    if sys.argv[1:] == ["draw"]:
        return draw(ROOT / "docs/pictures/scale.svg", measured())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--model", required=True, help="model directory")
    for field in fields(Point):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, required=True)
    parser.add_argument("--peer-tokens", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    args = parser.parse_args()
    point = Point(*(getattr(args, field.name) for field in fields(Point)))
    with tempfile.TemporaryDirectory() as args.scratch:
        found = {"own": own, "peer": peer}[args.side](args, point)
    args.out.write_text(json.dumps(found))
    return None


if __name__ == "__main__":
    main()
