"""Ranks that hold a part of each weight make what one rank makes that holds all (shards.py)."""

import copy
import json
from pathlib import Path

import pytest
import torch
from fakes import sequences, tiny
from shards import NAMES

from minipost import parallel, shard, train
from minipost.errors import MinipostError
from minipost.gpt import GPT, RewardModel
from minipost.optim import Learner
from minipost.rollout import final_score, logprobs

SCRIPT = Path(__file__).with_name("shards.py")


@pytest.fixture(scope="module")
def made(python):
    done = python("-W", "ignore", SCRIPT, "steps")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def alone():
    with parallel.alone():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_that_shard_make_what_one_makes(made, name):
    """Weights of policy, critic and reward model, and the metrics, in float64 to 1e-9."""
    assert made["differ"][name] == {}


def test_a_rank_without_rows_makes_the_passes_of_the_others(made):
    assert made["empty"]["rloo, no KL"] > 0 and made["empty"]["grpo"] > 0


def test_a_rank_holds_its_part_alone(made):
    assert 0.5 <= made["held"]["share"] < 0.56  # 11 rows of the embedding are odd
    assert made["held"]["wrong"] == [0, 0]      # the reference is the policy, rank 0 exports alone


def test_a_gradient_that_is_broken_in_one_rank_moves_none(made):
    assert made["broken"] == {"moved": 0.0, "skipped": 1}


def test_one_rank_then_two_then_one(python, tmp_path):
    """The state of PPO, critic and reference included, goes on with any number of ranks."""
    done = python("-W", "ignore", SCRIPT, "resume", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [0] * 4
    assert found["files"] == [f"shard-0000{k}-model-00001-of-00001.safetensors" for k in (1, 1, 2)]
    assert "ranks: 1 -> 2; sums may be rounded otherwise" in done.stderr
    assert found["lines"][1] == pytest.approx(found["lines"][0], rel=1e-4)
    assert found["apart"] < 1e-6 < 1e-3 < found["moved"]


def state_of(learner):
    tensors, numbers = learner.state()
    return {f"learner/policy/{name}": tensor for name, tensor in tensors.items()}, numbers


def moved(model=None, **options):
    """A sharded learner after an update."""
    learner = shard.ShardedLearner(model or tiny(), **options)
    logprobs(learner.module, sequences(3)).sum().backward()
    learner.step(1e-2, weight_decay=0.1)
    return learner


def test_an_update_is_that_of_a_whole_learner(alone):
    whole = Learner(tiny())
    logprobs(whole.module, sequences(3)).sum().backward()
    whole.step(1e-2, weight_decay=0.1)
    for mine, other in zip(moved().parts(), whole.module.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-14)


def test_a_state_is_kept_whole_or_refused(alone, tmp_path):
    learner, other = moved(), shard.ShardedLearner(tiny(seed=3))
    tensors, numbers = state_of(learner)
    for step in (1, 2):
        shard.save_state(tmp_path / "state", tensors, {"step": step}, tmp_path / "previous")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["previous", "state"]
    found, facts = shard.load_state(tmp_path / "state", "cpu")
    assert facts == {"step": 2}
    other.restore({name.removeprefix("learner/policy/"): x for name, x in found.items()}, numbers)
    assert other.updates == 1
    for name, x in state_of(other)[0].items():
        assert torch.equal(x.to_local(), tensors[name].to_local())
    for path in (tmp_path / "state").iterdir():
        if path.name != shard.DIGESTS:
            kept = path.read_bytes()
            path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
            with pytest.raises(MinipostError, match=f"{path.name}: damaged"):
                shard.load_state(tmp_path / "state", "cpu")
            path.write_bytes(kept)
    assert shard.load_state(tmp_path / "previous", "cpu")[1] == {"step": 1}


def test_weights_of_bfloat16_have_parts_of_float32(alone):
    learner = moved(tiny().to(torch.bfloat16))
    assert {w.dtype for w in learner.parts()} == {learner.dtype} == {torch.float32}
    copied = shard.gathered(learner.module)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert logprobs(learner.module, sequences(3)).allclose(logprobs(copied, sequences(3)))


def test_what_is_gathered_follows_the_parts(alone):
    """Also where a pass has left the whole embedding behind, and in the model itself."""
    learner = shard.ShardedLearner(tiny())
    with torch.no_grad():
        logprobs(learner.module, sequences(3))
        learner.become(shard.sharded(tiny(seed=5), "cpu"))
        expected = logprobs(tiny(seed=5), sequences(3))
        assert torch.equal(logprobs(learner.module, sequences(3)), expected)
        assert torch.equal(logprobs(shard.gathered(learner.module), sequences(3)), expected)
    learner = moved()
    with torch.no_grad():
        before = logprobs(learner.module, sequences(3))
        learner.step(1e-2)  # without a gradient, by the moments alone
        after = logprobs(learner.module, sequences(3))
        assert torch.equal(after, logprobs(shard.gathered(learner.module), sequences(3)))
        assert not torch.allclose(before, after)


def test_copies_share_no_memory_with_the_parts(alone):
    learner = shard.ShardedLearner(tiny())
    copied = copy.deepcopy(learner.module)
    assert type(copied) is GPT
    with torch.no_grad():
        copied.norm.weight.add_(1.0)
    assert torch.equal(learner.named["norm.weight"].full_tensor(), tiny().norm.weight)


def test_a_reward_model_keeps_its_scale(alone):
    model = RewardModel(tiny())
    model.normalise(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    with torch.no_grad():
        model.score.weight.fill_(0.3)
        expected, parts = final_score(model, sequences(3)), shard.sharded(model, "cpu")
        assert torch.equal(final_score(parts, sequences(3)), expected)
        parts.normalise(expected)
        expected = (expected - expected.mean()) / expected.std()
        for each in (parts, shard.gathered(parts), copy.deepcopy(parts)):
            assert torch.allclose(final_score(each, sequences(3)), expected, rtol=0, atol=1e-12)


def test_no_rows_have_no_gradient():
    model, seqs = tiny(), sequences(3)
    for part in (logprobs(model, seqs[[]]).sum(), final_score(RewardModel(tiny()), seqs[[]]).sum()):
        part.backward()
        assert part == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("flags, said", [
    (("grpo", "--lag", 1), "--lag 1 keeps whole policies"),
    (("grpo", "--optimizer", "muon"), "--optimizer muon moves whole matrices"),
    (("trpo",), "trpo multiplies vectors of all weights"),
])
def test_what_does_not_go_with_shard(command, capsys, tmp_path, reward, flags, said):
    assert train.main([*command(*flags, "--steps", 1, "--reward", reward), "--shard"]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_whole_run_does_not_change_its_workers(command, capsys, tmp_path):
    assert train.main([*command("sft", "--steps", 1)]) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--workers", "2"]) == 1
    assert "only a run with --shard" in capsys.readouterr().err


@pytest.mark.parametrize("device, workers", [("mps", 1), ("cuda", 2)])
def test_ranks_on_gpus_come_from_torchrun(command, capsys, monkeypatch, device, workers):
    from minipost.cli import session

    monkeypatch.setattr(session, "pick_device", lambda name: device)
    assert train.main([*command("sft", "--steps", 1), "--shard", "--workers", str(workers)]) == 1
    assert "torchrun" in capsys.readouterr().err
