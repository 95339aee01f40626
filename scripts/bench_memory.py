"""The memory of a training run: bytes of a parameter and of a token, and what fits a GPU of 80 GB.

    python -m scripts.bench memory

The figures follow from what the engine holds (optim.Learner, GPT.bytes_per_token, engine/head.py).
For two models of random weights they are held to what a process on this machine really takes.

    python -m scripts.bench_memory step --kind sft --model DIR --out RESULT.json    one such process
"""

import argparse
import json
import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from minipost.engine.block import recompute
from minipost.engine.head import WHOLE, bytes_of_a_piece
from minipost.families import Family
from minipost.gpt import AND_BACK, GPT, GPTConfig
from minipost.run import CPU_BYTES, GPU_SHARE
from scripts.alternate import Failed, measure
from scripts.pages import machine, table, write

CARD = 80e9           # bytes of a GPU
RANK = 16             # of the adapters in the table
SIZES = {"float32": 4, "bfloat16": 2}
MATRICES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def qwen(*shape, vocab=151_936, tied=True):
    """A model of Qwen2.5's shape: hidden, intermediate, layers, heads, key/value heads."""
    hidden, inner, layers, heads, kv = shape
    return GPTConfig(vocab, hidden, inner, layers, heads, kv, hidden // heads, 32_768,
                     tie_word_embeddings=tied, family=Family(qkv_bias=True))


SHAPES = {"0.5B": qwen(896, 4864, 24, 14, 2), "1.5B": qwen(1536, 8960, 28, 12, 2),
          "3B": qwen(2048, 11_008, 36, 16, 2),
          "7B": qwen(3584, 18_944, 28, 28, 4, vocab=152_064, tied=False)}
MEASURED = {"12M": GPTConfig(4096, 384, 1024, 6, 6, 6, 64, 2048),
            "135M": GPTConfig(49_152, 576, 1536, 30, 9, 3, 64, 2048)}
TRIAL = {"tiny": GPTConfig(512, 32, 48, 2, 2, 2, 16, 256)}


def model_of(config, dtype="float32"):
    """A model without weights, for its numbers."""
    with torch.device("meta"):
        return GPT(config).to(getattr(torch, dtype))


# ---- what is held

@dataclass(frozen=True)
class Way:
    """How a run trains: the flags that its memory depends on.

    reference: whether a copy of the starting policy is kept, for a KL.  lora: the rank, 0 for none.
    shards: ranks among which --shard divides.
    """

    dtype: str = "float32"
    reference: bool = True
    lora: int = 0
    shards: int = 1

    def flags(self):
        found = [f"--dtype {self.dtype}"] if self.dtype != "float32" else []
        found += [f"--lora {self.lora}"] if self.lora else []
        found += [f"--shard on {self.shards} GPUs"] if self.shards > 1 else []
        found += ["without a KL (--beta 0)"] if not self.reference and not self.lora else []
        return " ".join(found) or "the defaults"


def parameters(model):
    return sum(weight.numel() for weight in model.parameters())


def adapters(model, rank):
    """Parameters of adapters of this rank on every matrix of the layers, those stored as one apart.

    W + B A has A (rank, inputs) and B (outputs, rank).
    """
    total, together = 0, {"qkv_proj": 3, "gate_up_proj": 2}  # how many matrices are stored as one
    for name, weight in model.named_parameters():
        kind = next((kind for kind in MATRICES if name.endswith(f"{kind}.weight")), None)
        if kind:
            total += rank * (weight.shape[0] + together.get(kind, 1) * weight.shape[1])
    return total


def per_parameter(dtype):
    """Bytes of a parameter that learns, by what they are."""
    held = {"weight": SIZES[dtype], "gradient": 4, "first moment": 4, "second moment": 4}
    return held if dtype == "float32" else {**held, "float32 weight": 4}


def held(model, way):
    """Bytes that a run holds in one rank from its first to its last step."""
    count, size = parameters(model), SIZES[way.dtype]
    learnt = sum(per_parameter(way.dtype).values())
    if way.lora:  # the reference is the policy without its adapters
        whole = size * count + learnt * adapters(model, way.lora)
    else:
        whole = (learnt + size * way.reference) * count
    if way.shards == 1:
        return whole
    return whole / way.shards + unsharded(model, way)


def unsharded(model, way):
    """Bytes that a pass gathers of a sharded model: two layers, and the largest matrix beside.

    One layer is gathered while the one before is computed, each with its gradient where it learns.
    """
    layer = sum(weight.numel() for weight in model.layers[0].parameters())
    learnt = 1 if way.lora else 2
    return SIZES[way.dtype] * learnt * (2 * layer + model.embed_tokens.weight.numel())


def of_a_pass(model, tokens):
    """Bytes that a training pass of so many tokens takes beside what is held."""
    logits = tokens * model.config.vocab_size
    head = 24 * logits if logits <= WHOLE else bytes_of_a_piece(model.config.vocab_size)
    return AND_BACK * model.bytes_per_token * tokens + head


def cached(model):
    """Bytes of a token's keys and values in all layers, while answers are sampled."""
    c = model.config
    size = model.embed_tokens.weight.element_size()
    return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size


# ---- the table

WAYS = (Way(), Way("bfloat16"), Way(reference=False), Way("bfloat16", lora=RANK),
        *(Way("bfloat16", shards=n) for n in (2, 4, 8)))


def fitting(config):
    """(Way, room for passes in tokens with checkpointing) of the first way that fits, or None.

    A pass, or the caches of sampling, take GPU_SHARE of the card, so the rest is for what is held.
    """
    for way in WAYS:
        model = recompute(model_of(config, way.dtype))
        if held(model, way) <= (1 - GPU_SHARE) * CARD:
            return way, model.tokens_within(int(GPU_SHARE * CARD))
    return None


def gb(count):
    return f"{count / 1e9:.1f}"


def kb(count):
    return f"{count / 1e3:,.0f}"


def rows():
    """The rows of the computed table, a size each."""
    found = []
    for name, config in SHAPES.items():
        model, half = model_of(config), model_of(config, "bfloat16")
        way, tokens = fitting(config)
        found.append([
            name, f"{parameters(model) / 1e9:.2f}",
            gb(held(model, Way(reference=False))), gb(held(model, Way())),
            gb(held(half, Way("bfloat16"))), gb(held(half, Way("bfloat16", lora=RANK))),
            gb(held(half, Way("bfloat16", shards=8))),
            kb(half.bytes_per_token), kb(recompute(half).bytes_per_token), kb(cached(half)),
            way.flags(), f"{tokens:,}"])
    return found


def memory(args):
    """The table, computed, and two models measured."""
    measured, wide = [], sum(per_parameter("float32").values())
    both = sum(per_parameter("bfloat16").values())
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (TRIAL if args.quick else MEASURED).items():
            create(f"{folder}/{name}", config)
            for kind in ("sft", "grpo"):
                print(f"{name}, {kind}", file=sys.stderr, flush=True)
                measured.append([name, kind, *step_of(f"{folder}/{name}", kind, folder)])
    write(args.out, "memory", [
        "## Memory", "",
        "`python -m scripts.bench memory`; computed from what the engine holds, for models of "
        f"Qwen2.5's shapes.  A parameter that learns takes {wide} bytes in float32 (weight, "
        f"gradient, two moments of AdamW) and {both} with `--dtype bfloat16`, which keeps float32 "
        "weights beside; the copy for a KL takes 4 or 2 more.  So bfloat16 saves tokens' bytes and "
        f"not parameters'.  With `--lora {RANK}` the weights are held once, and no copy; `--shard` "
        "divides all by the number of GPUs, but for what a pass gathers (two layers and the "
        "embedding).", "",
        *table(["size", "parameters, 1e9", "float32, no KL, GB", "float32, KL, GB",
                "bfloat16, KL, GB", f"bfloat16, LoRA {RANK}, GB", "bfloat16, KL, 8 shards, GB",
                "a token, bfloat16, kB", "the same, --gradient-checkpointing, kB",
                "a token's cache, kB", "fits 80 GB with", "tokens of a pass then"], rows()), "",
        f"A pass, or the caches of sampling, take up to {GPU_SHARE:.0%} of a GPU's memory, so what "
        "is held fits where it is at most the rest; the flags are the first that do, of "
        f"{'; '.join(way.flags() for way in WAYS)}.  Tokens of a pass are with "
        f"`--gradient-checkpointing`, at {AND_BACK} times what the layers keep of a token: the way "
        "back makes tensors of its own.", "",
        "Measured on this machine, in float32 with random weights: the most memory that a process "
        "has taken after a step with a KL (grpo) or without (sft), less what it had before the "
        "model was opened.  " + machine(), "",
        *table(["size", "step", "computed, held, GB", "computed, with a pass, GB", "measured, GB",
                "measured / computed"], measured), ""])


# ---- what a process takes

def create(folder, config):
    from scripts.bench_scale import create as directory

    directory(folder, config)


def step_of(folder, kind, scratch):
    """The cells of a measured step."""
    out = Path(scratch) / "result.json"
    out.unlink(missing_ok=True)
    try:
        measure([sys.executable, "-m", "scripts.bench_memory", "step", "--kind", kind, "--model",
                 folder, "--out", str(out)])
        found = json.loads(out.read_text())
    except Failed as error:
        return ["", "", f"failed: {str(error)[:80]}", ""]
    computed = found["held"] + found["pass"]
    return [f"{found['held'] / 1e9:.2f}", f"{computed / 1e9:.2f}", f"{found['taken'] / 1e9:.2f}",
            f"{found['taken'] / computed:.2f}"]


def taken_now():
    """Bytes of memory that this process has at the moment."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def noted_passes(run):
    """A list that receives the tokens of every training pass of a run."""
    most, cut = [0], run.micro_batches

    def noted(rows, *seqs, **options):
        for part in cut(rows, *seqs, **options):
            most.append(sum(int(seq[part].spans()[1].sum()) for seq in seqs))
            yield part

    run.micro_batches = noted
    return most


def step(args):
    """Two steps of SFT or GRPO in this process, and what they took."""
    from minipost import checkpoint, parallel
    from minipost.methods import grpo, sft
    from minipost.optim import Learner
    from minipost.run import Run
    from scripts.bench_peer import Digits, letter_share

    parallel.keep_memory()
    before = taken_now()
    module, vocabulary = checkpoint.load(args.model)
    vocabulary.eos = frozenset([vocabulary.tokenizer.vocab_size])           # never drawn
    run = Run(Learner(module), vocabulary, Digits(31), letter_share, max_new_tokens=64)
    most = noted_passes(run)
    if args.kind == "sft":
        run.task.demonstrate = lambda problem, rng: "7" * 63
        learn = sft.train(run, sft.Config(steps=2, batch_size=32))
    else:
        learn = grpo.train(run, grpo.Config(steps=2, prompts=4, group_size=8, minibatch_size=32))
    for _ in range(2):
        next(learn)
        run.step += 1
    way = Way(reference=args.kind == "grpo")
    found = {"held": held(module, way), "pass": min(of_a_pass(module, max(most)), 2 * CPU_BYTES),
             "tokens": max(most), "updates": run.policy.updates,
             "taken": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}
    args.out.write_text(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", choices=("step",))
    parser.add_argument("--kind", choices=("sft", "grpo"), required=True)
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    step(parser.parse_args())


if __name__ == "__main__":
    main()
