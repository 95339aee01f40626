"""Train checkpoints/base and student from nothing, and thinker and seeker from the base.

Commands: `make base`, `make student`, `make thinker`, `make seeker`.

The tasks write the corpus of the first two on the fly:

    worked sums with slips
    sums with steps that are checked and mended on the way
    sums answered directly
    good and bad countdown moves
    praise in good and bad words
    comparisons of two such praises under a written principle
    the words of the facts, without the facts

Problems come from the training splits only.  The slips and the bad moves are there on purpose.  A
base model that has seen mistakes makes them, and so leaves the methods something to mend.

The thinker's corpus is in scripts/thoughts.py.  Its documents have very different lengths, and a
verdict of one word would be lost among the tokens of worked answers.  So each document counts the
same.

The seeker's corpus is half that of the base, so that it forgets little, and half countdown with the
search in the text (minipost/tasks/search.py).  In its first lesson every other such text searches,
so that searching is learnt well.  In a short second one it is one in twenty, so that it is rare.
Verdicts are now and then in German or French.

The model learns to answer and not to ask: the loss is on completions.  Everything is derived from
the seed, so the same machine and number of workers give the same file.
"""

import argparse
import functools
import random
import re
import time
from pathlib import Path

import torch

from minipost import checkpoint, parallel
from minipost.gpt import GPT, GPTConfig
from minipost.measure.meter import Meter
from minipost.methods import sft
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem, Task, is_held_out, question
from minipost.tasks.countdown import Countdown, held_out
from minipost.tasks.facts import hold_out as facts_hold_out
from minipost.tasks.facts import rows
from minipost.tasks.search import Search
from minipost.tasks.wording import PRINCIPLES, Wording
from minipost.tokenizer import EOS, PAD, Tokenizer, Vocabulary
from scripts.thoughts import Thoughts

SLIP = 0.13     # chance that a worked step goes wrong, so 5 steps in a row are right half the time
CHECKED = 0.5   # the same if every step is checked at once and written again if it is wrong
BAD = 0.3       # chance that a countdown move is drawn at random
FAULTS = 0.5    # chance that a word of praise is a fault

SHAPES = {  # name: what differs from GPTConfig's defaults
    "base": {},
    "student": dict(hidden_size=64, intermediate_size=172, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2),
    "thinker": {},  # the shape of the base, from which it starts
    "seeker": {},   # the same
}
STEPS = {"base": 1800, "student": 1800, "thinker": 2900, "seeker": 900}
RARE = 60       # steps of the seeker's second lesson

MOVE = re.compile("([0-9]+)([-+*/])([0-9]+)=[0-9]+:([0-9 ]+)")
SUM = re.compile("([0-9]+)[-+]([0-9]+)=")

LISTS = {"capital": "Name a capital.\n", "french": "Name a French word.\n",
         "german": "Name a German word.\n", "spanish": "Name a Spanish word.\n"}


class Corpus(Task):
    """The pre-training documents, as a task: problems with the demonstration already chosen."""

    def __init__(self):
        self.words = [row for row in rows() if row["kind"] in LISTS]

    def sample(self, n, rng):
        return [self.document(rng) for _ in range(n)]

    def document(self, rng):
        """One document of a random kind.  It shows no working of a held-out problem."""
        kind = rng.random()
        if kind < 0.06:
            row = rng.choice(self.words)
            return Problem(LISTS[row["kind"]], {"completion": row["completion"]})
        if kind < 0.20:
            return judgement(rng)
        if kind < 0.30:
            task, faults = Wording(), {"faults": FAULTS}
        elif kind < 0.52:
            task, faults = worked(rng.randint(2, 8)), {"slip": SLIP}
        elif kind < 0.57:
            task, faults = direct(rng.randint(2, 6)), {}
        elif kind < 0.71:
            task, faults = worked(rng.randint(2, 6)), {"checked": True}
        elif kind < 0.89:
            task, faults = countdown(3, 0), {"bad": BAD}
        else:
            task, faults = countdown(4, rng.choice((0, 24))), {"bad": BAD}
        while leaks(found := written(task, rng, **faults)):
            pass
        return found

    def demonstrate(self, problem, rng):
        return problem.columns["completion"]


class Seeking(Corpus):
    """Documents of the base, and as many with the search in the text, of which `rate` search."""

    def __init__(self, rate):
        super().__init__()
        self.search = Search(traces="backtracking", rate=rate, mixed=0.3)

    def document(self, rng):
        if rng.random() < 0.5:
            return super().document(rng)
        while True:
            problem, = self.search.sample(1, rng)
            text = self.search.demonstrate(problem, rng)
            if not leaks(found := Problem(problem.prompt, {**problem.columns, "completion": text})):
                return found


def judgement(rng):
    """Two answers to a wording question, and which is better under a principle.  Never a tie."""
    task = Wording()
    principle = rng.choice(("fitting", "fitting", "fitting", "brief", "polite"))
    while True:
        problem, = task.sample(1, rng)
        pair = [task.demonstrate(problem, rng, rng.choice((0.1, 0.3, 0.5, 0.7))) for _ in "AB"]
        first, second = (task.merit(problem, text, principle) for text in pair)
        if first != second:
            return Problem(question(PRINCIPLES[principle], problem.prompt, *pair),
                           {"completion": " A" if first > second else " B"})


def leaks(document):
    """Whether a document holds a held-out problem within a longer one that may be trained on.

    The first terms of a chain are a shorter chain.  The first countdown move with four numbers
    leaves a hand of three.  A move may be one of the sums that the facts hold out, in the steps of
    countdown and in attempts of a search.
    """
    columns = document.columns
    if "chain" in columns:
        operands = [int(n) for n in re.findall("[0-9]+", columns["chain"])]
        return any(is_held_out(operands[:k]) for k in range(2, len(operands)))
    for line in columns["completion"].split("\n"):
        if (move := MOVE.fullmatch(line)) and (
                len(left := [int(n) for n in move[4].split()]) == 3 and held_out(left)):
            return True
        for a, b in SUM.findall(line):
            pair = [int(a), int(b)]
            if min(pair) >= 10 and max(pair) <= 99 and facts_hold_out(pair):
                return True
    return False


@functools.cache
def worked(terms):
    return Arithmetic(terms=terms)


@functools.cache
def direct(terms):
    return Arithmetic(terms=terms, direct=True)


@functools.cache
def countdown(numbers, target):
    return Countdown(numbers=numbers, target=target)


def written(task, rng, checked=False, **faults):
    problem = task.sample(1, rng)[0]
    if checked:
        prompt, completion = task.checked(problem, rng, CHECKED)
    else:
        prompt, completion = problem.prompt, task.demonstrate(problem, rng, **faults)
    return Problem(prompt, {**problem.columns, "completion": completion})


def tokenizer():
    """A tokenizer of 512 entries, from the facts' training rows and a sample of the corpus."""
    corpus, rng = Corpus(), random.Random(0)
    texts = [row["prompt"] + row["completion"] for row in rows() if row["split"] == "train"]
    texts += [p.prompt + p.columns["completion"] for p in corpus.sample(2000, rng)]
    return Tokenizer.train(texts, 512)


def encode(run, documents):
    """Documents as Sequences.

    If a completion has parts, the first part is learnt, the next is not, and so on.
    """
    batch = run.encode([d.prompt for d in documents],
                       [run.task.demonstrate(d, None) for d in documents])
    words = run.vocabulary
    for row, document in enumerate(documents):
        learnt = []
        for k, part in enumerate(document.columns.get("parts", ())):
            learnt += [k % 2 == 0] * len(words.tokenizer.encode(part))
        if learnt:
            batch.mask[row, batch.mask[row].clone()] = torch.tensor([*learnt, True])
    return batch


def evenly(run, cfg):
    """Like sft.train, but every document counts the same, whatever its length."""
    policy = run.policy
    while True:
        batch = encode(run, run.problems(cfg.batch_size))
        run.tokens += int(batch.mask.sum())
        meter = Meter("loss")
        for i in run.micro_batches(range(len(batch)), batch):
            part = batch[i]
            value = -(logprobs(policy.module, part).sum(1) / part.lengths).sum() / cfg.batch_size
            value.backward()
            meter.add(loss=value.detach())
        policy.step(cfg.rate(cfg.lr, run.step), cfg.max_grad_norm, cfg.weight_decay)
        yield meter.means()


def lessons(args):
    """What is learnt in turn: [(function, Config, task)]."""
    def taught(steps, lr):
        return sft.Config(steps=steps, batch_size=256, lr=lr, warmup_steps=min(100, steps // 3),
                          weight_decay=0.1)

    if args.shape == "thinker":
        return [(evenly, taught(args.steps, 2e-3), Thoughts())]
    if args.shape == "seeker":
        return [(sft.train, taught(args.steps - RARE, 2e-3), Seeking(0.5)),
                (sft.train, taught(RARE, 1e-4), Seeking(0.05))]
    return [(sft.train, taught(args.steps, 3e-3), Corpus())]


def pretrain(args):
    if args.shape in ("thinker", "seeker"):
        model, vocabulary = checkpoint.load("checkpoints/base")
        words = vocabulary.tokenizer
    else:
        words = tokenizer()
        model = GPT(GPTConfig(words.vocab_size, max_position_embeddings=512, **SHAPES[args.shape]))
        model.initialise(args.seed)
        vocabulary = Vocabulary(words, words.before, [words.id(EOS)], words.id(PAD))
    learner, start, made, tokens = Learner(model, betas=(0.9, 0.95)), time.perf_counter(), 0, 0
    for teach, cfg, task in lessons(args):
        run = Run(learner, vocabulary, task, None, seed=args.seed + made,
                  micro_batch_size=16 if args.shape == "thinker" else 32)
        learner.reset_optimizer()
        learn = teach(run, cfg)
        for run.step in range(cfg.steps):
            metrics = next(learn)
            made += 1
            report(args, metrics, made, tokens + run.tokens, time.perf_counter() - start)
            if parallel.rank() == 0 and (made % 500 == 0 or made == args.steps):
                out = args.out or Path("checkpoints") / args.shape
                checkpoint.create(out, model, words)
                print(f"wrote {out}")
        tokens += run.tokens


def report(args, metrics, made, tokens, seconds):
    """A line every 50 steps."""
    if parallel.rank() == 0 and (made % 50 == 0 or made == args.steps):
        print(f"step {made}/{args.steps}  loss {metrics['loss']:.3f}  "
              f"{tokens / seconds:,.0f} answer tokens/s  "
              f"{seconds / made * (args.steps - made):.0f} s left", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="base",
                        help="the base model, the student that distillation starts from, the "
                             "thinker of the test-time methods, or the seeker of R1-Zero and R1")
    parser.add_argument("--steps", type=int, help="gradient steps of 256 documents, by default "
                        + ", ".join(f"{steps} ({shape})" for shape, steps in STEPS.items()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="checkpoints/SHAPE if not given")
    parser.add_argument("--workers", type=int, default=parallel.default_workers("cpu"))
    args = parser.parse_args()
    args.steps = args.steps or STEPS[args.shape]
    parallel.launch(lambda: pretrain(args), args.workers)
