"""Sharded runs against whole ones, for test_shard.py.

    python shards.py steps          a step of methods, by one rank and by two that shard
    python shards.py resume FOLDER  a sharded run of PPO by one rank, then by two, then by one

It prints JSON.  A process launches two ranks once: PyTorch remembers the rank that it was.
"""

import contextlib
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import anew
import torch
from anew import CASES, scene
from conftest import TEXTS, tiny_model
from ranks import differ
from safetensors.torch import load_file

from minipost import checkpoint, parallel, train
from minipost.shard import ShardedLearner, gathered
from minipost.tokenizer import Tokenizer

# "rloo, no KL" learns from fewer answers than it samples, so a rank may have none in a pass.
NAMES = ("grpo", "ppo", "dpo", "rloo, no KL")


def sharding(module, **options):
    return ShardedLearner(module, device="cpu", **options)


def weights(run):
    return {name: [p.detach() for p in gathered(learner.module).parameters()]
            for name, learner in run.learners.items()}


def stepped(name, **options):
    """Weights and metrics after a step, and how many passes had no rows."""
    case, empty = CASES[name], 0
    odd = {key: value for key, value in dict(prompts=5, group_size=3).items() if key in case.cfg}
    run = scene(replace(case, cfg=case.cfg | odd, options=case.options | options))
    cut = run.micro_batches

    def counted(*args, **how):
        nonlocal empty
        found = cut(*args, **how)
        empty += found.count([])
        return found

    run.micro_batches = counted
    metrics = next((case.train or case.module.train)(run, case.config()))
    empty = torch.tensor([float(empty)])
    parallel.all_reduce(empty)
    return {"weights": weights(run), **metrics, "tokens": run.tokens}, int(empty)


def held(run_of):
    """Of a sharded policy: this rank's share; ranks whose reference, whose export is not right."""
    run = run_of()
    policy, total = run.policy, sum(p.numel() for p in run.policy.module.parameters())
    reference, copied = run.reference(), gathered(policy.module, "cpu", keep=not parallel.rank())
    same = all(torch.equal(p.full_tensor(), gathered(reference).get_parameter(name))
               for name, p in policy.named.items())
    wrong = torch.tensor([not same, (copied is None) == (parallel.rank() == 0)], dtype=torch.float)
    parallel.all_reduce(wrong)
    return {"share": sum(w.numel() for w in policy.parts()) / total, "wrong": wrong.tolist()}


def broken():
    """A gradient that is not finite in the last rank alone: how far the weights moved, skips."""
    run = scene(replace(CASES["grpo"], options={"shard": "cpu"}))
    before = weights(run)["policy"]
    module = run.policy.module
    loss = module.hidden(torch.tensor([[1, 3, 4]])).sum()
    (loss * (float("nan") if parallel.rank() == parallel.world() - 1 else 1.0)).backward()
    run.policy.step(0.1)
    moved = max(float((a - b).abs().max()) for a, b in zip(before, weights(run)["policy"]))
    return {"moved": moved, "skipped": run.policy.skipped}


def steps():
    whole = {name: stepped(name)[0] for name in NAMES}

    def shared():
        anew.Learner = sharding
        found = {name: stepped(name, shard="cpu") for name in NAMES}
        fresh = replace(CASES["grpo"], options={"shard": "cpu"})

        def run_of():
            run = scene(fresh)
            run.forget("frozen/reference")
            return run

        return found, {"held": held(run_of), "broken": broken()}

    parts, facts = parallel.launch(shared, 2)
    return {"differ": {name: differ(whole[name], parts[name][0]) for name in NAMES},
            "empty": {name: parts[name][1] for name in NAMES}, **facts}


def resume(folder):
    folder, words = Path(folder), Tokenizer.train(TEXTS, 280)
    checkpoint.create(folder / "tiny", tiny_model(), words)
    (folder / "rows.jsonl").write_text("".join(
        json.dumps({"prompt": f"{n}+5=?", "completion": f" {n + 5}"}) + "\n" for n in range(40)))
    (folder / "reward.py").write_text("def length(completions, **columns):\n"
                                      "    return [len(text) / 9 for text in completions]\n")
    reward = ["--reward", f"{folder / 'reward.py'}:length"]

    def begin(out, *flags):
        return ["--algo", "ppo", "--model", folder / "tiny", "--data", folder / "rows.jsonl",
                "--out", folder / out, "--max-new-tokens", 4, "--eval-n", 3, "--show", 1,
                "--prompts", 9, "--minibatch-size", 4, "--workers", 1, *reward, *flags]

    again = ["--resume", folder / "parts", *reward]
    codes = []
    for flags in (begin("whole", "--steps", 3), begin("parts", "--steps", 1, "--shard"),
                  [*again, "--workers", 2, "--steps", 2], [*again, "--workers", 1, "--steps", 3]):
        with contextlib.redirect_stdout(sys.stderr):
            codes.append(train.main(list(map(str, flags))))
    one, other = (load_file(folder / out / "model/model.safetensors") for out in ("whole", "parts"))
    start = load_file(folder / "tiny/model.safetensors")
    lines = [[json.loads(line)["grad_norm"] for line in
              (folder / out / "metrics.jsonl").read_text().splitlines()]
             for out in ("whole", "parts")]
    names = sorted(path.name for path in (folder / "parts/state").rglob("*.safetensors"))
    return {"codes": codes, "files": names, "lines": lines,
            "apart": max(float((one[name] - other[name]).abs().max()) for name in one),
            "moved": max(float((one[name] - start[name]).abs().max()) for name in one)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(steps() if sys.argv[1] == "steps" else resume(sys.argv[2])))
