"""OREO: closed forms, the soft optimum of a tree, invariants 37-40, what its recipe does."""

import copy
import itertools
import json
import random
from functools import partial

import pytest
import torch
from fakes import EOS, WIDTH, Echo, Letters, answer_file, make_run, sequences, tiny, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig, RewardModel
from minipost.measure.results import Result
from minipost.methods import oreo
from minipost.ops import kl_exact, pick
from minipost.optim import Learner
from minipost.rollout import distribution, logprobs, pack
from minipost.test_time import beam

make = partial(make_run, max_new_tokens=5)
OPTIONS = dict(beta=0.4, alpha=0.3, count=5)


def inputs(seed, level="step", shape=(3, 6)):
    """Random arguments; each row's mask is one stretch, its first token starts an action."""
    generator = torch.Generator().manual_seed(seed)

    def rand():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    column = torch.arange(shape[1])
    first = torch.randint(0, 2, (shape[0], 1), generator=generator)
    length = torch.randint(1, 5, (shape[0], 1), generator=generator)
    mask = (column >= first) & (column < first + length)
    starts = {"token": mask, "response": column == first,
              "step": mask & ((rand() > 0) | (column == first))}[level]
    return {"logp": -rand().abs(), "value": rand(), "kl": rand().abs(), "logp_held": -rand().abs(),
            "value_held": rand(), "logp_ref": -rand().abs(), "reward": rand()[:, 0], "mask": mask,
            "starts": starts}


@given(st.integers(0, 10_000), st.integers(1, 2))
def test_rows_and_padding_add_up(seed, cut):
    """With a global count, micro-batches and columns of padding change nothing."""
    found = inputs(seed)
    whole = oreo.loss(**found, **OPTIONS)[0]
    pieces = [oreo.loss(**{k: x[rows] for k, x in found.items()}, **OPTIONS)[0]
              for rows in (slice(0, cut), slice(cut, 3))]
    assert torch.allclose(sum(pieces), whole)
    wide = {k: torch.nn.functional.pad(x, (1, 2)) if x.dim() == 2 else x for k, x in found.items()}
    assert torch.allclose(oreo.loss(**wide, **OPTIONS)[0], whole)


# ---- the soft optimum of a tree

def levels(mask, seed=0):
    """Starts of each kind: token, response, and random steps that differ from row to row."""
    first = torch.zeros_like(mask)
    first[:, 0] = True
    some = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return {"token": mask, "response": first, "step": first | some}


@given(st.integers(0, 1000), st.floats(0.05, 2.0))
def test_the_residual_is_zero_at_the_soft_optimum_on_every_trajectory(seed, beta):
    """Invariant 37, at every level and with any stop-gradient."""
    found = tree(seed, beta)
    assert torch.allclose(found["logp"].sum(1).exp().sum(), torch.ones(()).double())
    for starts in levels(found["mask"], seed).values():
        both = oreo.residuals(found["logp"], found["value"], found["logp"], found["value"],
                              found["logp_ref"], found["reward"], found["mask"], starts, beta)
        assert max(float(d.abs().max()) for d in both) < 1e-10
        hand = oreo.loss_grad(**found, starts=starts, beta=beta, alpha=0.0, count=1)
        assert max(float(g.abs().max()) for g in hand.values()) < 1e-10


@given(st.integers(0, 1000), st.sampled_from(["token", "step", "response"]), st.booleans())
@settings(max_examples=10)
def test_at_the_soft_optimum_no_weighting_and_no_holding_leaves_a_gradient(seed, level, held):
    """Some trajectories of 81 come often and most never; V, or the l of later actions, free or
    held."""
    found = tree(seed, 0.7)
    rows = torch.randint(81, (20,), generator=torch.Generator().manual_seed(seed)) ** 2 % 81
    found = {key: x[rows] for key, x in found.items()}
    starts = levels(found["mask"], seed)[level]

    def whole(logp, value):
        kept = {"logp_held": logp.detach() if held else logp,
                "value_held": value.detach() if held else value}
        return oreo.loss(**{**found, "logp": logp, "value": value, **kept}, starts=starts, beta=0.7,
                         alpha=0.0, count=1)[0]

    at = found["logp"].clone().requires_grad_(), found["value"].clone().requires_grad_()
    assert max(float(g.abs().max()) for g in torch.autograd.grad(whole(*at), at)) < 1e-10
    off = at[0], (found["value"] + 0.1).requires_grad_()        # the control
    assert min(float(g.abs().max()) for g in torch.autograd.grad(whole(*off), off)) > 1e-4


def tabular(found, beta, level, steps=3000):
    """A free policy and value for every state, trained on all trajectories with uneven weights."""
    depth = 2
    states = [s for d in range(depth) for s in itertools.product(range(WIDTH), repeat=d)]
    place = {s: k for k, s in enumerate(states)}
    leaves = list(itertools.product(range(WIDTH), repeat=depth))
    index = torch.tensor([[place[leaf[:t]] for t in range(depth)] for leaf in leaves])
    act = torch.tensor(leaves)
    generator = torch.Generator().manual_seed(5)
    ref = torch.randn(len(states), WIDTH, generator=generator, dtype=torch.float64).log_softmax(1)
    reward = torch.randn(len(leaves), generator=generator, dtype=torch.float64)
    weight = torch.tensor([1 + k % 3 for k in range(len(leaves))])      # not the policy's own data
    rows = torch.arange(len(leaves)).repeat_interleave(weight)
    z = ref.clone().requires_grad_()
    v = torch.zeros(len(states), dtype=torch.float64, requires_grad=True)
    mask = torch.ones(len(rows), depth).bool()
    starts = levels(mask)[level]
    optimiser = torch.optim.Adam([z, v], lr=0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        logp = z.log_softmax(1)[index, act][rows]
        value = v[index][rows]
        total, _ = oreo.loss(logp, value, torch.zeros_like(value), logp.detach(), value.detach(),
                             ref[index, act][rows], reward[rows], mask, starts, beta=beta,
                             alpha=0.0, count=len(rows))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    sequence = z.detach().log_softmax(1)[index, act].sum(1).softmax(0)
    best = (ref[index, act].sum(1) + reward / beta).softmax(0)
    return sequence, best


@pytest.mark.parametrize("level", ["token", "response"])
def test_it_reaches_the_closed_form_optimum_from_uneven_data(level):
    """pi ~ ref exp(R / beta) over whole answers, from data that no policy made."""
    found, best = tabular(None, 0.7, level)
    assert (found - best).abs().max() < 1e-5


def test_nothing_to_learn_where_all_is_alike():
    """Invariant 38: at the reference with a constant reward as the value."""
    found = inputs(1)
    same = {**found, "logp": found["logp_ref"], "logp_held": found["logp_ref"],
            "value": torch.full_like(found["value"], 0.7),
            "reward": torch.full_like(found["reward"], 0.7),
            "kl": torch.zeros_like(found["kl"])}
    same["value_held"] = same["value"]
    assert float(oreo.loss(**same, **OPTIONS)[0]) < 1e-30


@given(st.integers(0, 10_000))
def test_without_holding_anything_the_policy_gets_the_sum_of_earlier_residuals(seed):
    """Invariant 39, token level: d/dlogp_t = (2 beta / (K B)) sum_(j<=t) d_j, for either loss."""
    found = inputs(seed, "token")
    found["value_held"] = found["value"]

    def whole(logp):
        return oreo.loss(**{**found, "logp": logp, "logp_held": logp}, **{**OPTIONS, "alpha": 0})[0]

    d = oreo.residuals(found["logp"], found["value"], found["logp"], found["value"],
                       found["logp_ref"], found["reward"], found["mask"], found["starts"], 0.4)[0]
    k = found["mask"].sum(1, keepdim=True)
    # Both equations move with every later token, so the sum counts twice.
    sums = (2 * 0.4 / (k * 5)) * 2 * d.cumsum(1).where(found["mask"], 0.0)
    assert torch.allclose(jacrev(whole)(found["logp"]), sums)


@given(st.integers(0, 10_000), st.sampled_from(["token", "step", "response"]))
def test_the_gradients_of_each_level_action_by_action(seed, level):
    """Of tokens 2 beta d_t / (K B), of responses 2 beta d_0 / B on all: action by action in a
    loop."""
    found = inputs(seed, level)
    found |= {"logp_held": found["logp"], "value_held": found["value"]}
    hand = oreo.loss_grad(**found, **OPTIONS)
    for row in range(3):
        places = found["mask"][row].nonzero()[:, 0].tolist()
        begins = [t for t in places if found["starts"][row, t]]
        assert {"token": begins == places, "response": begins == places[:1]}.get(level, True)
        ratio = found["logp"][row] - found["logp_ref"][row]
        logp, value = torch.zeros(6).double(), torch.zeros(6).double()
        for begin, end in zip(begins, [*begins[1:], places[-1] + 1]):
            d = (found["value"][row, begin] + 0.4 * ratio[begin : places[-1] + 1].sum()
                 - found["reward"][row])
            logp[begin:end] = 2 * 0.4 * d / (len(begins) * 5)
            value[begin] = 2 * d / (len(begins) * 5)
        assert torch.allclose(hand["logp"][row], logp) and torch.allclose(hand["value"][row], value)


@given(st.integers(0, 10_000))
def test_the_best_value_is_the_mean_of_what_is_left(seed):
    """Invariant 40: with a fixed policy, L_V is least where V is the mean of R - beta sum l."""
    found = inputs(seed, "token", (4, 5))
    found = {**{k: x[:1].expand_as(x) if k in ("mask", "starts") else x for k, x in found.items()}}
    mask = found["mask"]
    ratio = (found["logp_held"] - found["logp_ref"]).where(mask, 0.0)
    left = found["reward"][:, None] - 0.4 * ratio.flip(1).cumsum(1).flip(1)
    value = left.mean(0, keepdim=True).expand_as(left)      # one state per column
    grad = oreo.loss_grad(**{**found, "value": value}, **OPTIONS)["value"]
    assert grad.sum(0).abs().max() < 1e-12


# ---- what the recipe does

class Rows(Echo):
    step_end = "h"


def test_where_actions_begin():
    run = make(Rows())
    # a b h c h d EOS,   then h a without EOS,   then EOS alone
    h = 3 + Letters.letters.index("h")
    seqs = pack([[1, 3], [1, 3, 4], [1], [1]],
                [[3, 4, h, 5, h, 6, EOS], [h, 3], [EOS], [3, h]], 0)

    def found(level):
        return [(row.nonzero()[:, 0] - int(m.int().argmax())).tolist()
                for row, m in zip(oreo.starts(run, seqs, level), seqs.mask)]

    assert found("token") == [[0, 1, 2, 3, 4, 5, 6], [0, 1], [0], [0, 1]]
    assert found("step") == [[0, 3, 5, 6], [0, 1], [0], [0]]
    assert found("response") == [[0], [0], [0], [0]]


def test_steps_of_one_token_are_tokens_and_one_step_is_the_response():
    """EOS is an action of its own among the steps, so the one step is that of an unfinished
    answer."""
    run, h = make(Rows()), 3 + Letters.letters.index("h")
    for text, level in (([h, h, h, EOS], "token"), ([h, h], "token"), ([3, 4, 5], "response"),
                        ([3, 4, h], "response")):
        seqs = pack([[1, 3]], [text], 0)
        assert torch.equal(oreo.starts(run, seqs, "step"), oreo.starts(run, seqs, level)), text


def test_a_step_learns_from_what_the_docstring_says(monkeypatch, tmp_path):
    """Every row that the loss is given, told by its reward, against a recomputation alone."""
    rows = [{"prompt": "abc"[: 1 + k % 3], "completion": "dhefhg"[: 1 + k], "reward": k / 5}
            for k in range(6)]
    path, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps({"prompt": "h", "completion": "a", "reward": 1}))
    task = File(str(path), str(test))
    monkeypatch.setattr(File, "step_end", "h", raising=False)
    run, whole, seen = make(task, micro_batch_size=4), oreo.loss, []

    def spy(*args, **options):
        seen.append((args, options))
        return whole(*args, **options)

    monkeypatch.setattr(oreo, "loss", spy)
    steps = oreo.train(run, oreo.Config(steps=3, batch_size=6, lr=1e-2, critic_lr=1e-2,
                                        warmup_steps=0))
    next(steps)
    run.step = 1
    seen.clear()
    policy, critic = (copy.deepcopy(run.learners[name].module) for name in ("policy", "critic"))
    next(steps)
    assert len(seen) == 2                                   # micro-batches of 4 and 2
    known = {}
    for (logp, value, kl, logp_held, value_held, logp_ref, reward, mask, starts), options in seen:
        assert options == dict(beta=0.05, alpha=0.1, count=6)
        assert not logp_held.requires_grad and not value_held.requires_grad
        assert torch.equal(logp_held, logp) and torch.equal(value_held, value)
        for k, r in enumerate(reward.tolist()):
            known[round(5 * r)] = [x[k][mask[k]] for x in (logp, value, kl, logp_ref, starts)]
    assert sorted(known) == list(range(6))
    for k, row in enumerate(rows):
        seqs = pack([Letters().prompt(row["prompt"])], [Letters().response(row["completion"])], 0)
        logp_all, logq_all = (distribution(m, seqs) for m in (policy, run.reference()))
        ids = seqs.targets[seqs.mask]
        expected = [pick(logp_all, ids), critic(seqs.inputs)[seqs.mask],
                    kl_exact(logp_all, logq_all), pick(logq_all, ids)]
        for mine, theirs in zip(known[k], expected):
            assert torch.allclose(mine, theirs, atol=1e-6), k
        assert torch.equal(known[k][4], oreo.starts(run, seqs, "step")[seqs.mask])
        assert not torch.allclose(known[k][0], known[k][3], atol=1e-3)


def test_the_reward_that_policy_and_value_imply():
    run, seqs, critic = make(), sequences(5), RewardModel(tiny(seed=3))
    run.reference()
    run.policy.assign(run.policy.flat * 1.2)
    with torch.no_grad():
        critic.score.weight.fill_(0.3)
        found = oreo.implied(run, seqs, critic, 0.7)
        for k in range(5):
            row = seqs[[k]]
            ratio = logprobs(run.policy.module, row) - logprobs(run.reference(), row)
            start = row.tokens[:, : int(row.mask.int().argmax()) + 1]
            assert float(found[k]) == pytest.approx(
                float(critic(start)[0, -1] + 0.7 * ratio.sum()), abs=1e-6)


class Early(Echo):
    """The better, the more of the answer's letters come early in the alphabet."""

    def reward(self, prompts, completions, **columns):
        return [sum(c in "abcd" for c in text) / 3 for text in completions]


def learn(seed, control):
    torch.set_num_threads(1)
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(seed)
    run = make(Early(), model, max_new_tokens=3, seed=seed, micro_batch_size=256)
    if control:
        def shuffled(prompts, completions, **columns):
            values = Early().reward(prompts, completions)
            random.Random("".join(completions)).shuffle(values)
            return values
        run.reward = shuffled
    cfg = oreo.Config(steps=60, prompts=64, lr=1e-2, critic_lr=1e-2, alpha=0.01, branching=8)
    steps = oreo.train(run, cfg)
    for run.step in range(cfg.steps):
        next(steps)
    run.reward = Early().reward
    found = oreo.measure(run, {"x": Early().sample(200, random.Random(1))}, cfg)["x"]
    return {name: result.score.value for name, result in found.items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_policy_and_value_learn_and_neither_does_from_shuffled_rewards(seed):
    found, control = learn(seed, False), learn(seed, True)
    assert found["sampled"] > 0.7 and control["sampled"] < 0.45, (found, control)
    assert found["value-guided beam"] > 0.8 and control["value-guided beam"] < 0.6


def test_the_reference_stays_the_first_one_and_each_learner_has_its_rate(monkeypatch):
    run, rates, levels = make(), [], []
    step, starts = Learner.step, oreo.starts
    monkeypatch.setattr(Learner, "step", lambda self, lr, norm, decay: rates.append(
        (self is run.policy, lr)) or step(self, lr, norm))
    monkeypatch.setattr(oreo, "starts", lambda run, seqs, level: levels.append(level) or starts(
        run, seqs, level))
    first = copy.deepcopy(run.policy.module)
    cfg = oreo.Config(steps=4, prompts=6, group_size=2, batch_size=8, iterations=2, lr=0.02,
                      critic_lr=0.03,
                      warmup_steps=0, level="response")
    steps = oreo.train(run, cfg)
    for run.step in range(4):
        next(steps)
    assert rates[:2] == [(True, 0.02), (False, 0.03)] and levels == ["response"] * 2
    assert all(torch.equal(a, b) for a, b in zip(run.reference().parameters(), first.parameters()))
    sampler = run.parts["frozen/sampler"].module
    assert not torch.equal(sampler.embed_tokens.weight, first.embed_tokens.weight)


def test_a_config_is_checked():
    for wrong in (dict(beta=0), dict(alpha=-1), dict(iterations=0), dict(width=0),
                  dict(group_size=0)):
        with pytest.raises(MinipostError, match=next(iter(wrong))):
            oreo.Config(**wrong)


def test_oreo_on_a_file_says_how_often_the_implied_reward_is_right(tmp_path):
    run = make_run(answer_file(tmp_path, "label"))
    steps = oreo.train(run, oreo.Config(steps=30, batch_size=9, lr=1e-2, critic_lr=1e-2,
                                        warmup_steps=1))
    splits = {"seen": run.task.training()}
    before = oreo.measure(run, splits, oreo.Config())["seen"]["outcome accuracy"]
    for run.step in range(30):
        next(steps)
    after = oreo.measure(run, splits, oreo.Config())["seen"]["outcome accuracy"]
    assert sum(before.rewards) == sum(not p.columns["label"] for p in run.task.training()) == 4
    assert sum(after.rewards) == 9


def test_what_a_search_is_measured_with(monkeypatch):
    """Its own width and branching; at the level of responses there is nothing to guide."""
    seen = []
    monkeypatch.setattr(beam, "measure", lambda problems, tools, *how: seen.append(how) or
                        Result.of([0.0] * len(problems), [""] * len(problems)))
    run, splits = make_run(), {"x": Echo().heldout(4)}
    assert "value-guided beam" in oreo.measure(run, splits, oreo.Config(width=3, branching=7))["x"]
    assert seen == [(3, 7)]
    found = oreo.measure(run, splits, oreo.Config(level="response"))["x"]
    assert sorted(found) == ["greedy", "sampled"] and len(seen) == 1
    monkeypatch.setattr(Echo, "acts", True)                 # the search asks no tool
    monkeypatch.setattr(Echo, "call_end", "h")
    monkeypatch.setattr(Echo, "tool", lambda self, problem, text: "a")
    assert sorted(oreo.measure(run, splits, oreo.Config())["x"]) == ["greedy", "sampled"]
