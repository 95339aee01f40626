"""Held-out problems never appear in training data, nor within longer problems."""

import itertools
import random
import re
from argparse import Namespace
from collections import Counter
from fractions import Fraction

import pytest

from minipost import checkpoint, tasks
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks import TASKS
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem, is_held_out
from minipost.tasks.countdown import Countdown, apply, held_out, solvable
from minipost.tasks.facts import Facts, hold_out
from minipost.tasks.recall import HELD_OUT as HELD_OUT_THINGS
from minipost.tasks.recall import Recall
from minipost.tasks.search import Search, read
from minipost.tasks.wording import HELD_OUT, TRAINING, Wording
from scripts.pretrain import Corpus, Seeking, encode, leaks, pretrain
from scripts.thoughts import KINDS, MAKERS, Thoughts

DOCUMENTS = Corpus().sample(6000, random.Random(1))


@pytest.mark.parametrize("task", [
    Arithmetic(), Arithmetic(terms=3), Arithmetic(terms=4, direct=True), Countdown(),
    Countdown(numbers=4), Countdown(numbers=4, target=24), Facts(), Recall(), Search(), Wording(),
], ids=str)
def test_training_never_draws_a_held_out_problem(task):
    tests = {p.prompt for p in task.heldout(10_000 if task.name == "facts" else 300)}
    assert len(tests) >= 100
    assert not tests & {p.prompt for p in task.sample(3000, random.Random(0))}


@pytest.mark.parametrize("name", TASKS)
def test_no_task_trains_on_a_problem_that_it_holds_out(name):
    task = tasks.load(name)()
    tests = {p.prompt for p in task.heldout(300)}
    assert tests and not tests & {p.prompt for p in task.sample(300, random.Random(0))}


def test_the_base_corpus_holds_no_held_out_problem_in_any_order():
    kinds = set()
    for document in DOCUMENTS:
        if (chain := document.columns.get("chain")) is not None:
            kinds.add("chain")
            assert not is_held_out([int(n) for n in re.findall("[0-9]+", chain)])
        elif (hand := document.columns.get("numbers")) is not None:
            kinds.add(len(hand))
            assert not held_out(hand)
    assert kinds == {"chain", 3, 4}


def test_nor_does_any_document_show_the_working_of_one():
    """A chain's first terms, three numbers left of four, a two-digit sum among the moves."""
    sums = {p.prompt for p in Facts().heldout(1000)}
    for document in DOCUMENTS:
        text = document.prompt + document.columns["completion"]
        numbers = [int(n) for n in re.findall("[0-9]+", document.columns.get("chain", ""))]
        assert not any(is_held_out(numbers[:k]) for k in range(2, len(numbers)))
        for a, sign, b in re.findall(r"(?m)^([0-9]{2})([+-])([0-9]{2})=", text):
            if "numbers" in document.columns:
                word = "plus" if sign == "+" else "minus"
                assert f"What is {a} {word} {b}?\n" not in sums
                assert not hold_out((int(a), int(b)))
        for left in re.findall(r"(?m):([0-9]+ [0-9]+ [0-9]+)$", document.columns["completion"]):
            assert not held_out(map(int, left.split()))


def test_neither_praise_nor_judgement_is_about_a_held_out_wording_problem():
    """A judge's question shows the prompt whole, so every prompt is found in either."""
    held, trained = {p.prompt for p in HELD_OUT}, {p.prompt for p in TRAINING}
    kinds = {"Praise": 0, "Judge:": 0}
    for document in DOCUMENTS:
        kind = document.prompt.split()[0]
        if kind in kinds:
            kinds[kind] += 1
            praise, = re.findall(r"(?m)^Praise the .*\n", document.prompt)
            assert praise not in held and praise in trained
        assert kind in kinds or "Praise" not in document.prompt
        assert "Praise" not in document.columns["completion"]
    assert min(kinds.values()) > 300


def test_the_filter_sees_each_kind_of_leak():
    chain = next(p for p in Arithmetic(terms=3).heldout(1)).columns["chain"]
    hand = " ".join(map(str, Countdown().heldout(1)[0].columns["numbers"]))
    question = Facts().heldout(1)[0].prompt
    a, word, b = re.fullmatch(r"What is (\d+) (\w+) (\d+)\?\n", question).groups()
    move = f"{a}{'+' if word == 'plus' else '-'}{b}=1:1"
    for columns in ({"chain": chain + "+1", "completion": ""}, {"completion": f"1+1=2:{hand}"},
                    {"completion": move}, {"completion": f"1+1=2 {move[:-2]} no\nAnswer: 1"}):
        assert leaks(Problem("", columns)), columns
    assert not leaks(Problem("", {"completion": "1+1=2:2 3"}))


def test_the_facts_themselves_are_not_in_the_corpus():
    """Names and words occur, but never a country or an English word with its answer."""
    for document in DOCUMENTS:
        assert "capital of" not in document.prompt and "What is" not in document.prompt


def test_the_same_seed_trains_the_same_base_model(tmp_path):
    """One step of pre-training, twice from one seed and once from another, byte for byte."""
    def weights(name, seed):
        pretrain(Namespace(shape="base", steps=1, seed=seed, out=tmp_path / name))
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("a", 0)
    assert weights("b", 0) == first and weights("c", 1) != first


# ---- the seeker's

@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_half_of_the_seekers_corpus_searches_in_the_text(rate):
    """As often as `rate` says it goes on; three verdicts in ten are not in English."""
    documents = Seeking(rate).sample(4000, random.Random(2))
    mine = [d for d in documents if d.prompt.endswith("Think:\n") and d.prompt[0] == "R"]
    assert 1850 < len(mine) < 2150
    assert not any(held_out(d.columns["numbers"]) for d in mine)
    thoughts = [read(d.columns["numbers"], d.columns["completion"]) for d in mine]
    searching = [found for found in thoughts if found[0].verdict is not None]
    assert abs(len(searching) / len(mine) - rate) < 0.04
    words = re.findall("(?m) ([a-z]+)$", "\n".join(d.columns["completion"] for d in mine))
    assert 0.2 < 1 - sum(w in ("no", "yes") for w in words) / len(words) < 0.4


# ---- the thinker's

THOUGHTS = {kind: [make(rng) for _ in range(400)] for kind, make in MAKERS.items()
            for rng in [random.Random(kind)]}


def text_of(document):
    return document.prompt + document.columns["completion"]


def test_every_kind_of_thought_has_a_share():
    assert set(KINDS) == set(MAKERS) and sum(KINDS.values()) == pytest.approx(1)


def test_no_thought_shows_a_held_out_sum_or_the_working_of_one():
    chains = 0
    for document in itertools.chain(*THOUGHTS.values()):
        for chain in re.findall(r"(?m)^([0-9]+(?:[+-][0-9]+)+)=\?", text_of(document)):
            numbers = [int(n) for n in re.findall("[0-9]+", chain)]
            assert not any(is_held_out(numbers[:k]) for k in range(2, len(numbers) + 1)), chain
            chains += 1
    assert chains > 3000


def test_no_thought_shows_a_held_out_hand():
    """Neither one of the hundred nor, of three numbers, one of those that the shared rule holds
    out."""
    hands = 0
    for kind in ("moves", "expression", "again", "reach"):
        for document in THOUGHTS[kind]:
            for found in re.findall(r"(?m)(?:from |:|^)([0-9]+(?: [0-9]+){2,3})\b",
                                    text_of(document)):
                assert not held_out(map(int, found.split())), text_of(document)
                hands += 1
    assert hands > 1500


def test_verdicts_are_true():
    said = Counter()
    for document in THOUGHTS["reach"]:
        numbers = tuple(map(int, re.fullmatch("24 from (.*)[?]", document.prompt)[1].split()))
        word = document.columns["completion"]
        assert word == ("ok" if solvable(numbers, 24) else "no")
        said[len(numbers), word] += 1
    assert all(said[n, word] > 20 for n in (1, 2, 3) for word in ("ok", "no"))


def test_what_is_worked_out_again_is_right_and_refused_where_no_whole_number_comes_of_it():
    said = Counter()
    for document in THOUGHTS["again"]:
        before, move = re.fullmatch("(.*): (.*)=", document.prompt).groups()
        state, reply = tuple(map(int, before.split())), document.columns["completion"]
        if reply == "no":
            a, op, b = re.fullmatch("([0-9]+)(.)([0-9]+)", move).groups()
            there = not Counter([a, b]) - Counter(before.split())
            result = there and eval_exact(int(a), op, int(b))
            assert not there or result is None or result < 0 or result.denominator > 1
        else:
            assert apply(state, f"{move}={reply}") == tuple(map(int, reply.split(":")[1].split()))
        said[reply == "no", len(state)] += 1
    assert len(said) == 6 and min(said.values()) > 10
    for document in THOUGHTS["step"]:
        a, b = re.fullmatch("([0-9]+)([+-][0-9]+)=", document.prompt).groups()
        assert int(a) + int(b) == int(document.columns["completion"]) <= 99
        assert "-" not in document.columns["completion"]


def eval_exact(a, op, b):
    return {"+": Fraction(a + b), "-": Fraction(a - b), "*": Fraction(a * b),
            "/": Fraction(a, b) if b else None}[op]


def test_of_a_life_what_was_told_before_is_learnt_and_nothing_else():
    """What is read token by token is what an agent reads, and the mask is on told answers and the
    end."""
    model, words = checkpoint.load("checkpoints/base")
    run, lives = Run(Learner(model), words, Thoughts(), None), 0
    batch = encode(run, THOUGHTS["recall"])
    for row, document in enumerate(THOUGHTS["recall"]):
        codes, learnt = {}, []
        for line in text_of(document).split("\n"):
            thing, answer = re.fullmatch(r"(?:code of|what opens) ([A-Z][0-9])[?] (.*)",
                                         line).groups()
            learnt += [f" {answer}"] * (thing in codes)
            assert codes.setdefault(thing, answer) == answer and thing not in HELD_OUT_THINGS
        if answer == "none":
            learnt = [" none"]
        elif "parts" not in document.columns:
            learnt = learnt[-1:]
        ids = batch.targets[row][batch.mask[row]].tolist()
        assert words.decode(ids) == "".join(learnt) and ids[-1] in words.eos
        whole = words.prompt(text_of(document)) + ids[-1:]
        assert batch.tokens[row, : len(whole)].tolist() == whole
        lives += len(learnt) > 1
    assert lives > 100


def test_a_lock_is_tried_with_any_key_that_did_not_fail():
    for document in THOUGHTS["lock"]:
        keys, tried = re.fullmatch(r"Keys 1 to (\d)\.(.*) Try", document.prompt).groups()
        key = int(document.columns["completion"])
        assert 1 <= key <= int(keys) and str(key) not in re.findall("[0-9]", tried)
    assert len({d.columns["completion"] for d in THOUGHTS["lock"]}) == 9


def test_examples_are_answered_in_one_way_and_so_is_the_question():
    ways = Counter()
    for document in THOUGHTS["examples"]:
        *shown, last = re.split(r"\n\n", text_of(document))
        kinds = {block.split("=?\n")[1].startswith("Answer:") for block in [*shown, last]}
        assert len(kinds) == 1 and last.startswith(document.prompt.rpartition("\n\n")[2])
        ways[kinds.pop()] += 1
    assert min(ways.values()) > 150
