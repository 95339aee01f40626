"""Decoding a tree against whole forward passes of every sample."""

import random

import pytest
import torch
from fakes import BOS, EOS, PAD, Echo, make_run, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost import rollout
from minipost.engine import tree
from minipost.engine.tree import Tree, arrange, pack_ways
from minipost.measure.texts import Texts
from minipost.rollout import generate
from minipost.tasks.base import Problem
from minipost.test_time import mcts, tot

PROMPTS = [[BOS, 3, 4, 5], [BOS, 3, 4], [BOS, 6, 4, 4, 3, 3], [BOS, 3, 4], [BOS], [BOS, 3, 4, 5, 6]]


class Plain:
    """What a Tree gives, by a forward pass of each sample's tokens alone: nothing is shared."""

    def __init__(self, model, prompts, max_new_tokens, group_size=1):
        self.model, self.rows = model, [list(ids) for ids in prompts for _ in range(group_size)]
        self.node = torch.arange(len(self.rows))

    def logits(self):
        return torch.stack([self.model(torch.tensor([ids]))[0, -1] for ids in self.rows])

    def grow(self, samples, token):
        self.rows = [self.rows[k] + [new] for k, new in zip(samples.tolist(), token.tolist())]
        self.node = torch.arange(len(self.rows))


@pytest.fixture(params=["packed", "small", "shared", "apart"])
def sizes(request, monkeypatch):
    """Also with constants so small that rows, batches and the cache are cut and widened.

    And so that rows read the keys and values of short prompts together.
    """
    if request.param == "shared":
        monkeypatch.setattr(tree, "LONG", 1)
        monkeypatch.setattr(tree, "MANY", 1)
    if request.param == "apart":
        monkeypatch.setattr(tree, "SAVING", 1.0)
        monkeypatch.setattr(tree, "TOKENS", 1)
    else:
        monkeypatch.setattr(tree, "SAVING", 0.0)
    if request.param == "small":
        monkeypatch.setattr(tree, "PACKED", 3)
        monkeypatch.setattr(tree, "PAIRS", 1)
        monkeypatch.setattr(tree, "COLUMNS", 1)


@pytest.mark.parametrize("kv, tied", [(1, True), (2, False), (4, True)])
@torch.no_grad()
def test_every_sample_stands_at_the_logits_of_its_own_tokens(kv, tied, sizes):
    """Prompts that begin alike, equal prompts, siblings that part, samples that end."""
    model, rng = tiny(kv=kv, tied=tied), random.Random(kv)
    ours, plain = Tree(model, PROMPTS, 9, 4), Plain(model, PROMPTS, 9, 4)
    for t in range(9):
        assert torch.allclose(ours.logits()[ours.node], plain.logits(), atol=1e-12)
        assert len(ours.logits()) == len({tuple(ids) for ids in plain.rows})
        going = [k for k in range(len(plain.rows)) if rng.random() < 0.8]
        token = torch.tensor([rng.choice([3, 4] if t < 6 else range(3, 11)) for _ in going])
        for each in (ours, plain):
            each.grow(torch.tensor(going), token)


@given(st.lists(st.lists(st.sampled_from([3, 4, 5]), max_size=4), min_size=1, max_size=5),
       st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=25, deadline=None)
def test_samples_and_log_probs_are_those_of_samples_that_share_nothing(texts, seed, temperature):
    model, prompts = tiny(), [[BOS, *text] for text in texts]
    found = []
    for decoder in (Tree, Plain):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollout, "Tree", decoder)
            found.append(generate(model, prompts, 3, max_new_tokens=6, eos={EOS, 5}, pad=PAD,
                                  temperature=temperature, seed=(seed,)))
    for name in ("tokens", "mask", "finished", "prompt"):
        assert torch.equal(*(getattr(each, name) for each in found))
    assert torch.allclose(found[0].logp, found[1].logp, atol=1e-6)          # float32


class Judged(Echo):
    step_end = "c"

    def questions(self, problem, text):
        return [(text[-2:] or problem.prompt, "a"), (problem.prompt, "b")]


@pytest.mark.parametrize("method, cfg", [
    (tot, tot.Config(width=2, branching=5, votes=3, depth=4)),
    (mcts, mcts.Config(simulations=4, branching=4, votes=2, depth=3))])
def test_a_search_finds_the_same_whether_or_not_anything_is_shared(method, cfg, monkeypatch):
    """Answers, workings, and the tokens that it is charged for."""
    problems, found = [Problem("ab"), Problem("abd"), Problem("ab")], []
    for decoder in (Tree, Plain):
        monkeypatch.setattr(rollout, "Tree", decoder)
        tools = Texts(make_run(Judged(), max_new_tokens=8))
        found.append((method.solve(problems, tools, cfg), tools.tokens))
    assert found[0] == found[1] and found[0][1] > 50


@given(st.data())
def test_children_find_what_their_parents_held_and_few_rows_move(data):
    n = data.draw(st.integers(1, 8))
    parent = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12)))
    place, origin = arrange(parent, n)
    m = len(parent)
    assert sorted(place.tolist()) == list(range(m)) and torch.equal(origin[place], parent)
    rows = torch.arange(max(m, n))                      # what `follow` does to the cache, in place
    moved = (origin != torch.arange(m)).nonzero()[:, 0]
    for row in moved.tolist():                          # one by one: no row is lost before its turn
        rows[row] = rows[origin[row]]
    assert torch.equal(rows[place], parent)
    assert len(moved) == m - len({p for p in parent.tolist() if p < m})


@given(st.sets(st.lists(st.sampled_from([3, 4]), min_size=1, max_size=6).map(tuple), min_size=1,
               max_size=12))
def test_packed_prompts_share_what_they_begin_with_alike_and_nothing_else(prompts):
    packed = pack_ways(prompts)
    assert sorted(ids for row in packed for ids in row) == sorted(prompts)
    for row in packed:
        held = {}                                       # what a place is the end of
        for ids, way in row.items():
            assert way == sorted(set(way)) and len(way) == len(ids)
            for k, place in enumerate(way):
                assert held.setdefault(place, ids[: k + 1]) == ids[: k + 1]
        assert sorted(held) == list(range(len(held)))
        assert len(set(held.values())) == len(held), "a beginning is read twice in a row"


@torch.no_grad()
def test_a_long_answer_widens_the_cache():
    """Beyond the columns that were there at first, with a bias and without."""
    model = tiny(context=256)
    for prompts in ([[BOS]], [[BOS], [BOS, 4, 4]]):
        decoder = Tree(model, prompts, 200, 1)
        rows, generator = [list(ids) for ids in prompts], torch.Generator().manual_seed(0)
        for _ in range(170):
            token = torch.randint(3, 11, (len(rows),), generator=generator)
            rows = [ids + [new] for ids, new in zip(rows, token.tolist())]
            decoder.grow(torch.arange(len(rows)), token)
        whole = torch.stack([model(torch.tensor([ids]))[0, -1] for ids in rows])
        assert torch.allclose(decoder.logits()[decoder.node], whole, atol=1e-11)


def test_prompts_are_packed_where_it_pays_and_never_long_ones(monkeypatch):
    same, apart = [(1, *range(9), k) for k in range(4)], [(k, *range(9)) for k in range(4)]
    assert len(pack_ways(same)) == 1 and len(pack_ways(apart)) == 4
    assert all(way == list(range(10)) for row in pack_ways(apart) for way in row.values())
    monkeypatch.setattr(tree, "WIDEST", 10)
    assert len(pack_ways(same)) == 4
