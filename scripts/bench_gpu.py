"""A part of BENCHMARKS.md: `python -m scripts.bench gpu`.

What a GPU makes of a GRPO step and of sampling, in bfloat16, for random weights of two public
shapes, beside TRL and transformers where they are installed.  It needs no file and no network.  It
begins no job after seven and a half minutes and ends within eight.

Each job is a process of its own.  One that fails takes no other with it, and what it had measured
until then is kept:

    python -m scripts.bench_gpu sampling --shape SmolLM2-135M --out RESULT.json
"""

import argparse
import gc
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from minipost.engine import decode_cuda
from minipost.engine.lora import adapt
from minipost.engine.tree import Tree
from minipost.gpt import GPT, GPTConfig
from minipost.methods import grpo
from minipost.optim import Learner
from minipost.rollout import draw, generate, logprobs, next_logp, repeats, uniforms
from minipost.run import Run
from minipost.tasks.base import Problem, Task
from minipost.tokenizer import BOS, EOS, PAD, Tokenizer, Vocabulary
from scripts.bench_peer import each_step
from scripts.pages import machine, table, write

ROOT = Path(__file__).resolve().parents[1]
LAST_BEGIN, END, LONGEST = 450, 475, 150  # seconds: of the whole part twice, and of one job
WARM = 2                                  # first steps, left out of all medians
LR = 1e-5
SHAPES = {
    "SmolLM2-135M": GPTConfig(49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                              num_attention_heads=9, num_key_value_heads=3, head_dim=64,
                              max_position_embeddings=8192, rope_theta=1e5),
    "0.5B": GPTConfig(151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                      num_attention_heads=14, num_key_value_heads=2, head_dim=64,
                      max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=1e6),
}
# TFLOP/s of dense products in bfloat16, by a part of the card's name: makers' data sheets.
PEAKS = (("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989), ("H200", 989), ("H800", 989),
         ("A100", 312), ("A800", 312), ("L40S", 362), ("B200", 2250))


@dataclass(frozen=True)
class Job:
    """What is measured, and on what."""

    config: GPTConfig
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    prompts: int = 8
    group_size: int = 8
    prompt: int = 64    # tokens of a prompt, BOS included
    new: int = 256      # tokens of an answer
    many: int = 512     # rows of the larger batch
    steps: int = 4      # measured, after WARM
    mixed: int = 40     # prompts of different lengths in the check, 4 rows each
    checked: int = 272  # longest answer in the check, longer than a recording lasts
    lora: int = 0       # rank of adapters, 0 for none

    @property
    def rows(self):
        return self.prompts * self.group_size


# ---- a made-up language

def words(size):
    """A tokenizer of so many ids: PAD, BOS, EOS, and the numbers from 3 on as words."""
    ids = {PAD: 0, BOS: 1, EOS: 2} | {str(n): n for n in range(3, size)}
    backend = Backend(models.WordLevel(ids, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([PAD, BOS, EOS])
    return backend


@dataclass
class Numbers(Task):
    """Prompts of random words.  All processes draw the same."""

    size: int
    length: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def sample(self, n, rng=None):
        """The next n problems.  `rng` is not used."""
        return [Problem(" ".join(map(str, self.rng.choices(range(3, self.size), k=self.length))))
                for _ in range(n)]


def even(prompts, completions, **columns):
    """A cheap reward that differs between siblings: the share of even numbers."""
    return [sum(word[-1] in "02468" for word in text.split()) / max(1, len(text.split()))
            for text in completions]


def model(job):
    """A GPT of the job's shape with random weights."""
    torch.manual_seed(0)
    with torch.device(job.device):
        gpt = GPT(job.config)
        for weight in gpt.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.02)
    gpt = gpt.to(job.dtype)
    return adapt(gpt, job.lora) if job.lora else gpt


class Timed(Run):
    """A Run that notes what its parts take.  The update is what is left of a step."""

    def __post_init__(self):
        super().__post_init__()
        self.spent = {}

    def timed(self, part, ask, given, options):
        start = clock(self.policy.module.device)
        found = ask(*given, **options)
        taken = clock(self.policy.module.device) - start
        self.spent[part] = self.spent.get(part, 0.0) + taken
        return found

    def complete(self, *given, **options):
        return self.timed("sampling", super().complete, given, options)

    def logprobs(self, *given, **options):
        return self.timed("recomputed", super().logprobs, given, options)

    def score(self, *given, **options):
        return self.timed("reward", super().score, given, options)


def make_run(job, micro_batch_size=16):
    """The Run that open_run makes of a command line, on a model that no file holds."""
    size = job.config.vocab_size
    return Timed(Learner(model(job)), Vocabulary(Tokenizer(words(size)), [1], {2}, 0, [0]),
                 Numbers(size, job.prompt - 1), even, max_new_tokens=job.new,
                 micro_batch_size=micro_batch_size, recompute=job.dtype != torch.float32)


# ---- measuring

def clock(device):
    """Seconds, once the GPU has done all that it was asked."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory():
    """Most GiB that tensors held at once since `forget`; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def forget():
    """Give back the memory of what is gone, and measure the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def as_large_as_fits(sizes, work):
    """work(size) with the first of these micro-batch sizes that fits into the memory."""
    for size in sizes:
        forget()
        try:
            return work(size)
        except torch.OutOfMemoryError as error:
            said = str(error)
        print(f"  micro-batches of {size} do not fit", flush=True)
    raise RuntimeError(f"micro-batches of {sizes[-1]} do not fit: {said}")


def halves(rows):
    """rows, rows/2, ... down to 8 or so."""
    return [rows >> k for k in range(max(1, rows.bit_length() - 3))]


def update_flops(config, prompt, new):
    """Floating-point operations of forward and backward for one row, as a model's are counted.

    Six per weight and token, with the output matrix for the answer's tokens alone.  Attention is
    counted as causal: half of its square.  Nothing is computed again.
    """
    read = prompt + new - 1                                             # tokens per row
    wide = config.num_attention_heads * config.head_dim
    qkv = wide + 2 * config.num_key_value_heads * config.head_dim
    weights = config.hidden_size * (qkv + wide + 3 * config.intermediate_size)
    pairs = read * (read + 1) // 2
    layers = config.num_hidden_layers * (weights * read + 2 * wide * pairs)
    return 6 * (layers + config.vocab_size * config.hidden_size * new)


def peak_flops():
    """FLOP/s of this card in bfloat16, or None where it is not in the table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((1e12 * peak for part, peak in PEAKS if part in name), None)


# ---- jobs: minipost

def check(job, note):
    """Whether the GPU decodes what the whole pass and the CPU's decoder compute, in float32.

    Rows end at different times, so all parts of the loop have their turn.
    """
    job, rng = replace(job, dtype=torch.float32), random.Random(0)
    gpt, size, group = model(job), job.config.vocab_size, 4
    prompts = [[1, *rng.choices(range(3, size), k=rng.randrange(job.prompt))]
               for _ in range(job.mixed)]
    options = dict(max_new_tokens=job.checked, eos=set(range(3, size, 64)), pad=0, seed=(1,))
    rollout = generate(gpt, prompts, group, **options)
    differences, equal, total = [], 0, int(rollout.mask.sum())
    note(tokens=total, longest=int(rollout.lengths.max()), whole=from_the_pass(gpt, rollout)[1])
    uniform = uniforms(prompts, group, job.checked, (1,), repeats(prompts)).to(gpt.device)
    first = torch.tensor([len(ids) for ids in prompts], device=gpt.device)
    first = first.repeat_interleave(group)                              # column of the first token
    going = torch.arange(len(first), device=gpt.device)                 # rows that go on
    with torch.no_grad():
        tree = Tree(gpt, prompts, job.checked, group)
        for t in range(int(rollout.lengths.max())):
            at = first[going] + t
            token, logp = rollout.tokens[going, at], rollout.logp[going, at - 1]
            logp_all = next_logp(tree.logits(), 1.0)
            differences.append((logp_all[tree.node, token] - logp).abs().max())
            equal += (draw(logp_all, uniform[going, t], tree.node) == token).sum()
            left = (rollout.lengths[going] > t + 1).nonzero()[:, 0]
            if len(left):
                tree.grow(left, token[left])
                going = going[left]
    note(eager=float(torch.stack(differences).max()), equal=float(equal) / total)
    gpt = gpt.to(torch.bfloat16)
    rollout = generate(gpt, prompts, group, **options)
    note(bfloat16=from_the_pass(gpt, rollout)[0])


def from_the_pass(gpt, rollout):
    """Mean and largest difference of a rollout's log-probs from those of training's pass."""
    with torch.no_grad():
        gaps = torch.cat([(logprobs(gpt, part) - part.logp)[part.mask].abs()
                          for part in (rollout[list(range(k, min(k + 16, len(rollout))))]
                                       for k in range(0, len(rollout), 16))])
    return float(gaps.mean()), float(gaps.max())


def sampling(job, note):
    """Tokens/s of `run.sample`, and what a recording takes."""
    run, seconds, record = make_run(job), [], decode_cuda.Recorded.record
    run.vocabulary.eos = frozenset([job.config.vocab_size])             # never drawn
    device = run.policy.module.device

    def timed(recorded):
        start = clock(device)
        record(recorded)
        seconds.append(clock(device) - start)

    def rate(rows, calls):
        problems, taken = run.task.sample(rows // job.group_size), []
        for run.step in range(1 + calls):
            start = clock(device)
            rollout = run.sample(problems, job.group_size, temperature=1.0)
            taken.append(clock(device) - start)
        return int(rollout.mask.sum()) / median(taken[1:])

    decode_cuda.Recorded.record = timed
    try:
        for name, rows in (("few", job.rows), ("many", job.many)):
            note(**{name: rate(rows, job.steps)})
        if seconds:
            note(recording=median(seconds))
    finally:
        decode_cuda.Recorded.record = record
    os.environ[decode_cuda.SWITCH] = "0"
    try:
        note(unrecorded=rate(job.rows, 1))
    finally:
        del os.environ[decode_cuda.SWITCH]


def step(job, note):
    """GRPO steps as a user's run makes them: split into parts, peak memory, and FLOP/s."""
    as_large_as_fits(halves(job.rows), lambda size: grpo_steps(job, note, size))


def grpo_steps(job, note, micro_batch_size):
    run = make_run(job, micro_batch_size)
    cfg = grpo.Config(steps=WARM + job.steps, prompts=job.prompts, group_size=job.group_size,
                      minibatch_size=job.rows, beta=0.0, lr=LR)
    learn, whole, spent, lengths = grpo.train(run, cfg), [], [], []
    for run.step in range(cfg.steps):
        run.spent, start = {}, clock(job.device)
        metrics = next(learn)
        whole.append(clock(job.device) - start)
        spent.append({**run.spent, "update": whole[-1] - sum(run.spent.values())})
        lengths.append(metrics["completions/mean_length"])
    parts = {name: median(each[name] for each in spent[WARM:]) for name in spent[0]}
    note(step=median(whole[WARM:]), **parts, micro_batch_size=micro_batch_size,
         length=mean(lengths[WARM:]), memory=peak_memory())
    flops = job.rows * update_flops(job.config, job.prompt, round(mean(lengths[WARM:])))
    note(tflops=flops / parts["update"] / 1e12)
    if peak_flops():
        note(mfu=flops / parts["update"] / peak_flops())


# ---- jobs: TRL and transformers

def llama(job):
    """transformers' model of the same shape, with random weights of its own."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {key: value for key, value in asdict(job.config).items() if key != "family"}
    config = LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.device(job.device):
        return AutoModelForCausalLM.from_config(config, dtype=job.dtype).to(job.device)


def peer_sampling(job, note):
    """Tokens/s of transformers' generate, with its default cache."""
    import transformers

    note(transformers=transformers.__version__)
    theirs, rng = llama(job).eval(), random.Random(0)
    theirs.generation_config.eos_token_id = None
    for name, rows in (("few", job.rows), ("many", job.many)):
        read = torch.tensor([rng.choices(range(3, job.config.vocab_size), k=job.prompt)
                             for _ in range(rows // job.group_size)], device=job.device)
        for new in (min(8, job.new), job.new):                          # the first one warms up
            config = transformers.GenerationConfig(
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new,
                num_return_sequences=job.group_size, pad_token_id=0)
            start = clock(job.device)
            tokens = theirs.generate(input_ids=read, attention_mask=torch.ones_like(read),
                                     generation_config=config)
            seconds = clock(job.device) - start
        note(**{name: tokens[:, job.prompt :].numel() / seconds})


def peer_step(job, note):
    """GRPO steps of TRL, as fast as it goes without another server for sampling."""
    import transformers
    import trl

    note(trl=trl.__version__, transformers=transformers.__version__)
    as_large_as_fits(halves(job.rows), lambda size: trl_steps(job, note, size))


def trl_steps(job, note, micro_batch_size):
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    ends, lengths, size = [], [], job.config.vocab_size

    def reward(prompts, completions, completion_ids, **columns):
        lengths.append(mean(map(len, completion_ids)))
        return even(prompts, completions)

    steps = WARM + max(1, job.steps // 2)
    problems = Numbers(size, job.prompt - 1).sample(job.prompts * steps)
    rows = Dataset.from_list([{"prompt": f"{BOS} {problem.prompt}"} for problem in problems])
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=steps, use_cpu=job.device == "cpu",
            bf16=job.dtype == torch.bfloat16, gradient_checkpointing=False, use_vllm=False,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=job.rows // micro_batch_size,
            num_generations=job.group_size, max_completion_length=job.new, temperature=1.0,
            beta=0.0, shuffle_dataset=False, optim="adamw_torch_fused", weight_decay=0.0,
            max_grad_norm=1.0, learning_rate=LR, lr_scheduler_type="constant", warmup_steps=0,
            logging_strategy="no", save_strategy="no", eval_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_num_workers=0)
        GRPOTrainer(
            model=llama(job), reward_funcs=reward, args=config, train_dataset=rows,
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=words(size), pad_token=PAD, bos_token=BOS, eos_token=EOS,
                padding_side="left"),
            callbacks=[each_step(lambda *_: ends.append(clock(job.device)))],
        ).train()
    taken = [b - a for a, b in zip(ends, ends[1:])]
    note(step=median(taken[WARM:]), length=mean(lengths), micro_batch_size=micro_batch_size,
         memory=peak_memory())


JOBS = {"check": check, "sampling": sampling, "step": step, "peer_sampling": peer_sampling,
        "peer_step": peer_step}
NEEDS = {"peer_sampling": ("transformers",), "peer_step": ("transformers", "trl", "datasets")}
ORDER = [("check", "SmolLM2-135M"),
         *((name, shape) for shape in SHAPES for name in ("sampling", "step")),
         *((name, shape) for shape in SHAPES for name in NEEDS)]


# ---- the part

def run_job(name, shape, seconds):
    """A job in a process of its own: what it noted, and under `failed` why it ended early."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "notes.json", Path(folder) / "log"
        failed = ""
        with log.open("w") as errors:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "scripts.bench_gpu", name, "--shape", shape,
                     "--out", str(out)], cwd=ROOT, timeout=seconds, stderr=errors,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
            except subprocess.TimeoutExpired:
                failed = f"it was ended after {seconds:.0f} s"
            else:
                if done.returncode:
                    said = log.read_text(errors="replace").strip().splitlines()
                    failed = (said or [f"exit code {done.returncode}"])[-1]
        found = json.loads(out.read_text()) if out.exists() else {}
    return {**found, **({"failed": failed} if failed else {})}


def measured(start):
    """((job, shape), what it noted), one job after the other.

    start: when the part began, by time.monotonic().
    """
    for name, shape in ORDER:
        missing = [each for each in NEEDS.get(name, ()) if importlib.util.find_spec(each) is None]
        passed = time.monotonic() - start
        if missing:
            found = {"failed": f"skipped, {' and '.join(missing)} cannot be imported here"}
        elif passed > LAST_BEGIN:
            found = {"failed": f"left out, {LAST_BEGIN / 60:g} minutes had passed"}
        else:
            print(f"{name}, {shape}, at {passed:.0f} s", flush=True)
            found = run_job(name, shape, min(LONGEST, END - passed))
        if "failed" in found:
            print(f"  {found['failed']}", flush=True)
        yield (name, shape), found


def gpu(args):
    """Run the jobs and write the table, even if something breaks them off."""
    if not torch.cuda.is_available():
        print("gpu: skipped, this machine or this build of PyTorch has no CUDA device")
        return
    start, results = time.monotonic(), {}
    try:
        for key, found in measured(start):
            results[key] = found
    finally:
        write(args.out, "gpu", report(results, machine(), card()))


def card():
    """The card, its driver and CUDA, in words."""
    try:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], text=True,
            capture_output=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return f"{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}"


def number(x):
    return f"{x:,.0f}"


def ms(seconds):
    return f"{1000 * seconds:,.1f} ms"


ROWS = [  # what, key in the notes of a job, how it is shown, whether more is better
    ("sampling, 64 rows: tokens/s", "sampling", "few", number, True),
    ("sampling, 512 rows: tokens/s", "sampling", "many", number, True),
    ("sampling, 64 rows, without graphs: tokens/s", "sampling", "unrecorded", number, True),
    ("recording a step as a graph", "sampling", "recording", ms, False),
    ("GRPO step", "step", "step", ms, False),
    ("- sampling", "step", "sampling", ms, False),
    ("- rewards", "step", "reward", ms, False),
    ("- log-probs computed again (bfloat16)", "step", "recomputed", ms, False),
    ("- update", "step", "update", ms, False),
    ("update, TFLOP/s", "step", "tflops", lambda x: f"{x:.0f}", True),
    ("update, model FLOPs utilisation", "step", "mfu", "{:.1%}".format, True),
    ("peak memory of GRPO steps, GiB", "step", "memory", lambda x: f"{x:.1f}", False),
    ("micro-batch, rows", "step", "micro_batch_size", str, None),
    ("mean answer, tokens", "step", "length", lambda x: f"{x:.1f}", None),
]
CHECKS = [
    ("largest difference of log-probs from the whole pass", "whole", "{:.1e}".format),
    ("largest difference of log-probs from the CPU's decoder", "eager", "{:.1e}".format),
    ("share of tokens that the CPU's decoder would draw too", "equal", "{:.4f}".format),
    ("tokens compared", "tokens", number),
    ("mean difference of log-probs from the whole pass in bfloat16", "bfloat16", "{:.1e}".format),
]


def report(results, machine_line, card_line):
    """The lines of the part, with all that was measured and why the rest was not."""
    rows, checks = [], []
    for shape in SHAPES:
        for what, job, key, show, more in ROWS:
            own = results.get((job, shape), {}).get(key)
            peer = results.get((f"peer_{job}", shape), {}).get(key)
            if own is None and peer is None:
                continue
            ratio = ""
            if own and peer and more is not None:
                ratio = f"{own / peer if more else peer / own:.1f}"
            rows.append([shape, what, *("" if x is None else show(x) for x in (own, peer)), ratio])
    for (name, shape), found in results.items():
        checks += [[f"{shape}, {what}", show(found[key])] for what, key, show in CHECKS
                   if name == "check" and key in found]
        if "failed" in found:
            rows.append([shape, f"{name}: {found['failed'][:200]}".replace("|", "/"), "", "", ""])
    versions = {key: found[key] for found in results.values() for key in ("transformers", "trl")
                if key in found}
    return [
        "## On a GPU", "", f"GPU: {card_line}.  {machine_line}", "",
        "`python -m scripts.bench gpu`; random weights in bfloat16, one process.  A GRPO step has "
        "8 prompts of 64 tokens, 8 answers each of 256 tokens, one update, no KL, the largest "
        "micro-batch that fits.  Sampling: the same prompts and answers, no EOS.  The peers are "
        "TRL's GRPOTrainer without vLLM and without gradient checkpointing, and transformers' "
        "generate with its default cache"
        + "".join(f"; {name} {version}" for name, version in versions.items())
        + ".  The ratio says how many times better minipost is.  Medians after warm-up.  FLOPs are "
        "six per weight and token and causal attention, the output matrix for answers alone.", "",
        *table(["model", "what", "minipost", "peer", "ratio"], rows), "",
        "The graph's log-probs and tokens, held against other ways to compute them, on this card "
        "in float32, rows of different lengths:", "",
        *table(["check", "found"], checks),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for what is noted")
    args = parser.parse_args()
    notes = {}

    def note(**found):
        notes.update(found)
        args.out.write_text(json.dumps(notes))
        print("  " + ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else
                               f"{name} {value}" for name, value in found.items()), flush=True)

    JOBS[args.job](Job(SHAPES[args.shape]), note)


if __name__ == "__main__":
    main()
