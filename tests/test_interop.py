"""transformers and this project open each other's directories and compute the same."""

import json
import random
from pathlib import Path

import foreign
import pytest
import torch
from conftest import tiny_model

from minipost import checkpoint, files, rollout
from minipost.checks.model import OK, before_prompts
from minipost.gpt import RewardModel
from minipost.layout.vocabulary_file import read_vocabulary
from minipost.tasks.arithmetic import Arithmetic
from minipost.tokenizer import BOS, EOS, PAD

transformers = pytest.importorskip(
    "transformers", reason="the extra 'interop' installs transformers, which this compares with"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns of is not ours to mend

NO_EOS = frozenset([10**6])
STRINGS = [
    "", " ", "\n", "a", "  two  spaces  ", "7+5-3=? Answer: 12", "1234567890", "٣٤ ४५ 𝟙𝟚",
    "What is the capital of France?\nParis", "héhé straße", "北京 東京", "e\u0301 \u00e9",
    "👩‍👩‍👧 ok",
    "tab\tnewline\r\nend", "\u200b\ufeff\u00a0", "\x00\x07", "don't -- stop... (13-9=4:4 4 10)",
    "mixedCASE_snake-kebab", "a" * 200,
]


def theirs(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def greedy(model, prompts, room=64):
    """The ids that our sampler takes without chance, one list per prompt."""
    found = rollout.generate(model, prompts, max_new_tokens=room, eos=NO_EOS, pad=0, temperature=0)
    return [row[mask].tolist() for row, mask in zip(found.targets, found.mask)]


def greedy_theirs(model, prompt, room=64):
    ids = torch.tensor([prompt])
    settings = transformers.GenerationConfig(
        max_new_tokens=room, min_new_tokens=room, do_sample=False, pad_token_id=0)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return out[0, len(prompt):].tolist()


def agree(ours, other, vocab):
    """Same logits for a batch, same greedy ids for ragged prompts in one batch of ours."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, vocab, (3, 24), generator=generator)
    with torch.no_grad():
        assert (ours(tokens) - other(tokens).logits).abs().max() <= 1e-5
    prompts = [row[:length].tolist() for row, length in zip(tokens, (24, 5, 1))]
    assert greedy(ours, prompts) == [greedy_theirs(other, prompt) for prompt in prompts]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv", [1, 2])
def test_transformers_opens_ours(tmp_path, words, tied, kv):
    model = tiny_model(tied, context=128, num_key_value_heads=kv, rope_theta=5e4)
    checkpoint.create(tmp_path, model, words)
    other = theirs(tmp_path)
    assert type(other).__name__ == "LlamaForCausalLM"
    agree(model, other, words.vocab_size)


def llama(directory, tied, kv, shards="5GB"):
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=280, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=kv, head_dim=6, max_position_embeddings=128,
        rms_norm_eps=1e-5, rope_theta=7e4, tie_word_embeddings=tied, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )).eval()
    model.save_pretrained(directory, max_shard_size=shards)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("style", ["as written", "transformers 4", "transformers 5", "both"])
def test_we_open_theirs(tmp_path, words, tied, kv, style):
    other = llama(tmp_path, tied, kv)
    words.backend.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    if style != "as written":
        raw.pop("rope_parameters", None), raw.pop("rope_theta", None)
    if style in ("transformers 4", "both"):
        raw |= {"rope_theta": 7e4, "rope_scaling": None}
    if style in ("transformers 5", "both"):
        raw |= {"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}
    path.write_text(json.dumps(raw))
    agree(checkpoint.load(tmp_path)[0], other, 280)


def test_we_open_their_shards_and_they_open_our_copy(tmp_path, words):
    other = llama(tmp_path / "theirs", False, 2, shards="8KB")
    assert (tmp_path / "theirs/model.safetensors.index.json").exists()
    words.backend.save(str(tmp_path / "theirs/tokenizer.json"))
    model, _ = checkpoint.load(tmp_path / "theirs")
    agree(model, other, 280)
    checkpoint.save(tmp_path / "ours", model, tmp_path / "theirs")
    agree(model, theirs(tmp_path / "ours"), 280)


def test_bfloat16_export_opens_there(tmp_path, tiny):
    model, _ = checkpoint.load(tiny)
    checkpoint.save(tmp_path, model, tiny, dtype="bfloat16")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert other.dtype == torch.bfloat16
    assert torch.equal(other.model.norm.weight, model.norm.weight.bfloat16())


@pytest.mark.parametrize("tied", [True, False])
def test_reward_models_open_on_both_sides(tmp_path, words, tied):
    """The same score for each row of a padded batch; what they save opens here again."""
    checkpoint.create(tmp_path / "base", tiny_model(tied), words)
    trunk, vocabulary = checkpoint.load(tmp_path / "base")
    model = RewardModel(trunk)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    checkpoint.save(tmp_path / "scorer", model, tmp_path / "base")
    other = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "scorer", dtype=torch.float32).eval()
    assert type(other).__name__ == "LlamaForSequenceClassification"
    assert other.num_labels == 1 and other.config.id2label == {0: "score"}
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, 280, (n,), generator=generator).tolist() for n in (9, 4, 6, 2)]
    prompt = vocabulary.prompt("7+5=?")
    seqs = rollout.pack([prompt] * 4, [[*row, 2] for row in ids], vocabulary.pad)
    lengths = torch.tensor([[len(prompt) + len(row) + 1] for row in ids])
    real = torch.arange(seqs.tokens.shape[1]) < lengths
    with torch.no_grad():
        ours = rollout.final_score(model, seqs)
        found = other(seqs.tokens, attention_mask=real.long()).logits
        assert found.shape == (4, 1) and ours.std() > 0.1
        assert (found[:, 0] - ours).abs().max() <= 1e-5
        other.save_pretrained(tmp_path / "theirs")
        words.backend.save(str(tmp_path / "theirs/tokenizer.json"))
        again = checkpoint.load_reward_model(tmp_path / "theirs", vocabulary)
        assert (rollout.final_score(again, seqs) - ours).abs().max() <= 1e-6


def test_a_reward_model_whose_padding_is_its_eos(tmp_path, words):
    """transformers takes the EOS at the end for padding, so no id is named as padding there."""
    checkpoint.create(tmp_path / "base", tiny_model(), words)
    for name in ("config.json", "generation_config.json"):
        found = files.read_json(tmp_path / "base" / name)
        files.write_json(tmp_path / "base" / name, {**found, "pad_token_id": 2})
    trunk, vocabulary = checkpoint.load(tmp_path / "base")
    model = RewardModel(trunk)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    checkpoint.save(tmp_path / "scorer", model, tmp_path / "base")
    other = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "scorer", dtype=torch.float32).eval()
    seqs = rollout.pack([vocabulary.prompt("7+5=?")], [[9, 8, 7, 2]], vocabulary.pad)
    with torch.no_grad():
        assert (other(seqs.tokens).logits[:, 0] - rollout.final_score(model, seqs)).abs() <= 1e-5


def test_same_token_ids(tiny):
    _, vocabulary = checkpoint.load(tiny)
    other = transformers.AutoTokenizer.from_pretrained(tiny)
    for text in STRINGS:
        ids = other(text, add_special_tokens=False).input_ids
        assert vocabulary.tokenizer.encode(text) == ids
        assert vocabulary.decode(ids) == other.decode(ids, skip_special_tokens=True) == text
    assert (other.pad_token, other.bos_token, other.eos_token) == (PAD, BOS, EOS)
    assert (other.pad_token_id, [other.bos_token_id], {other.eos_token_id}) == (
        vocabulary.pad, vocabulary.before, vocabulary.eos)


# ---- what a tokenizer adds

SHIPPED = [path.parent for path in Path(checkpoint.__file__).parents[1].glob(
    "checkpoints/*/config.json")]


def texts(n=200):
    """Texts of all kinds, but none that spells out a control token: see below."""
    rng = random.Random(0)
    pieces = [*STRINGS, "<bo s>", "</ s>", "[INST]", "▁", " ", "12", "Answer:", "\n"]
    return [*STRINGS, *("".join(rng.choices(pieces, k=rng.randint(1, 4)))
                        for _ in range(n - len(STRINGS)))]


@pytest.mark.parametrize("directory", SHIPPED, ids=lambda path: path.name)
def test_other_tools_read_a_prompt_as_the_same_ids(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    config, raw = checkpoint.read_config(directory)
    ours = read_vocabulary(directory, raw, config.vocab_size)
    for text in texts():
        assert tokenizer(text).input_ids == ours.prompt(text)
    # The one difference, on purpose: they take what a text spells out for the control token.
    assert tokenizer("a<eos>").input_ids[-1] == 2 and 2 not in ours.prompt("a<eos>")
    assert ours.prompt("a<eos>", control=True) == tokenizer("a<eos>").input_ids


@pytest.mark.parametrize("name, kind, said", [
    *((name, "PreTrainedTokenizerFast", said) for name in foreign.PREFIXED | foreign.PLAIN
      for said in ({}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True})),
    ("first", "LlamaTokenizer", {}), ("always", "LlamaTokenizer", {"legacy": True}),
    ("llama3", "LlamaTokenizerFast", {}), ("gpt2", "GPT2Tokenizer", {"add_bos_token": True}),
])
def test_we_read_a_prompt_as_other_tools_do(tmp_path, name, kind, said):
    """The template in tokenizer.json decides, whatever ids and switches stand beside it."""
    backend = (foreign.PREFIXED | foreign.PLAIN)[name]()
    foreign.write(tmp_path, backend, kind, **said)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = read_vocabulary(tmp_path, files.read_json(tmp_path / "config.json"), 400)
    for text in texts():
        assert tokenizer(text).input_ids == ours.prompt(text), text


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer"])
@pytest.mark.parametrize("name", foreign.PREFIXED | foreign.PLAIN)
@pytest.mark.parametrize("said", [{}, {"add_prefix_space": True, "legacy": True},
                                  {"add_prefix_space": False}])
def test_the_doctor_knows_which_classes_build_another_tokenizer(tmp_path, name, kind, said):
    """Its warning is there wherever some text gets other ids in transformers."""
    foreign.write(tmp_path, (foreign.PREFIXED | foreign.PLAIN)[name](), kind, **said)
    ours = read_vocabulary(tmp_path, files.read_json(tmp_path / "config.json"), 400)
    fine = before_prompts(tmp_path, ours).status == OK
    try:
        other = transformers.AutoTokenizer.from_pretrained(tmp_path)
        same = all(other(text).input_ids == ours.prompt(text) for text in texts())
    except Exception:                                       # it cannot even be built there
        same = False
    assert fine <= same, "a difference without a warning"
    if not fine:
        assert not same or name in ("smollm", "llama3"), "a warning without a difference"


def test_a_pipeline_of_theirs_answers_as_well_as_we_do():
    """Held-out sums of a shipped model, in another tool that is told nothing but the directory."""
    model = Path(checkpoint.__file__).parents[1] / "checkpoints/base"
    asked = Arithmetic().heldout(20)
    pipe = transformers.pipeline("text-generation", model=str(model), device="cpu")
    found = pipe([p.prompt for p in asked], max_new_tokens=48, do_sample=False,
                 return_full_text=False, batch_size=20)
    gpt, words = checkpoint.load(model)
    ours = rollout.generate(gpt, [words.prompt(p.prompt) for p in asked], max_new_tokens=48,
                            eos=words.eos, pad=words.pad, temperature=0)
    answers = [words.decode(ids) for ids in ours.responses()]
    assert [each["generated_text"] for each, in found] == answers
    right = [p.columns["answer"] for p in asked]
    assert sum(Arithmetic().reward([""] * 20, answers, answer=right)) == 20
