"""DPO and its relatives: closed forms, invariants 13-19, what their recipe does with pairs."""

import copy
import json
import math
import random

import pytest
import torch
from fakes import EOS, Echo, Letters, tiny
from hypothesis import given, settings, strategies as st
from torch.func import jacrev

from minipost.datasets import preferences
from minipost.datasets.rows import File, read
from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig
from minipost.measure import scorers
from minipost.methods import dpo, ipo, kto, mdpo, orpo, reward, simpo
from minipost.ops import row_means, row_sums
from minipost.optim import Learner
from minipost.rollout import logprobs, pack
from minipost.run import Run

settings.register_profile("minipost", deadline=None, max_examples=25)
settings.load_profile("minipost")

REFERRED = dict(logp_w=(3, 4), logp_l=(3, 6), ref_w=(3, 4), ref_l=(3, 6), mask_w=(3, 4),
                mask_l=(3, 6))
PLAIN = {name: shape for name, shape in REFERRED.items() if not name.startswith("ref")}
SIDES = ("w", "l")
CASES = {  # name: (module, shapes, options)
    "dpo": (dpo, REFERRED, dict(beta=0.4, count=7)),
    "cdpo": (dpo, REFERRED, dict(beta=0.4, label_smoothing=0.2, count=7)),
    "robust dpo": (dpo, REFERRED, dict(beta=0.4, label_smoothing=0.2, robust=True, count=7)),
    "ipo": (ipo, REFERRED, dict(tau=0.3, count=7)),
    "simpo": (simpo, PLAIN, dict(beta=2.0, gamma=0.7, count=7)),
    "orpo": (orpo, PLAIN, dict(lam=0.6, count=7)),
    "kto": (kto, dict(logp=(5, 4), logp_ref=(5, 4), mask=(5, 4), good=(5,)),
            dict(z0=0.3, beta=0.5, good_weight=1.3, bad_weight=0.7, count=7)),
    "mdpo": (mdpo, dict(logp=(12, 5), logp_ref=(12, 5), mask=(12, 5)),
             dict(beta=0.4, group_size=2, count=7)),
}
PAIRED = [name for name in CASES if name not in ("kto", "mdpo")]


def inputs(shapes, seed, scale=2.0):
    """Log-probs, all below 0, masks with a token in every row, good and bad rows."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        if name.startswith("mask"):
            x = x < 0.6
            x[:, 1] = True
        elif name == "good":
            x = x < 0.5
        else:
            x = -scale * (x + 0.01)
        found[name] = x
    return found


def swapped(found):
    """The same pairs, each turned round."""
    return {key[:-1] + {"w": "l", "l": "w"}[key[-1]]: value for key, value in found.items()}


def at(found, u, beta):
    """The inputs with u = beta (h_w - h_l) for each pair, by what the first token says."""
    out = {key: value.clone() for key, value in found.items()}
    now = dpo.lead(*(out[key] for key in REFERRED), beta)
    out["logp_w"][:, 1] += (u - now) / beta
    return out


def test_at_the_reference():
    """Invariant 13: log 2 whatever the flips, 1/(4 tau^2), w/2."""
    same = inputs(REFERRED, 1)
    same["ref_w"], same["ref_l"] = same["logp_w"], same["logp_l"]
    for flip, robust in ((0.0, False), (0.2, False), (0.3, True)):
        assert float(dpo.loss(**same, beta=0.3, label_smoothing=flip, robust=robust, count=3)[0]) == \
            pytest.approx(math.log(2))
    assert float(ipo.loss(**same, tau=0.3, count=3)[0]) == pytest.approx(1 / (4 * 0.3**2))
    found = inputs(CASES["kto"][1], 2)
    found["logp_ref"] = found["logp"]
    good = int(found["good"].sum())
    value = kto.loss(**found, z0=0.0, beta=0.5, good_weight=1.2, bad_weight=0.8, count=5)[0]
    assert float(value) == pytest.approx((1.2 * good + 0.8 * (5 - good)) / 2 / 5)


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust dpo", "ipo"])
@given(st.integers(0, 10_000), st.floats(-5, 5))
def test_only_the_gap_counts(name, seed, shift):
    """Invariant 14: a number per prompt, added to both answers, changes nothing."""
    module, shapes, options = CASES[name]
    found = inputs(shapes, seed)
    moved = {**found, "logp_w": found["logp_w"].clone(), "logp_l": found["logp_l"].clone()}
    for side in SIDES:
        moved[f"logp_{side}"][:, 1] += shift
    assert torch.allclose(module.loss(**found, **options)[0], module.loss(**moved, **options)[0])


@given(st.integers(0, 10_000))
def test_dpo_turned_round_and_smoothed(seed):
    """Invariants 15 and 16."""
    found = inputs(REFERRED, seed)
    u = dpo.lead(*(found[key] for key in REFERRED), 0.4)

    def value(pairs, flip=0.0, robust=False):
        return dpo.loss(**pairs, beta=0.4, label_smoothing=flip, robust=robust, count=3)[0]

    assert torch.allclose(value(found) - value(swapped(found)), -u.mean())
    assert torch.equal(value(found, 0.0, True), value(found))
    for flip in (0.1, 0.3):
        mean = (1 - flip) * value(found, flip, True) + flip * value(swapped(found), flip, True)
        assert torch.allclose(mean, value(found))
        best = math.log((1 - flip) / flip)                  # where smoothing stops
        for u in (best - 1, best + 1):
            assert value(at(found, best, 0.4), flip) < value(at(found, u, 0.4), flip)
        grad = dpo.loss_grad(**at(found, best, 0.4), beta=0.4, label_smoothing=flip, count=3)
        assert max(float(g.abs().max()) for g in grad.values()) < 1e-12


@given(st.integers(0, 10_000), st.floats(0.01, 5))
def test_labels_that_say_nothing_hold_dpo_at_its_reference(seed, u):
    """Invariant 15: smoothed by a half, the loss is even in u, least at 0 and log 2 there."""
    found = inputs(REFERRED, seed)

    def value(u, flip=0.5):
        return float(dpo.loss(**at(found, u, 0.4), beta=0.4, label_smoothing=flip, count=3)[0])

    assert value(u) == pytest.approx(value(-u)) and value(u) > value(0.0)
    assert value(0.0) == pytest.approx(math.log(2))
    assert value(u, 0.0) == pytest.approx(math.log1p(math.exp(-u)))        # and by none it is DPO


@given(st.integers(0, 10_000))
def test_dpo_is_bradley_terry_on_log_ratios(seed):
    """Invariant 17, and mDPO with sets of one is DPO."""
    found = inputs(REFERRED, seed)
    scores = [0.4 * row_sums(found[f"logp_{s}"] - found[f"ref_{s}"], found[f"mask_{s}"])
              for s in SIDES]
    value = dpo.loss(**found, beta=0.4, count=3)[0]
    assert torch.allclose(value, reward.loss(*scores, margin=0.0, center=0.0, count=3)[0])

    def rows(key):
        chosen = torch.nn.functional.pad(found[f"{key}_w"], (0, 2))
        return torch.stack([chosen, found[f"{key}_l"]], 1).flatten(0, 1)

    sets = mdpo.loss(rows("logp"), rows("ref"), rows("mask"), beta=0.4, group_size=1, count=3)[0]
    assert torch.allclose(sets, value)


@pytest.mark.parametrize("name", PAIRED)
@given(st.integers(0, 10_000))
def test_the_chosen_rises_and_the_rejected_falls(name, seed):
    """Invariant 18; for IPO until its gap is reached."""
    module, shapes, options = CASES[name]
    found = inputs(shapes, seed)
    if name == "ipo":
        found = at(found, 0.3 * (1 / 0.6 - 1), 0.3)
    if name == "cdpo":
        found = at(found, 1.0, 0.4)
    hand = module.loss_grad(**found, **options)
    assert (hand["logp_w"][found["mask_w"]] < 0).all()
    assert (hand["logp_l"][found["mask_l"]] > 0).all()
    if name in ("dpo", "cdpo"):
        assert max(float(g.abs().max()) for g in hand.values()) <= 0.4 / 7


@given(st.integers(0, 10_000))
def test_means_do_not_see_tokens_said_twice(seed):
    """Invariant 18: SimPO and ORPO go by the mean log-prob."""
    found = inputs(PLAIN, seed)
    twice = {key: value.repeat(1, 2) for key, value in found.items()}
    for name in ("simpo", "orpo"):
        module, _, options = CASES[name]
        assert torch.allclose(module.loss(**found, **options)[0], module.loss(**twice, **options)[0])


def test_odds_of_near_certain_and_hopeless_answers():
    mean = torch.tensor([-1e-12, -1e-5, -0.1, -0.69, -0.70, -5.0, -800.0], dtype=torch.float64)
    exact = [-math.log(math.expm1(-min(m, -1e-6))) if m > -700 else m for m in mean.tolist()]
    assert orpo.log_odds(mean).tolist() == pytest.approx(exact, rel=1e-9)
    single = torch.tensor([-1e-6, -3e-6], dtype=torch.float32)
    assert orpo.log_odds(single).tolist() == pytest.approx(
        [-math.log(math.expm1(-m)) for m in single.double().tolist()], rel=1e-6)
    slopes = jacrev(lambda x: orpo.log_odds(x).sum())(mean)
    assert slopes.isfinite().all() and (slopes[1:] >= 1).all()


# ---- the optimum

def bandit():
    """Four answers of one token to one prompt: reference and rewards."""
    ref = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return ref, torch.tensor([0.2, -0.5, 0.7, 1.0], dtype=torch.float64)


def descend(value, steps=400):
    """The distribution at which value(logp) is least, by L-BFGS over its logits."""
    z = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([z], max_iter=steps, tolerance_grad=1e-12,
                                  tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        found = value(z.log_softmax(0))
        found.backward()
        return found

    optimiser.step(closure)
    return z.detach().softmax(0)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_dpo_finds_the_closed_form_optimum(flip):
    """Invariant 19: all pairs, weighted by Bradley-Terry, give pi ~ ref exp(r / beta); with flipped
    labels the robust loss still does, and plain DPO does not."""
    ref, r = bandit()
    beta = 0.5
    i, j = (1 - torch.eye(4)).nonzero(as_tuple=True)
    clean = torch.sigmoid(r[i] - r[j])
    weight = ref[i] * ref[j] * ((1 - flip) * clean + flip * (1 - clean))

    def value(robust):
        def total(logp):
            pairs = [x[:, None] for x in (logp[i], logp[j], ref.log()[i], ref.log()[j])]
            ones = torch.ones_like(pairs[0]).bool()
            each = [dpo.loss(*(x[k: k + 1] for x in (*pairs, ones, ones)), beta=beta,
                             label_smoothing=flip if robust else 0.0, robust=robust, count=1)[0]
                    for k in range(len(i))]
            return (torch.stack(each) * weight).sum()
        return total

    best = (ref * (r / beta).exp()) / (ref * (r / beta).exp()).sum()
    assert (descend(value(True)) - best).abs().max() < 1e-6
    plain = (descend(value(False)) - best).abs().max()
    assert plain < 1e-6 if flip == 0 else plain > 0.02


def test_ipo_finds_its_closed_form_optimum():
    """With preferences p(i > j) over all pairs, h_i - h_j = (p_i - p_j) / tau, p_i the mean
    preference over answers of the reference (Azar et al., sec. 5.1)."""
    ref, r = bandit()
    tau = 0.7
    i, j = (1 - torch.eye(4)).nonzero(as_tuple=True)
    chance = torch.sigmoid(r[i] - r[j])

    def total(logp):
        pairs = [x[:, None] for x in (logp[i], logp[j], ref.log()[i], ref.log()[j])]
        ones = torch.ones_like(pairs[0]).bool()
        each = [ipo.loss(*(x[k: k + 1] for x in (*pairs, ones, ones)), tau=tau, count=1)[0]
                for k in range(len(i))]
        return (torch.stack(each) * ref[i] * ref[j] * chance).sum()

    preferred = (ref[None] * torch.sigmoid(r[:, None] - r[None])).sum(1)
    best = ref * (preferred / tau).exp()
    assert (descend(total) - best / best.sum()).abs().max() < 1e-6


# ---- what the recipe does with pairs

METHODS = [dpo, ipo, simpo, orpo, kto, mdpo]


def make(task=None, model=None, **options):
    task = task or Echo()
    return Run(Learner(model or tiny()), Letters(), task, task.reward, **{"max_new_tokens": 5, **options})


def pair_task(folder, n=12, key="chosen"):
    """A file of n pairs, or of n labelled answers, and another to hold out."""
    def write(name, prompts):
        rows = [{"prompt": p, "chosen": p[::-1] + "h", "rejected": p} if key == "chosen" else
                {"prompt": p, "completion": p[::-1] + "h", "label": k % 3 == 0}
                for k, p in enumerate(prompts)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    prompts = [a + b for a in "abcd" for b in "efg"][:n]
    return File(write("train.jsonl", prompts), write("test.jsonl", ["ha", "hb", "hc"]))


def test_a_files_reference_is_computed_once_and_is_that_of_each_pair(tmp_path):
    run, cfg = make(pair_task(tmp_path)), dpo.Config(pairs=5)
    data = preferences.StepPairs(run, cfg, None)
    calls = []
    data.ask = lambda pairs: calls.append(pairs)
    for run.step in range(4):
        pairs, logps = data.draw()
        assert len(pairs) == 5
        for side, found in zip((pairs.chosen, pairs.rejected), logps):
            with torch.no_grad():
                assert torch.allclose(found, logprobs(run.policy.module, side), atol=1e-6)
    assert not calls


@pytest.mark.parametrize("module", [simpo, orpo, dpo])
def test_simpo_and_orpo_go_without_the_reference(tmp_path, module):
    """Invariant 18: another one makes no difference to a step on a file's pairs; to DPO's it does."""
    steps = []
    for seed in (1, 2):
        run = make(pair_task(tmp_path))
        run.frozen("reference", lambda: tiny(seed=seed))
        next(module.train(run, module.Config(pairs=6, lr=1e-2)))
        steps.append(run.policy.flat.clone())
    assert not torch.equal(steps[0], make().policy.flat)
    assert torch.equal(*steps) == (module is not dpo)


@pytest.mark.parametrize("module", [simpo, orpo, dpo])
@pytest.mark.parametrize("source", ["file", "samples"])
@pytest.mark.parametrize("likeliest", [1.0, 0.6])
def test_a_reference_is_made_where_it_is_asked(tmp_path, module, source, likeliest):
    """By the loss or by the filter; who answers without one is kept under another name."""
    run = make(pair_task(tmp_path) if source == "file" else None)
    metrics = next(module.train(run, module.Config(pairs=6, likeliest=likeliest)))
    asked = module is dpo or likeliest < 1
    expected = {"frozen/reference"} if asked else {"frozen/start"} if source == "samples" else set()
    assert set(run.parts) == {"learner/policy", *expected}
    assert any(name.startswith("drift/") for name in metrics) == (module is dpo)


@pytest.mark.parametrize("source", ["file", "samples"])
def test_the_filter_drops_what_the_reference_finds_unlikely(tmp_path, source):
    run = make(pair_task(tmp_path) if source == "file" else None)
    everything, _ = preferences.StepPairs(run, dpo.Config(pairs=12), preferences.by_reward).draw()
    with torch.no_grad():
        logp = logprobs(run.policy.module, everything.chosen)
    mean = row_means(logp, everything.chosen.mask)
    order = mean.argsort(descending=True)[: (len(mean) + 1) // 2]
    kept, logps = preferences.StepPairs(run, dpo.Config(pairs=12, likeliest=0.5),
                                        preferences.by_reward).draw()
    likely = {tuple(everything.chosen.tokens[i].tolist()) for i in order}

    def bare(rows):
        return {tuple(t for t in row if t) for row in rows}

    assert bare(kept.chosen.tokens.tolist()) == bare(likely) and len(logps[0]) == len(kept)


def test_the_win_rate_is_half_at_the_reference_and_knows_who_is_better():
    class Long(Echo):
        def reward(self, prompts, completions, **columns):
            return [float(len(text)) for text in completions]

    run, problems = make(Long()), Echo().sample(200, random.Random(1))
    opponent = run.reference()
    wins = scorers.win_rate(run, problems, opponent).rewards
    assert set(wins) == {0.0, 0.5, 1.0} and 0.35 < sum(wins) / 200 < 0.65
    with torch.no_grad():                                   # never EOS: as long as there is room
        run.policy.module.embed_tokens.weight[EOS] = -30 * run.policy.module.norm.weight
    better = scorers.win_rate(run, problems, opponent).rewards
    assert sum(better) / 200 > sum(wins) / 200 + 0.1


def test_mismatched_answers_belong_to_the_next_prompt():
    seqs = pack([[1, 3], [1, 4, 5], [1, 6]], [[7, 2], [8, 9, 2], [10, 2]], 0)
    found = kto.mismatched(seqs, 0, limit=5)
    rows = [[t for t in row if t] for row in found.tokens.tolist()]
    assert rows == [[1, 3, 8, 9, 2], [1, 4, 5, 10, 2], [1, 6, 7, 2]]
    assert [t[m].tolist() for t, m in zip(found.targets, found.mask)] == [
        [8, 9, 2], [10, 2], [7, 2]]
    cut = kto.mismatched(seqs, 0, limit=4)
    assert [[t for t in row if t] for row in cut.tokens.tolist()][0] == [1, 3, 8, 9]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_could_be_expected_is_never_less_than_nothing(sign):
    """z0 is the mean log-ratio of mismatched answers where that is positive, and else 0, as a KL is."""
    run = make()
    run.reference()
    answers, _ = kto.draw(run, kto.Config(), run.reference())
    wrong = kto.mismatched(answers, 0, run.policy.module.config.max_position_embeddings)
    logp = logprobs(run.policy.module, wrong).sum()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(logp, run.policy.params)])
    run.policy.assign(run.policy.flat + sign * 0.1 * slope / slope.norm())
    z0 = next(kto.train(run, kto.Config()))["z0"]
    assert z0 > 0.01 if sign > 0 else z0 == 0.0


@pytest.mark.parametrize("key", ["chosen", "label"])
def test_what_kto_takes_from_a_file(tmp_path, key):
    run = make(pair_task(tmp_path, key=key))
    seqs, good = kto.draw(run, kto.Config(batch_size=12), run.reference())
    texts = [Letters().decode(t[m].tolist()) for t, m in zip(seqs.targets, seqs.mask)]
    assert len(texts) == 12 and run.tokens == int(seqs.mask.sum())
    if key == "chosen":
        assert good.tolist() == [True, False] * 6
        assert all(("h" in text) == g for text, g in zip(texts, good.tolist()))
    else:
        labels = {p.columns["completion"]: p.columns["label"] for p in run.task.training()}
        assert [labels[text] for text in texts] == good.tolist() and 0 < sum(good) < 12
    found = kto.measure(run, {"held-out": run.task.heldout(3)}, kto.Config())["held-out"]
    assert set(found[{"chosen": "pair accuracy", "label": "label accuracy"}[key]].rewards) == {0.5}


@pytest.mark.parametrize("row, part", [
    ({"completion": "b", "label": 1}, "expected true or false under 'label', found 1"),
    ({"completion": "b"}, "found None"), ({"label": True}, "non-empty string under 'completion'"),
    ({"completion": "", "label": True}, "non-empty string under 'completion'"),
])
def test_a_row_without_a_label_among_labelled_ones(tmp_path, row, part):
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "completion": "b", "label": False}
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, {"prompt": "a", **row}, good)))
    with pytest.raises(MinipostError, match="line 2: ") as caught:
        read(str(path))
    assert part in str(caught.value)


class Early(Echo):
    """The better, the more of the answer's letters come before the prompt's."""

    def reward(self, prompts, completions, **columns):
        return [sum(c in "abcd" for c in text) / 3 for text in completions]


@pytest.mark.parametrize("module", METHODS)
@pytest.mark.parametrize("control", [False, True])
def test_it_learns_what_is_preferred_and_nothing_from_shuffled_rewards(module, control):
    torch.set_num_threads(1)
    model = GPT(GPTConfig(11, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                          max_position_embeddings=16)).initialise(1)
    run = make(Early(), model, max_new_tokens=3, seed=1, micro_batch_size=256)
    if control:
        def shuffled(prompts, completions, **columns):
            values = Early().reward(prompts, completions)
            random.Random("".join(completions)).shuffle(values)
            return values
        run.reward = shuffled
    first = copy.deepcopy(run.policy.module)
    learn = module.train(run, module.Config(steps=20, lr=1e-2))
    for run.step in range(20):
        next(learn)
    run.reward = Early().reward
    wins = scorers.win_rate(run, Early().sample(300, random.Random(2)), first).rewards
    rate = sum(wins) / len(wins)
    assert rate < 0.65 if control else rate > 0.75, rate


def test_the_remark_speaks_up_where_the_chosen_fell():
    assert dpo.remark([{"drift/chosen": 1.0, "drift/rejected": 0.0}] * 9) == dpo.remark([]) == ""
    fell = {"drift/chosen": -2.0, "drift/rejected": -7.5}
    said = dpo.remark([{"drift/chosen": 1.0, "drift/rejected": 0.0}, *[fell] * 5])
    assert "by 2.0 nats" in said and said.endswith("moved by -7.5.")
