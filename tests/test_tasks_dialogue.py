"""Dialogue: what its turns need, which tokens are learnt, plain and in a chat template."""

import random
import re

import pytest
import torch
from test_chat import TEMPLATES, directory_of, vocabulary_of

from minipost import checkpoint
from minipost.chat import Messages
from minipost.datasets.chats import in_chat
from minipost.errors import MinipostError
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.base import is_held_out
from minipost.tasks.dialogue import LIMIT, Dialogue, asked


def replayed(said):
    """The answers of a dialogue, by its user's turns alone."""
    given = []
    for question, _ in said:
        if question == "back?":
            given.append(given[-2])
        elif question[0].isdigit():
            a, b = question[:-1].split("+")
            given.append(int(a) + int(b))
        else:
            given.append(given[-1] + int(question[:-1]))
    return given


def test_answers_follow_from_the_turns():
    task = Dialogue()
    for problem in task.heldout(200) + task.sample(400, random.Random(0)):
        said, cut = problem.columns["said"], problem.columns["cut"]
        answers = [answer for _, answer in said]
        assert replayed(said) == answers and all(0 <= n <= LIMIT for n in answers)
        assert len(said) == 5 and problem.columns["answer"] == answers[cut]
        lines = problem.prompt.split("\n")
        assert lines[::2] == [f"User: {q}" for q, _ in said[: cut + 1]]
        assert lines[1::2] == [f"Bot: {n}" for n in answers[:cut]] + ["Bot:"]
        for text in (f" {answers[cut]}\n", task.demonstrate(problem),
                     Messages(task.messages(problem)[1])):
            assert task.reward([""], [text], answer=[answers[cut]]) == [1.0]
            assert task.reward([""], [text], answer=[answers[cut] + 1]) == [0.0]
    assert {p.columns["cut"] for p in task.sample(99, random.Random(1))} == {0, 1, 2, 3, 4}


def test_no_training_dialogue_is_held_out():
    task = Dialogue()

    def numbers(problem):
        return [int(n) for q, _ in problem.columns["said"] for n in re.findall("[0-9]+", q)]

    assert all(is_held_out(numbers(p)) for p in task.heldout(99))
    assert not any(is_held_out(numbers(p)) for p in task.sample(99, random.Random(0)))


def test_the_splits_differ_in_what_the_last_turn_needs():
    splits = Dialogue().splits(100)
    needy, cut, free = splits.values()
    assert list(splits) == ["held-out", "earlier turns cut away", "no earlier turn needed"]
    assert needy == Dialogue().heldout(100)
    for whole, alone in zip(needy, cut, strict=True):
        assert whole.prompt.endswith("\n" + alone.prompt) and alone.prompt.count("User:") == 1
        assert whole.columns["answer"] == alone.columns["answer"]
    last = [p.prompt.split("\n")[-2] for p in needy]
    assert all(re.fullmatch("User: ([+-][1-9]|back)[?]", line) for line in last)
    assert {line.split()[1][0] for line in last} == {"+", "-", "b"}
    assert all(re.search("User: [0-9]+[+][0-9]+[?]\nBot:$", p.prompt) for p in free)


def test_the_last_turn_alone_does_not_tell_its_answer():
    """The best guess by it, knowing how all held-out answers are spread, is seldom right."""
    rows = Dialogue().heldout(2000)
    by_turn = {}
    for p in rows:
        by_turn.setdefault(p.columns["said"][-1][0], []).append(p.columns["answer"])
    best = sum(max(map(found.count, set(found))) for found in by_turn.values()) / len(rows)
    assert best < 0.15


@pytest.mark.parametrize("turns", [1, 13])
def test_its_knob(turns):
    with pytest.raises(MinipostError, match="turns must be 2..12"):
        Dialogue(turns=turns)


# ---- what is learnt

def learnt(run, problem):
    """(the text that is read, the pieces of it that are learnt) of a demonstration."""
    batch = run.encode([problem], [run.task.demonstrate(problem)])
    targets, mask = batch.targets[0].tolist(), batch.mask[0].tolist()
    pieces, decode = [], run.vocabulary.tokenizer.decode
    for k, chosen in enumerate(mask):
        if chosen:
            if not (k and mask[k - 1]):
                pieces.append([])
            pieces[-1].append(targets[k])
    return decode(batch.tokens[0].tolist(), {}), [decode(ids, {}) for ids in pieces]


def problems(task):
    """A dialogue at each turn of the user."""
    found = {p.columns["cut"]: p for p in task.sample(200, random.Random(3))}
    return [found[cut] for cut in sorted(found)]


def test_plain_turns_of_the_assistant_alone_are_learnt():
    """Every one of them from there on, with its line break; EOS behind the last."""
    model, words = checkpoint.load("checkpoints/base")
    task = Dialogue()
    run = Run(Learner(model), words, task, task.reward)
    for problem in problems(task):
        said, cut = problem.columns["said"], problem.columns["cut"]
        text, pieces = learnt(run, problem)
        assert text == "<bos>" + "".join(f"{asked(q)} {n}\n" for q, n in said) + "<eos>"
        wanted = [f" {n}\n" for _, n in said[cut:]]
        assert pieces == [*wanted[:-1], wanted[-1] + "<eos>"]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """The vocabulary of each template that is asked for."""
    made = {}

    def vocabulary(name):
        if name not in made:
            made[name] = vocabulary_of(directory_of(name, tmp_path_factory.mktemp(name)))
        return made[name]
    return vocabulary


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "generation"])
def test_in_a_template_the_assistants_turns_alone_are_learnt(chatty, name):
    """Every one of them, with the token that ends it."""
    from fakes import tiny

    words, task = chatty(name), in_chat(Dialogue())
    run = Run(Learner(tiny(vocab=words.tokenizer.vocab_size, context=512)), words, task,
              task.reward)
    for problem in problems(task):
        said, cut = problem.columns["said"], problem.columns["cut"]
        assert isinstance(problem.prompt, Messages) and len(problem.prompt.turns) == 2 * cut + 1
        text, pieces = learnt(run, problem)
        assert text.count("back") == sum("back" in q for q, _ in said)
        assert [re.sub("<[^>]*>", "", piece).strip() for piece in pieces] == [
            str(n) for _, n in said[cut:]]
        assert all(words.ending in piece for piece in pieces) and words.ending


def test_in_chatml_to_the_letter(chatty):
    from fakes import tiny

    words, task = chatty("chatml"), in_chat(Dialogue(turns=2))
    run = Run(Learner(tiny(vocab=words.tokenizer.vocab_size, context=512)), words, task,
              task.reward)
    problem = next(p for p in problems(task) if p.columns["cut"] == 0)
    (q, a), (again, b) = problem.columns["said"]
    text, pieces = learnt(run, problem)
    assert text.endswith(
        f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n"
        f"<|im_start|>user\n{again}<|im_end|>\n<|im_start|>assistant\n{b}<|im_end|>")
    assert pieces == [f"{a}<|im_end|>", f"{b}<|im_end|>"]
    assert "chatml" in TEMPLATES


def test_the_loss_is_the_assistants(chatty):
    """What the user says has no gradient at all: swap it where nobody reads on."""
    from minipost.methods import sft
    from minipost.rollout import logprobs

    model, words = checkpoint.load("checkpoints/student")
    task = Dialogue(turns=3)
    run = Run(Learner(model), words, task, task.reward)
    problem = next(p for p in problems(task) if p.columns["cut"] == 0)
    batch = run.encode([problem], [task.demonstrate(problem)])
    logp = logprobs(model, batch)
    assert (logp[~batch.mask] == 0).all() and (logp[batch.mask] < 0).all()
    slope = sft.loss_grad(logp, batch.mask, count=int(batch.mask.sum()))["logp"]
    assert torch.equal(slope != 0, batch.mask)
