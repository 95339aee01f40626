"""What coding the fixed weights in 8 or 4 bits costs and saves: `python -m scripts.bench bits`."""

import math
from statistics import fmean

import torch

import minipost
from minipost import checkpoint
from minipost.engine.coded import BLOCK, SCALES, code
from minipost.engine.lora import linears
from minipost.measure.results import evaluate
from minipost.measure.stats import t_interval
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.recall import Recall
from scripts import bench_memory
from scripts.pages import machine, table, write

MODEL = "checkpoints/thinker"
TASKS = {"sums in steps": Arithmetic(), "sums at once": Arithmetic(direct=True),
         "sums in a hurry": Arithmetic(hurried=True), "recall": Recall(episodes=2)}
BITS = (0, 8, 4)  # 0: as they are
GRPO = {"steps": 20, "prompts": 16, "beta": 0.0, "lr": 2e-3}
RANK = 4


def named(bits):
    return f"{bits} bits" if bits else "float32"


def coded(bits):
    module, vocabulary = checkpoint.load(MODEL)
    return code(module, bits) if bits else module, vocabulary


def bits_of_a_weight(module):
    """Of the matrices of the layers, scales included."""
    linear = [each for _, each, _ in linears(module)]
    held = sum(8 * p.numel() * p.element_size() for each in linear for p in each.parameters())
    return held / sum(each.weight.numel() for each in linear)


@torch.no_grad()
def error(module, whole):
    """|W' - W| / |W| over all matrices of the layers."""
    pairs = [(one.weight, other.weight) for (_, one, _), (_, other, _) in
             zip(linears(module), linears(whole))]
    return math.sqrt(sum(float((one - other).square().sum()) for one, other in pairs)
                     / sum(float(other.square().sum()) for _, other in pairs))


@torch.no_grad()
def perplexity(run, n):
    """exp of the mean loss of a token of the task's own answers to held-out problems."""
    problems = run.task.heldout(n)
    seqs = run.encode(problems, [run.task.demonstrate(p, run.rng(k))
                                 for k, p in enumerate(problems)])
    total = sum(float(logprobs(run.policy.module, seqs[torch.arange(k, min(k + 32, len(seqs)))])
                      .sum()) for k in range(0, len(seqs), 32))
    return math.exp(-total / int(seqs.mask.sum()))


def held(model, bits, rank=16):
    """Bytes that a run with --dtype bfloat16 --lora holds, where layers' weights are coded."""
    matrices = sum(p.numel() for name, p in model.named_parameters()
                   if name.endswith(tuple(f"{kind}.weight" for kind in bench_memory.MATRICES)))
    a_weight = bits / 8 + 1 / BLOCK + 4 / (BLOCK * SCALES)  # its code, and those of its scales
    whole = bench_memory.held(model, bench_memory.Way("bfloat16", lora=rank))
    return whole - (2 - a_weight) * matrices if bits else whole


def memory():
    """A row for each size of the table of memory."""
    return [[name, *(bench_memory.gb(held(bench_memory.model_of(shape, "bfloat16"), bits))
                     for bits in BITS)] for name, shape in bench_memory.SHAPES.items()]


def before(n):
    """A row for each way: what coding alone does."""
    whole, rows = coded(0)[0], []
    for bits in BITS:
        module, vocabulary = coded(bits)
        cells = [named(bits), f"{bits_of_a_weight(module):.2f}", f"{error(module, whole):.4f}"]
        for task in TASKS.values():
            run = Run(Learner(whole), vocabulary, task, task.reward, max_new_tokens=64)
            run.policy.module = module  # which nothing trains here
            found = evaluate(run, task.heldout(n), 0.0).score
            cells.append(f"{perplexity(run, n):.4f}; {found}")
        rows.append(cells)
    return rows


def trained(bits, seed, n, steps):
    """Greedy accuracy after GRPO beside such weights: on them, and on the whole ones."""
    task = TASKS["sums in a hurry"]
    run = minipost.open(MODEL, task="arithmetic", hurried=True, lora=RANK, base_bits=bits,
                        seed=seed)
    for _ in minipost.train(run, "grpo", **{**GRPO, "steps": steps}):
        pass
    found = [evaluate(run, task.heldout(n), 0.0).score.value]
    for (_, linear, _), (_, whole, _) in zip(linears(run.policy.module), linears(coded(0)[0])):
        if bits:
            linear.become(whole.weight.detach())
    return [*found, evaluate(run, task.heldout(n), 0.0).score.value]


def bits(args):
    n, seeds = (8, 2) if args.quick else (400, 3)
    rows, each = before(n), {way: [trained(way, seed, n, 2 if args.quick else GRPO["steps"])
                                   for seed in range(seeds)] for way in BITS}
    after = [[named(way), *(f"{fmean(one[k] for one in found):.3f}" for k in range(2)),
              *(t_interval([one[k] - base[k] for one, base in zip(found, each[0])]).effect()
                if way else "" for k in range(2))] for way, found in each.items()]
    write(args.out, "bits", [
        "## Weights in 8 and 4 bits", "", machine(), "",
        f"`python -m scripts.bench bits`; {MODEL}, the matrices of its layers coded as "
        f"`--base-bits` does (engine/coded.py: NF4 or 8 bits, blocks of {BLOCK}, scales coded in "
        f"blocks of {SCALES}).  Of each task: perplexity of the task's own answers to {n} held-out "
        "problems, and greedy accuracy with its 95% interval.  Error: |W' - W| / |W|.", "",
        *table(["weights", "bits a weight", "error", *TASKS], rows), "",
        f"GRPO beside them on sums in a hurry: `--lora {RANK} --base-bits B`, "
        f"{GRPO['steps']} steps of {GRPO['prompts']} x 8 answers, rate {GRPO['lr']}; greedy "
        f"accuracy on {n} held-out problems, mean of {seeds} seeds, and its lead over float32 with "
        "the 95% interval, paired by seed.  The adapter is saved for the whole weights, so it is "
        "measured on them too.", "",
        *table(["weights", "after, on them", "after, on the whole weights", "lead, on them",
                "lead, on the whole weights"], after), "",
        "Computed: GB that a run with `--dtype bfloat16 --lora 16` holds, for models of Qwen2.5's "
        "shapes (`python -m scripts.bench memory`).  A product holds one whole matrix more for a "
        "moment; opening the model and sampling hold all of them.", "",
        *table(["size", *("bfloat16" if not way else named(way) for way in BITS)], memory())])
