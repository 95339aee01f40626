"""The part search of BENCHMARKS.md: `python -m scripts.bench search`.

Seconds per problem of four searches, on the Game of 24 and on sums, by minipost and by the same
code over transformers.  Only what asks the model differs (`Theirs`): one call of `generate` for
each batch of texts, and one padded forward pass for a verifier's scores.

    python -m scripts.bench_search own batched --out RESULT.json    one side's searches, in one mode
"""

import argparse
import json
import os
import time
from pathlib import Path

from minipost import checkpoint, parallel, test_time
from minipost.measure.texts import Texts
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.countdown import Countdown

MODEL, VERIFIER = "checkpoints/thinker", "checkpoints/verifier"
TASKS = {"Game of 24": lambda: Countdown(numbers=4, target=24), "sums": Arithmetic}
SEARCHES = {  # name: method, settings
    "tree of thoughts, b=5": ("tot", {}),
    "MCTS": ("mcts", {}),
    "best of 32, PRM": ("best-of-n", {"group_size": 32}),
    "self-consistency of 33": ("self-consistency", {"group_size": 33}),
}
MODES = {"batched": 20, "alone": 3}  # problems: all in one call, or each in a call of its own
ROOM = 192      # most tokens of an answer, as in minipost.evaluate --method and minipost.solve
ROUNDS = 2
WANTED = 0.5    # seconds of a tree of thoughts
CORES = len(os.sched_getaffinity(0))


# ---- one side, in its own process

def own(seed):
    """The tools of a search by minipost: {task: Texts}."""
    model, vocabulary = checkpoint.load(MODEL)
    verifier = checkpoint.load_reward_model(VERIFIER, vocabulary)
    return {name: Texts(Run(Learner(model), vocabulary, task(), None, seed=seed,
                            max_new_tokens=ROOM), verifier=verifier)
            for name, task in TASKS.items()}


def peer(seed):
    """The same, but transformers answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.set_num_threads(CORES)
    torch.manual_seed(seed)
    llama = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(
        VERIFIER, dtype=torch.float32).eval()

    class Theirs(Run):
        """A Run whose answers transformers samples."""

        @torch.inference_mode()
        def complete(self, prompts, group_size, *, temperature, purpose, stop, max_new_tokens):
            from minipost.rollout import assemble

            pad, longest = self.vocabulary.pad, max(map(len, prompts))
            sizes = torch.tensor([len(ids) for ids in prompts])
            read = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
            stop = sorted({*self.vocabulary.eos, *stop})
            draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            found = llama.generate(
                read, attention_mask=(torch.arange(longest) >= longest - sizes[:, None]).long(),
                max_new_tokens=max_new_tokens, num_return_sequences=group_size,
                eos_token_id=stop, pad_token_id=pad, **(draw if temperature else
                                                        {"do_sample": False}))
            said = found[:, longest:]
            prompt = torch.arange(len(prompts)).repeat_interleave(group_size)
            flush = read.gather(1, (torch.arange(longest) - sizes[:, None]) % longest)
            return assemble(flush[prompt], sizes[prompt], said, torch.zeros(said.shape), prompt,
                            torch.tensor(stop), said.shape[1], pad)

        @torch.inference_mode()
        def for_all(self, score, seqs, outputs=1):
            return score(seqs)

    gpt, vocabulary = checkpoint.load(MODEL)
    return {name: Texts(Theirs(Learner(gpt), vocabulary, task(), None, seed=seed,
                               max_new_tokens=ROOM), verifier=lambda tokens: scorer.score(
                                   scorer.model(tokens).last_hidden_state)[..., 0])
            for name, task in TASKS.items()}


def job(side, mode, seed):
    """What a search costs: {"name, task": {seconds, tokens, right}}, and greedy answers."""
    tools, found, greedy = {"own": own, "peer": peer}[side](seed), {}, {}
    for task, ask in tools.items():
        problems = ask.task.heldout(MODES[mode])
        calls = [problems] if mode == "batched" else [[problem] for problem in problems]
        greedy[task] = ask.greedy([problem.prompt for problem in problems])  # warms up, too
        for name, (method, settings) in SEARCHES.items():
            method = test_time.load(method)
            start, tokens, answers = time.monotonic(), ask.tokens, []
            for part in calls:
                answers += method.solve(part, ask, method.Config(**settings))[0]
            found[f"{name}, {task}"] = {
                "seconds": (time.monotonic() - start) / len(problems),
                "tokens": (ask.tokens - tokens) / len(problems),
                "right": sum(map(graded, [ask.task] * len(problems), problems, answers))
                / len(problems)}
    return {"searches": found, "greedy": greedy}


def graded(task, problem, answer):
    columns = {name: [value] for name, value in problem.columns.items()}
    return task.reward([problem.prompt], [answer], **columns)[0] == 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("side", choices=["own", "peer"])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    args = parser.parse_args()
    # As a user's run does it: minipost.evaluate has workers, minipost.solve has none.
    workers = parallel.default_workers("cpu") if (args.side, args.mode) == ("own", "batched") else 1
    args.out.write_text(json.dumps(
        parallel.launch(lambda: job(args.side, args.mode, args.seed), workers)))


# ---- the table

def search(args, machine, table, write):
    """Write the table, unless transformers is missing."""
    import importlib.util
    import sys
    import tempfile
    from statistics import median

    from scripts.bench import Bench, Failed, measure

    if importlib.util.find_spec("transformers") is None:
        print("search: skipped, transformers cannot be imported here (pip install -e '.[bench]')")
        return
    with tempfile.TemporaryDirectory(prefix="minipost-bench-") as folder:
        bench, out = Bench(Path(folder), args.model, args.quick), Path(folder) / "result.json"

        def run(side, mode):
            def once(seed):
                out.unlink(missing_ok=True)
                cost = measure([sys.executable, "-m", "scripts.bench_search", side, mode, "--seed",
                                str(seed), "--out", str(out)])
                return {**cost, **json.loads(out.read_text())}
            return once

        try:
            found = bench.rounds(ROUNDS, **{f"{side} {mode}": run(side, mode)
                                            for mode in MODES for side in ("own", "peer")})
        except Failed as failure:
            print(f"search: skipped, {failure}")
            return
    rows, notes = [], []
    for mode in MODES:
        mine, theirs = found[f"own {mode}"], found[f"peer {mode}"]
        if any(a["greedy"] != b["greedy"] for a, b in zip(mine, theirs)):
            print("search: skipped, the two sides' likeliest answers differ")
            return
        for name in mine[0]["searches"]:
            def column(results, what, name=name):
                return [result["searches"][name][what] for result in results]

            a, b = column(mine, "seconds"), column(theirs, "seconds")
            pairs = [peer / own for own, peer in zip(a, b)]
            cost = [median(column(side, "tokens")) for side in (mine, theirs)]
            rows.append([
                f"{name}, {mode}", f"{median(a):.3f}", f"{median(b):.3f}",
                f"{median(b) / median(a):.1f} [{min(pairs):.1f}, {max(pairs):.1f}]",
                *(f"{tokens:,.0f}" for tokens in cost),
                *(f"{tokens / median(s):,.0f}" for tokens, s in zip(cost, (a, b))),
                *(f"{sum(column(side, 'right')) / len(side):.2f}" for side in (mine, theirs))])
            if name == "tree of thoughts, b=5, Game of 24":
                notes.append(f"{median(a):.2f} s {mode}")
    write(args.out, "search", [
        "## Search", "", machine("transformers"), "",
        "`python -m scripts.bench search`", "",
        *table(["search, task, problems", "minipost, s a problem", "transformers, s a problem",
                "ratio [pairs]", "minipost, tokens a problem", "transformers", "minipost, tokens/s",
                "transformers", "minipost, right", "transformers"], rows), "",
        f"checkpoints/thinker.  Batched: {MODES['batched']} held-out problems in one call, minipost "
        f"in {parallel.default_workers('cpu')} processes, as `minipost.evaluate` has it.  Alone: "
        f"{MODES['alone']} problems, each in a call of its own, in one process, as "
        f"`minipost.solve` has it.  transformers has one process and {CORES} threads.  Both sides "
        "run the same code but for what asks the model.  The likeliest answers of both are the "
        "same.  Samples are drawn with other random numbers, so tokens and accuracy agree up to "
        f"noise.  Medians of {len(mine)} rounds of fresh processes in turn, each with its own "
        "seed, loading not counted.  Tokens are those of all samples, whether or not they were "
        "computed together.",
        f"Wanted of tree of thoughts on the Game of 24: at most {WANTED} s a problem, batched and "
        f"alone; reached: {', '.join(notes)}."])


if __name__ == "__main__":
    main()
