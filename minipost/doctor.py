"""Look at a set-up before training on it: model, problems, reward.  Reads and never writes.

    python -m minipost.doctor --task countdown                        checkpoints/base on a task of ours
    python -m minipost.doctor --model path/to/llama --data rows.jsonl --reward mine.py:reward
    python -m minipost.doctor --task wording --reward-model runs/reward-wording-0/model
    python -m minipost.doctor --data pairs.jsonl --json               the same as data

It samples answers as a run would and holds the invariants of training against them: one line per check,
and for every finding what, why it matters and what to do.  A FAULT makes training wrong, so the exit code
is 1; a warning makes it poor, and with warnings alone the exit code is 0.  What it cannot see is whether
the reward says what is wanted.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, make_dataclass
from typing import Literal

from minipost.errors import MinipostError, require
from minipost.tasks import TASKS
from minipost.tasks.files import File, read

PROG = "python -m minipost.doctor"
SMALL = 50_000_000  # parameters of a model that one thread serves as fast as several do


@dataclass(frozen=True)
class Options:
    """What to look at, beside the problems; names and defaults as in minipost.train."""

    model: str = "checkpoints/base"  # model directory to start from
    reward: tuple[str, ...] = ()  # functions to add up, FILE.py:FUNCTION; the task's own if none
    reward_model: str = ""      # directory of a reward model to score with
    prompts: int = 16           # problems to sample answers to; a reward function sees each answer four times
    group: int = 8              # answers per problem (G)
    temperature: float = 1.0    # sampling temperature (tau)
    room: int = 48              # longest response, in tokens (L_max)
    micro: int = 16             # sequences in one forward and backward pass
    rows: int = 4000            # rows of --data whose texts are looked at, from the first on
    seed: int = 0               # everything random follows from it
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to run; auto: the best there is
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights

    def __post_init__(self):
        require(self, above=dict(temperature=0),
                at_least=dict(prompts=1, group=1, room=1, micro=1, rows=1))


def main(argv=None):
    from minipost.train import fail_in_one_sentence

    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(f"usage: {PROG} [--task {{{','.join(sorted(TASKS))}}} | --data FILE.jsonl] [options]\n\n"
              f"{__doc__}\n`{PROG} --task NAME --help` lists every option.")
        return 2
    return fail_in_one_sentence(lambda: report(*parse(argv)))


def parse(argv):
    """The command line as (options, task, whether to print data and no text)."""
    first = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    first.add_argument("--task", choices=sorted(TASKS))
    first.add_argument("--data")
    first.add_argument("--eval-data", default="")
    first.add_argument("--on-bad-row", choices=("stop", "skip"))
    first.add_argument("--json", action="store_true")
    known, rest = first.parse_known_args(argv)
    if bool(known.task) == bool(known.data) and not {"-h", "--help"} & set(rest):
        raise MinipostError("give one of --task and --data: the problems to look at")
    for flag in ("eval_data", "on_bad_row"):
        if getattr(known, flag) and not known.data:
            raise MinipostError(f"--{flag.replace('_', '-')} goes with --data")
    import tyro

    flat, parts = tyro.conf.OmitArgPrefixes, {"options": Options}
    if known.task:
        parts["task"] = TASKS[known.task]
    together = make_dataclass("Arguments", [(part, flat[c], c()) for part, c in parts.items()])
    found = tyro.cli(together, args=rest, prog=PROG, config=(tyro.conf.FlagConversionOff,),
                     description=f"{__doc__}\nProblems: --task {{{','.join(sorted(TASKS))}}}, or --data "
                     "FILE.jsonl with --eval-data FILE.jsonl and --on-bad-row stop or skip.")
    task = found.task if known.task else File(known.data, known.eval_data, known.on_bad_row or "stop")
    return found.options, task, known.json


def report(options, task, data):
    """Print what is found; -> exit code."""
    from minipost import parallel
    from minipost.checkup import FAULT, WARNING
    from minipost.console import Console
    from minipost.train import pick_device

    start, console = time.perf_counter(), Console(quiet=data)
    knobs = ", ".join(f"{k} {v}" for k, v in asdict(task).items() if v != "")
    console.say(f"{options.model} on {task.name} ({knobs}): {options.prompts} problems, {options.group} "
                f"answers each of up to {options.room} tokens\n")
    found = parallel.launch(lambda: examine(options, task, pick_device(options.device)), 1)
    seconds = time.perf_counter() - start
    count = {status: sum(f.status == status for f in found) for status in (FAULT, WARNING)}
    if data:
        print(json.dumps({
            "model": options.model, "task": task.name, "faults": count[FAULT],
            "warnings": count[WARNING], "seconds": round(seconds, 1),
            "checks": [{**asdict(f), "finding": f.sentence} for f in found]}, indent=2))
    else:
        console.findings(found, seconds)
    return int(count[FAULT] > 0)


def examine(options, task, device):
    """The Findings of all checks on a set-up: those of files and texts, of samples, of a reward model."""
    import torch

    from minipost import checkpoint
    from minipost.checkup import NONE, Finding, reward_model_ids, stated_ids
    from minipost.session import open_run

    run = open_run(options, task, device)
    if device == "cpu" and run.policy.flat.numel() < SMALL:
        torch.set_num_threads(1)  # on a busy machine each small operation would wait for all threads
    tokenizer, scorer = run.vocabulary.tokenizer, None
    if options.reward_model:
        scorer = checkpoint.load_reward_model(options.reward_model, run.vocabulary, device, options.dtype)
    found = look_at_texts(run, stated_ids(options.model, tokenizer), options.rows)
    problems = [p for p in run.problems(options.prompts)
                if len(run.vocabulary.prompt(p.prompt)) + run.room <= context_of(run)]
    if problems:
        found += look_at_samples(run, problems, options, scorer)
    else:
        found.append(Finding("samples", NONE, "no prompt leaves room for an answer"))
    if scorer:
        found.append(reward_model_ids(stated_ids(options.reward_model, tokenizer)))
    return found


def context_of(run):
    return run.policy.module.config.max_position_embeddings


def length(run, prompt, answer):
    """Tokens of a prompt with its answer and EOS."""
    return len(run.vocabulary.prompt(prompt)) + len(run.vocabulary.response(answer))


def demonstrations(run, problems):
    """(problem, text) of the answers to these problems that training would imitate."""
    from minipost.checkup_data import reference

    rng = run.rng("demonstrations")
    found = [(problem, reference(run.task, problem, rng)) for problem in problems]
    return [(problem, text) for problem, text in found if text is not None]


def look_at_texts(run, stated, most):
    """What can be found without asking the model: of all problems, of a file's first `most` rows."""
    from minipost import checkup, checkup_data as data

    task, vocabulary, encode = run.task, run.vocabulary, run.vocabulary.tokenizer.encode
    file, heldout = task.name == "file", task.heldout(400)
    training = task.training() if file else task.sample(400, run.rng("problems"))
    rows = training[:most]
    given = [(row.prompt, text) for row in rows for text in data.answers_of(row)] or [
        (row.prompt, text) for row, text in demonstrations(run, rows)]
    answers, pairs = [text for _, text in given], data.pairs_of(rows)
    prompts = {row.prompt: len(vocabulary.prompt(row.prompt)) for row in [*rows, *heldout]}
    specials = [token.content for token in
                vocabulary.tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    found = [
        checkup.control_ids(vocabulary, stated), checkup.eos_in_files(vocabulary, stated),
        checkup.context(list(prompts.values()), [length(run, *pair) for pair in given], run.room,
                        context_of(run)),
        data.control_texts([*prompts, *answers], specials),
        data.boundary(given, encode), data.round_trip(answers, vocabulary),
    ]
    if not file:
        return [*found, data.held_out_prompts(training, heldout)]
    whole = read(task.data, task.on_bad_row == "skip")[0]
    return [
        *found, data.held_out_prompts(training, heldout, len(whole) - len(training) if task.eval_data else 0),
        data.skipped_rows(task.skipped()), data.repeated_rows(rows), data.stated_rewards(rows),
        data.equal_pairs(pairs, encode), data.contradictory_pairs(pairs),
        data.length_of_chosen(pairs, encode),
    ]


def look_at_samples(run, problems, options, scorer):
    """What the model's answers to some problems show of it, of the sampler and of the rewards."""
    from minipost import checkup, checkup_data as data
    from minipost.methods import reinforce
    from minipost.preferences import file_answers

    model, temperature = run.policy.module, options.temperature
    rollout = run.sample(problems, options.group, temperature=temperature)
    texts, asked = run.texts(rollout), [problems[i] for i in rollout.prompt.tolist()]
    shown = [(problem, text) for problem, text in demonstrations(run, problems)
             if length(run, problem.prompt, text) <= context_of(run)]
    imitated = file_answers(run, *zip(*((p.prompt, text) for p, text in shown))) if shown else None
    found = [
        checkup.eos_in_loss(imitated, rollout, run.vocabulary.eos),
        checkup.ratio_at_start(run, rollout, temperature),
        checkup.sampler_and_trainer(run, rollout, temperature),
        checkup.padding(model, rollout, run.vocabulary.pad, temperature),
        checkup.micro_batches(run.policy, rollout, reinforce.loss, temperature),
        data.cut_answers(rollout.finished.tolist(),
                         [len(run.vocabulary.response(text)) for _, text in shown], run.room),
        data.parsed_answers(run.task, texts, bool(options.reward)),
    ]
    judged = run.task.name != "file" or options.reward or data.exact(asked)
    values, error = data.ask_often(run.reward, asked, texts, shown) if judged else ({}, "")
    found.append(data.reward_function(values, error))
    if values:
        found += [data.reward_spread(values["once"], texts, options.group),
                  data.reference_rewards(values["reference"], values["once"], values["empty"])]
    if scorer:
        found += look_at_scorer(run, scorer, rollout, problems, values.get("once"))
    return found


def look_at_scorer(run, scorer, rollout, problems, values):
    """What a reward model's scores show: of the file's pairs, else of sampled answers and their rewards."""
    from minipost import checkup, checkup_data as data
    from minipost.preferences import file_pairs

    pairs = [p for p in problems if "chosen" in p.columns and max(
        length(run, p.prompt, text) for text in data.answers_of(p)) <= context_of(run)]
    ahead, better = [], "was chosen"
    if pairs:
        sides = file_pairs(run, pairs)
        ahead = (run.final_scores(scorer, sides.chosen) - run.final_scores(scorer, sides.rejected)).tolist()
    elif values:
        better, scores = "earns more", run.final_scores(scorer, rollout).tolist()
        ahead = data.gaps(scores, values, len(rollout) // len(problems))
    return [checkup.reward_model(run, scorer, rollout), checkup.reward_model_ranks(ahead, better)]


if __name__ == "__main__":
    sys.exit(main())
