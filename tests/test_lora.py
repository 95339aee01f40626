"""LoRA against autograd, against the merged model, and peft's layout against peft."""

import copy
import json

import pytest
import torch
from conftest import tiny_model
from fakes import sequences, tiny, toy

import minipost
from minipost import checkpoint, train
from minipost.engine.lora import TARGETS, adapt, adapters, fill, merged, off, own, trained
from minipost.errors import MinipostError
from minipost.gpt import RewardModel, ValueHead
from minipost.layout import lora_file
from minipost.methods.trpo import product_hessian, product_jacobian
from minipost.optim import Learner, layer_matrices
from minipost.parts import Frozen
from minipost.rollout import distribution, generate, logprobs

SOME = ("q_proj", "v_proj", "up_proj", "o_proj")


def adapted(targets=(), model=None, rank=3, learnt=True):
    """A model with adapters that have learnt something."""
    model = adapt(tiny() if model is None else model, rank, targets=targets)
    generator = torch.Generator().manual_seed(7)
    for _, _, adapter in adapters(model) if learnt else ():
        adapter.b.data.copy_(0.3 * torch.randn(adapter.b.shape, generator=generator))
    return model


def test_at_first_nothing_changes_and_nothing_but_adapters_learns():
    plain, seqs = tiny(), sequences(5)
    model = adapted(model=copy.deepcopy(plain), learnt=False)
    assert torch.equal(logprobs(model, seqs), logprobs(plain, seqs))
    assert len(trained(model)) == 2 * 4 * 2                    # A and B, four matrices, two layers
    assert all(adapter.a.abs().max() > 0 for _, _, adapter in adapters(model))
    fixed = [p for name, p in model.named_parameters() if "adapter" not in name]
    before = [p.clone() for p in fixed]
    learner = Learner(model)
    assert len(learner.flat) == sum(p.numel() for p in trained(model))
    for _ in range(3):
        logprobs(model, seqs).sum().backward()
        learner.step(0.1)
    assert all(torch.equal(p, was) and p.grad is None for p, was in zip(fixed, before))
    assert (logprobs(model, seqs) - logprobs(plain, seqs)).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [(), SOME, ("k_proj",), ("gate_proj", "down_proj")])
def test_the_derivative_by_hand_is_that_of_plain_operations(targets):
    model, seqs = adapted(targets), sequences(6)
    weight = torch.randn(seqs.mask.shape, dtype=torch.float64,
                         generator=torch.Generator().manual_seed(1))
    by_hand = torch.autograd.grad((logprobs(model, seqs) * weight).sum(), trained(model))
    logits = model.head(model.hidden(seqs.inputs, explicit=True))
    logp = logits.log_softmax(-1).gather(2, seqs.targets[..., None])[..., 0]
    plain = torch.autograd.grad((logp * weight * seqs.mask).sum(), trained(model))
    for ours, theirs in zip(by_hand, plain):
        assert theirs.abs().max() > 1e-3
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("targets", [(), SOME])
def test_the_equation(targets):
    """W + s B A in place of W, cut by hand into the matrices that a target names."""
    model, plain, seqs = adapted(targets), tiny(), sequences(5)
    one = model.layers[0].self_attn.qkv_proj
    q, k, v = one.weight.split([16, 8, 8])
    a, b = one.adapter.a, one.adapter.b
    if not targets:
        low = torch.cat([b[:16] @ a[:3], b[16:24] @ a[3:6], b[24:] @ a[6:]])
    else:
        low = torch.cat([b[:16] @ a[:3], 0 * k, b[16:] @ a[3:]])
    assert torch.allclose(merged(model).layers[0].self_attn.qkv_proj.weight,
                          torch.cat([q, k, v]) + 2 * low)
    assert torch.allclose(logprobs(merged(model), seqs), logprobs(model, seqs), atol=1e-12)
    with pytest.raises(MinipostError, match="adapters beside its weights"):
        checkpoint.weights(model)
    assert (logprobs(plain, seqs) - logprobs(model, seqs)).abs().max() > 1e-2


def test_the_sampler_answers_as_the_merged_model():
    model, prompts = adapted(), [[1, 4, 5], [1, 3], [1, 3]]
    one, other = (generate(each, prompts, 3, max_new_tokens=9, eos={2}, pad=0, seed=(5,))
                  for each in (model, merged(model)))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.allclose(one.logp, other.logp, atol=1e-6)
    assert torch.allclose(one.logp.double(), logprobs(model, one).detach(), atol=1e-5)


def test_copies_share_what_is_fixed_and_a_state_holds_only_what_learns():
    model = adapted()
    critic = ValueHead(copy.deepcopy(model))
    assert critic.trunk.embed_tokens.weight is model.embed_tokens.weight
    assert critic.trunk.layers[0].mlp.down_proj.weight is model.layers[0].mlp.down_proj.weight
    assert critic.trunk.layers[0].mlp.down_proj.adapter.b is not \
        model.layers[0].mlp.down_proj.adapter.b
    assert set(own(critic)) == {
        "score.weight", *(f"trunk.{name}.{x}" for name, _, _ in adapters(model) for x in "ab")}
    assert set(Learner(critic).params) == {*trained(critic)} and len(trained(critic)) == 17


def test_the_reference_is_the_model_with_its_adapters_off():
    run = toy(seed=0)
    run.policy = Learner(adapted(model=run.policy.module, learnt=False))
    run.parts["learner/policy"] = run.policy
    seqs = sequences(4)
    before = logprobs(run.policy.module, seqs).detach()
    reference = run.reference()
    assert not adapters(reference)
    assert reference.embed_tokens.weight is run.policy.module.embed_tokens.weight
    logprobs(run.policy.module, seqs).sum().backward()
    run.policy.step(0.1)
    assert torch.equal(logprobs(reference, seqs), before)
    assert not torch.equal(logprobs(run.policy.module, seqs), before)
    again = Frozen(copy.deepcopy(run.policy.module))            # as in a resumed run
    again.restore(*Frozen(reference).state())
    assert not adapters(again.module) and torch.equal(logprobs(again.module, seqs), before)


def test_a_reference_of_a_later_time_keeps_what_was_learnt():
    model, seqs = adapted(), sequences(4)
    later = off(copy.deepcopy(model))
    assert len(adapters(later)) == 8
    state = own(later)
    other = adapt(tiny(), 3)
    fill(other, state)
    assert torch.equal(logprobs(other, seqs), logprobs(model, seqs))


def test_fisher_products_of_adapters():
    """J' M J against the second derivative of the KL, both by plain operations."""
    learner, seqs = Learner(adapted()), sequences(4)
    vector = torch.randn(len(learner.flat), dtype=torch.float64,
                         generator=torch.Generator().manual_seed(2))
    assert torch.allclose(product_jacobian(learner, seqs, 1.0, vector),
                          product_hessian(learner, seqs, 1.0, vector), atol=1e-9)


def test_muon_moves_the_matrices_of_each_adapter_alone():
    model = adapted(("q_proj", "v_proj"))
    found = layer_matrices(model)
    adapter = model.layers[0].self_attn.qkv_proj.adapter
    assert found[adapter.a] == [3, 3] and found[adapter.b] == [16, 8]


def test_the_same_seed_gives_the_same_adapters():
    one, two, other = (adapt(tiny(), 3, seed=seed) for seed in (1, 1, 2))
    a, b, c = (adapters(each)[0][2].a for each in (one, two, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.abs().max() <= 1 / 4                               # 1/sqrt(D)


def test_scale_is_alpha_by_rank():
    assert adapters(adapt(tiny(), 4))[0][2].scale == 2
    assert adapters(adapt(tiny(), 4, alpha=6))[0][2].scale == 1.5


# ---- fewer numbers than a rank has

def tied(numbers=5, rank=2, targets=(), model=None, learnt=True):
    """A model whose adapters are of so many numbers, which have learnt something."""
    model = adapt(tiny() if model is None else model, rank, targets=targets, numbers=numbers)
    if learnt:
        trained(model)[0].data.copy_(torch.linspace(-0.5, 0.7, numbers))
    return model


@pytest.mark.parametrize("targets", [(), SOME])
def test_a_few_numbers_learn_on_singular_directions(targets):
    """W + U S (sum_i v_i P_i) V^T of the first two, with the same v everywhere, by hand."""
    model, plain = tied(targets=targets), tiny()
    v, = trained(model)
    for name, linear, adapter in adapters(model):
        found, matrices = merged(model).get_submodule(name.removesuffix(".adapter")).weight, []
        for k, (part, has) in enumerate(zip(linear.weight.split(adapter.rows), adapter.adapted)):
            u, s, right = torch.linalg.svd(part)
            mixed = sum(x * p for x, p in zip(v, adapter.p[sum(adapter.adapted[:k])])) if has \
                else torch.zeros(4)
            right = right[:2]
            sign = torch.diag(right.gather(1, right.abs().argmax(1, True))[:, 0].sign()).double()
            matrices.append(part + u[:, :2] @ s[:2].diag() @ sign @ mixed.view(2, 2).double()
                            @ sign @ right)
        assert torch.allclose(found, torch.cat(matrices))
        assert not torch.allclose(found, linear.weight)
    seqs = sequences(5)
    assert torch.allclose(logprobs(merged(model), seqs), logprobs(model, seqs), atol=1e-12)
    assert (logprobs(plain, seqs) - logprobs(model, seqs)).abs().max() > 1e-2


@pytest.mark.parametrize("targets", [(), SOME, ("gate_proj",)])
def test_the_derivative_by_a_few_numbers(targets):
    model, seqs = tied(targets=targets), sequences(6)
    by_hand, = torch.autograd.grad(logprobs(model, seqs).sum(), trained(model))
    logits = model.head(model.hidden(seqs.inputs, explicit=True))
    logp = logits.log_softmax(-1).gather(2, seqs.targets[..., None])[..., 0]
    plain, = torch.autograd.grad((logp * seqs.mask).sum(), trained(model))
    assert plain.abs().min() > 1e-4 and torch.allclose(by_hand, plain, atol=1e-11)


def test_what_learns_is_one_vector_and_at_first_nothing_changes():
    plain, seqs = tiny(), sequences(5)
    model = tied(3, model=copy.deepcopy(plain), learnt=False)
    assert torch.equal(logprobs(model, seqs), logprobs(plain, seqs))
    learner = Learner(model)
    assert len(learner.flat) == 3 and not adapters(off(copy.deepcopy(model)))
    logprobs(model, seqs).sum().backward()
    learner.step(0.1)
    assert (learner.flat.abs() > 0.05).all()
    assert all(p.grad is None for p in model.parameters() if p is not trained(model)[0])
    assert (logprobs(model, seqs) - logprobs(plain, seqs)).abs().max() > 1e-3


def test_the_fixed_mixtures_are_normal_and_differ_everywhere():
    p = torch.cat([adapter.p for _, _, adapter in adapters(tied(500, rank=4, learnt=False))])
    assert p.shape == (2 * 7, 500, 16) and abs(p.std() * 4**0.5 - 1) < 0.01
    assert abs(p.mean()) < 0.01 and len({float(x) for x in p[:, 0, 0]}) == 14
    again = adapters(tied(500, rank=4, learnt=False))[0][2].p
    assert torch.equal(again, p[:3])


def test_copies_have_a_vector_of_their_own_and_share_the_weights():
    model = tied()
    critic = ValueHead(copy.deepcopy(model))
    v, = trained(critic.trunk)
    assert all(adapter.v is v for _, _, adapter in adapters(critic)) and v is not trained(model)[0]
    assert critic.trunk.embed_tokens.weight is model.embed_tokens.weight
    assert set(own(critic)) == {"score.weight", "trunk.layers.0.self_attn.qkv_proj.adapter.v"}
    other = tied(learnt=False)
    fill(other, own(model))
    assert len(adapters(other)) == 8
    assert torch.equal(logprobs(other, sequences(4)), logprobs(model, sequences(4)))
    fill(other, {})
    assert not adapters(other)


def test_muon_and_fisher_products_of_a_few_numbers():
    learner, seqs = Learner(tied(), optimizer="muon"), sequences(4)
    assert not learner.muon and len(learner.adam) == 1
    vector = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(product_jacobian(learner, seqs, 1.0, vector),
                          product_hessian(learner, seqs, 1.0, vector), atol=1e-9)


def test_a_few_numbers_are_saved_as_an_adapter(tmp_path, words):
    checkpoint.create(tmp_path / "base", tiny_model(True), words)
    model = tied(model=checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "adapter", model, tmp_path / "base", end=5)
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(checkpoint.load(tmp_path / "adapter")[0](tokens), model(tokens),
                          atol=1e-5)
    said = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert said["r"] == said["lora_alpha"] == 2


def test_a_rank_beyond_the_matrix_and_numbers_without_a_rank_are_refused():
    with pytest.raises(MinipostError, match="a matrix of 8 x 16 has 8 directions; lower the rank"):
        tied(rank=9)
    with pytest.raises(MinipostError, match="--lora-numbers 13: goes with --lora"):
        train.settings_of(["--algo", "sft", "--lora-numbers", "13"])


def test_a_run_trains_thirteen_numbers(command, tmp_path, rows, capsys):
    assert train.main(command("sft", "--steps", 2, "--lora", 2, "--lora-numbers", 13,
                              "--batch-size", 4)) == 0
    assert "13 numbers in adapters of rank 2, which alone learn" in capsys.readouterr().out


# ---- the directory

@pytest.mark.parametrize("targets", [(), SOME])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_is_saved_and_opened(tmp_path, words, targets, tied):
    checkpoint.create(tmp_path / "base", tiny_model(tied), words)
    model = adapted(targets, checkpoint.load(tmp_path / "base")[0])
    checkpoint.save(tmp_path / "adapter", model, tmp_path / "base", end=5)
    held = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert held == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
                    "tokenizer_config.json", "generation_config.json"}
    found, vocabulary = checkpoint.load(tmp_path / "adapter")
    assert 5 in vocabulary.eos
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(found(tokens), model(tokens), atol=1e-5)
    checkpoint.save(tmp_path / "whole", model, tmp_path / "base", merge=True)
    checkpoint.save(tmp_path / "from adapter", found, tmp_path / "adapter")
    for name in ("whole", "from adapter"):
        assert torch.allclose(checkpoint.load(tmp_path / name)[0](tokens), model(tokens),
                              atol=1e-5)


def test_a_reward_model_is_an_adapter_with_a_head(tmp_path, tiny):
    policy, words = checkpoint.load(tiny)
    model = RewardModel(copy.deepcopy(adapted(model=policy)))
    model.score.weight.data.normal_()
    checkpoint.save(tmp_path / "r", model, tiny)
    found = checkpoint.load_reward_model(tmp_path / "r", words)
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(found(tokens), model(tokens), atol=1e-5)
    with pytest.raises(MinipostError, match="task_type is 'SEQ_CLS'; expected CAUSAL_LM"):
        checkpoint.load(tmp_path / "r")
    checkpoint.save(tmp_path / "p", policy, tiny)
    with pytest.raises(MinipostError, match="task_type is 'CAUSAL_LM'; expected SEQ_CLS"):
        checkpoint.load_reward_model(tmp_path / "p", words)


def test_what_is_not_plain_is_refused(tmp_path, tiny):
    checkpoint.save(tmp_path / "a", adapted(SOME, checkpoint.load(tiny)[0]), tiny)
    path = tmp_path / "a" / lora_file.CONFIG
    good = json.loads(path.read_text())
    for key, value, said in [
            ("peft_type", "LOHA", "minipost opens LORA"), ("use_dora", True, "plain LoRA"),
            ("bias", "all", "plain LoRA"), ("r", 0, "r is 0"), ("r", True, "r is True"),
            ("r", 5, "has shape"), ("target_modules", ["lm_head"], "expected some of q_proj"),
            ("target_modules", ["q_proj", "v_proj"], "belong to none of its target_modules"),
            ("target_modules", [*SOME, "k_proj"], "k_proj.lora_A.weight is missing"),
            ("modules_to_save", ["lm_head"], "a 'score' alone"),
            ("base_model_name_or_path", "some/where", "expected the directory of the model"),
            ("base_model_name_or_path", str(tmp_path / "a"), "an adapter itself")]:
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(MinipostError, match=said):
            checkpoint.load(tmp_path / "a")
    path.write_text(json.dumps({**good, "use_rslora": True}))   # the scale is alpha / sqrt(r)
    model = checkpoint.load(tiny)[0]
    lora_file.add(tmp_path / "a", model)
    low = checkpoint.load(tiny)[0].layers[0].self_attn.o_proj.weight
    path.write_text(json.dumps(good))
    once = checkpoint.load(tmp_path / "a")[0].layers[0].self_attn.o_proj.weight
    assert torch.allclose(model.layers[0].self_attn.o_proj.weight - low, (once - low) * 3**0.5,
                          atol=1e-6)


def test_every_key_that_changes_the_function_is_refused(tmp_path, tiny):
    """The keys of peft 0.21, and what may stand there where they change nothing."""
    checkpoint.save(tmp_path / "a", adapted(SOME, checkpoint.load(tiny)[0]), tiny)
    path = tmp_path / "a" / lora_file.CONFIG
    good = json.loads(path.read_text())
    for key, value in [
            *(("init_lora_weights", how) for how in (
                "pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "unheard-of")),
            ("alora_invocation_tokens", [5, 6]), ("use_qalora", True),
            ("arrow_config", {"top_k": 3}), ("use_bdlora", {"nblocks": 2}),
            ("kasa_config", {"beta": 1e-4}), ("monteclora_config", {"num_samples": 4}),
            ("lora_bias", True), ("fan_in_fan_out", True), ("rank_pattern", {"q_proj": 8}),
            ("alpha_pattern", {"q_proj": 8}), ("layer_replication", [[0, 2], [1, 2]]),
            ("trainable_token_indices", [3]), ("layers_to_transform", [0]),
            ("exclude_modules", ["q_proj"]), ("target_parameters", ["experts.gate_up_proj"])]:
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(MinipostError, match=f"{key} is .*; minipost opens plain LoRA"):
            checkpoint.load(tmp_path / "a")
    for key, value in [
            *(("init_lora_weights", how) for how in (
                None, True, False, "gaussian", "eva", "orthogonal", "mica")),
            ("alora_invocation_tokens", None), ("use_qalora", False), ("qalora_group_size", 16),
            ("arrow_config", None), ("use_bdlora", None), ("kasa_config", None),
            ("monteclora_config", None), ("loftq_config", {}), ("rank_pattern", {}),
            ("ensure_weight_tying", False), ("peft_version", "0.21.2")]:
        path.write_text(json.dumps({**good, key: value}))
        checkpoint.load(tmp_path / "a")


def test_a_directory_holds_one_of_the_two(tmp_path, tiny):
    model = adapted(model=checkpoint.load(tiny)[0])
    checkpoint.save(tmp_path / "a", model, tiny)
    checkpoint.save(tmp_path / "w", model, tiny, merge=True)
    for name, merge in (("a", True), ("w", False)):
        with pytest.raises(MinipostError, match="choose another directory"):
            checkpoint.save(tmp_path / name, model, tiny, merge=merge)
    with torch.no_grad():
        adapters(model)[0][2].b[0, 0] = torch.nan
    with pytest.raises(MinipostError, match="lora_B.weight holds values that are not finite"):
        checkpoint.save(tmp_path / "a", model, tiny)


def test_an_adapter_of_an_adapter_is_not_saved_as_one_of_the_model(tmp_path, tiny, rows):
    """It would lose what the first one had learnt."""
    checkpoint.save(tmp_path / "a", adapted(model=checkpoint.load(tiny)[0]), tiny)
    second = adapted(model=checkpoint.load(tmp_path / "a")[0])
    with pytest.raises(MinipostError, match="is an adapter itself.*--merge"):
        checkpoint.save(tmp_path / "b", second, tmp_path / "a")
    with pytest.raises(MinipostError, match="is an adapter itself; with lora add merge"):
        minipost.open(tmp_path / "a", data=str(rows), lora=2)
    run = minipost.open(tmp_path / "a", data=str(rows), lora=2, merge=True)
    run.save(tmp_path / "whole")
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(checkpoint.load(tmp_path / "whole")[0](tokens),
                          checkpoint.load(tmp_path / "a")[0](tokens), atol=1e-5)


def test_a_wrong_target_is_named():
    with pytest.raises(MinipostError, match="--lora-targets wq: there is no such matrix; choose"):
        adapt(tiny(), 2, targets=("q_proj", "wq"))


def test_a_run_trains_an_adapter_that_answers(command, tmp_path, rows, capsys):
    from minipost import evaluate
    out = tmp_path / "run"
    assert train.main(command("sft", "--steps", 2, "--lora", 2, "--lora-targets", "q_proj",
                              "v_proj", "--out", out, "--batch-size", 4)) == 0
    assert "in adapters of rank 2, which alone learn" in capsys.readouterr().out
    said = json.loads((out / "model/adapter_config.json").read_text())
    assert said["r"] == 2 and said["target_modules"] == ["q_proj", "v_proj"]
    assert evaluate.main(["--model", str(out / "model"), "--data", str(rows), "--n", "4",
                          "--max-new-tokens", "6"]) == 0


# ---- peft itself

def theirs(directory, model_class="AutoModelForCausalLM"):
    peft = pytest.importorskip("peft", reason="the extra 'interop' installs peft")
    transformers = pytest.importorskip("transformers")
    base = lora_file.base_of(directory)
    model = getattr(transformers, model_class).from_pretrained(base, dtype=torch.float32,
                                                               **({"num_labels": 1} if "Seq" in
                                                                  model_class else {}))
    return peft.PeftModel.from_pretrained(model, str(directory)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [(), SOME])
def test_peft_opens_an_adapter(tmp_path, tiny, targets):
    model = adapted(targets, checkpoint.load(tiny)[0])
    checkpoint.save(tmp_path / "a", model, tiny)
    tokens = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        assert (theirs(tmp_path / "a")(tokens).logits - model(tokens)).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_peft_opens_a_reward_model(tmp_path, tiny):
    model = RewardModel(copy.deepcopy(adapted(model=checkpoint.load(tiny)[0])))
    model.score.weight.data.normal_()
    checkpoint.save(tmp_path / "a", model, tiny)
    tokens = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        found = theirs(tmp_path / "a", "AutoModelForSequenceClassification")
        assert (found(tokens).logits[:, 0] - model(tokens)[:, -1]).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_what_peft_wrote_opens_here(tmp_path, tiny):
    peft = pytest.importorskip("peft", reason="the extra 'interop' installs peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=list(TARGETS[:5]), init_lora_weights=False))
    model.save_pretrained(tmp_path / "a")
    tokens = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        found = checkpoint.load(tmp_path / "a")[0](tokens)
        assert (model.eval()(tokens).logits - found).abs().max() <= 1e-5


def test_distributions_are_the_same_in_pieces(monkeypatch):
    """The head in pieces has no derivative by a weight that is fixed."""
    from minipost.engine import head
    model, seqs = adapted(), sequences(6)
    whole = torch.autograd.grad(logprobs(model, seqs).sum(), trained(model))
    monkeypatch.setattr(head, "WHOLE", 1)
    monkeypatch.setattr(head, "LEAST_ROWS", 2)
    pieces = torch.autograd.grad(logprobs(model, seqs).sum(), trained(model))
    assert all(torch.allclose(one, other) for one, other in zip(whole, pieces))
    assert distribution(model, seqs).shape[1] == 11


@pytest.mark.parametrize("flags, other", [(("--lora", "4"), "--lora"),
                                          (("--sampler", "vllm"), "--sampler vllm")])
def test_sharding_says_what_it_does_not_go_with(flags, other):
    with pytest.raises(MinipostError, match=f"--shard with {other}: is not supported"):
        train.settings_of(["--algo", "grpo", "--shard", *flags])


def test_adapters_have_a_rate_of_their_own(command, capsys):
    assert train.main(command("sft", "--steps", 1, "--lora", 2)) == 0
    assert "defaults for adapters, ten times the rates: --lr 0.01" in capsys.readouterr().out
    assert train.main(command("sft", "--steps", 1, "--lora", 2, "--lr", 0.003,
                              "--overwrite")) == 0
    assert "ten times" not in capsys.readouterr().out
