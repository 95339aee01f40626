"""Sampling by a vLLM server, held to a stand-in that serves our own model over its protocol."""

import hashlib
import json
import socket
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from standin import Refusal, StandIn, serving

import minipost
from minipost import train
from minipost.engine.vllm import Server, together
from minipost.errors import MinipostError
from minipost.methods import grpo, reinforce
from minipost.rollout import concat, generate, received, repeats
from minipost.run import Run

NAME = "sampling_logp_difference/max"
SMALL = ("--prompts", 3, "--group-size", 4, "--minibatch-size", 12, "--lr", 0.01)


@pytest.fixture
def standin(tiny):
    return StandIn(tiny)


@pytest.fixture
def url(standin):
    with serving(standin) as found:
        yield found


def length(completions, **columns):
    return [len(text) / 9 for text in completions]


@pytest.fixture
def opened(tiny, rows):
    """opened(**settings) -> a Run from Python."""
    return lambda **settings: minipost.open(tiny, data=str(rows), reward=length, max_new_tokens=4,
                                            **settings)


@pytest.fixture
def run(opened, url):
    """A run whose policy answers by the stand-in."""
    return opened(sampler="vllm", sampler_url=url)


@pytest.fixture
def by_server(command, reward, url):
    """by_server(algo, *flags) -> the arguments of a run that samples by the stand-in."""
    return lambda algo, *flags: command(algo, *flags, "--sampler", "vllm", "--sampler-url", url,
                                        "--reward", reward)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the weights go there, the answers come back

def test_the_server_has_the_policys_weights_in_every_step(by_server, standin, tmp_path, capsys):
    assert train.main(by_server("grpo", "--steps", 3, *SMALL)) == 0
    paths = standin.paths()
    assert paths[:2] == ["/v1/models", "/server_info?config_format=json"]
    handed = [k for k, path in enumerate(paths) if path == "/collective_rpc"]
    assert len(handed) == 4, "before the first answers, and after each of three updates"
    assert all(paths[k + 1] == "/reset_prefix_cache" for k in handed)
    steps = metrics(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step[NAME] < 1e-5 for step in steps)
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    assert said["method"]["correct"] == "truncated" and said["options"]["sampler"] == "vllm"
    assert "--correct truncated --cap 2" in capsys.readouterr().out
    folder = next(body["kwargs"]["weights_path"] for path, body in standin.asked
                  if path == "/collective_rpc")
    assert not Path(folder).exists(), "the folder goes with the run"


def drawn_by_its_own(self, prompts, group_size, *, temperature, module=None, purpose="rollout",
                     stop=frozenset(), max_new_tokens=None):
    """Run.complete with the draws that the stand-in makes, by our own sampler."""
    ends, found = {*self.vocabulary.eos, *stop}, []
    for ids, earlier in zip(prompts, repeats(prompts)):
        name = json.dumps([self.seed, self.step, zlib.crc32(purpose.encode()), ids, earlier])
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
        found.append(generate(
            self.policy.module, [ids], group_size, max_new_tokens=max_new_tokens or
            self.max_new_tokens, eos=ends, pad=self.vocabulary.pad, temperature=temperature,
            seed=(seed,)))
    return concat(found, self.vocabulary.pad)


@pytest.mark.parametrize("temperature, lora", [(1.0, 0), (0.7, 0), (1.0, 3)])
def test_steps_by_the_server_are_those_of_the_own_sampler(opened, url, monkeypatch, temperature,
                                                          lora):
    """The same draws give the same GRPO, but for how a batch of another shape rounds.

    With LoRA the server has the adapters added to the weights.
    """
    run = opened(sampler="vllm", sampler_url=url, lora=lora)
    cfg = grpo.Config(steps=3, prompts=3, group_size=4, minibatch_size=12, lr=0.01,
                      temperature=temperature, correct="truncated")
    found = []
    for each in (run, opened(lora=lora)):
        if each is not run:
            monkeypatch.setattr(Run, "complete", drawn_by_its_own)
        learn, rewards = grpo.train(each, cfg), []
        for _ in range(3):
            rewards.append(next(learn)["reward"])
            each.step += 1
        found.append((rewards, each.policy.master.clone()))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], rtol=0, atol=1e-6)


def test_a_request_states_every_parameter_of_sampling(run, standin):
    """Else those of the served model's generation_config.json would hold."""
    run.policy.module.unused = torch.zeros(280, dtype=torch.bool).index_fill(
        0, torch.tensor([270, 279]), True)
    run.complete([[5, 6], [5, 6], [7]], 2, temperature=0.7, stop={9})
    asked = {tuple(body["prompt"]): body for path, body in standin.asked
             if path == "/v1/completions"}
    one = asked[(7,)]
    assert {name: one[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty",
                                         "presence_penalty", "frequency_penalty")} == {
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert one["temperature"] == 0.7 and one["max_tokens"] == 4 and one["n"] == 2
    assert one["ignore_eos"] is True and one["stop_token_ids"] == sorted({*run.vocabulary.eos, 9})
    assert one["logit_bias"] == {"270": -100.0, "279": -100.0}


def test_a_prompt_that_stands_twice_has_other_draws(run, standin):
    rollout = run.complete([[5, 6], [5, 6]], 8, temperature=1.0)
    seeds = [body["seed"] for path, body in standin.asked if path == "/v1/completions"]
    assert len(set(seeds)) == 2
    assert not torch.equal(rollout.tokens[:8], rollout.tokens[8:])
    assert rollout.prompt.tolist() == [0] * 8 + [1] * 8
    again = run.complete([[5, 6], [5, 6]], 8, temperature=1.0)
    assert torch.equal(rollout.tokens, again.tokens)


def test_greedy_answers_of_a_group_are_one_that_was_asked_for_once(run, standin):
    rollout = run.complete([[5, 6], [7]], 3, temperature=0.0)
    assert [body["n"] for path, body in standin.asked if path == "/v1/completions"] == [1, 1]
    own = generate(run.policy.module, [[5, 6], [7]], 3, max_new_tokens=4, eos=run.vocabulary.eos,
                   pad=run.vocabulary.pad, temperature=0)
    assert torch.equal(rollout.tokens, own.tokens) and torch.equal(rollout.mask, own.mask)
    assert torch.allclose(rollout.logp, own.logp, rtol=0, atol=1e-6)


def test_another_module_than_the_policy_answers_by_itself(run, standin):
    reference = run.reference()
    run.complete([[5]], 2, temperature=1.0, module=reference)
    assert "/v1/completions" not in standin.paths()


def test_answers_come_back_as_a_rollout():
    rollout = received([[1, 5], [1]], [([6, 2], [-0.5, -1.0]), ([7, 8, 9], [-1.5, -2.0, -2.5])],
                       {2}, 0)
    assert rollout.tokens.tolist() == [[1, 5, 6, 2], [1, 7, 8, 9]]
    assert rollout.mask.tolist() == [[False, True, True], [True, True, True]]
    assert rollout.logp.tolist() == [[0.0, -0.5, -1.0], [-1.5, -2.0, -2.5]]
    assert rollout.finished.tolist() == [True, False]


def test_two_ranks_ask_once_and_share(python, command, reward, standin, url, tmp_path, tiny):
    arguments = command("grpo", "--steps", 2, *SMALL, "--sampler", "vllm", "--sampler-url", url,
                        "--reward", reward)
    assert train.main(arguments) == 0
    one, asked = metrics(tmp_path / "run"), len(standin.asked)
    standin.asked.clear()
    standin.load(tiny)
    two = [str(a) for a in arguments]
    two[two.index("--workers") + 1] = "2"
    done = python("-m", "minipost.train", *two, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(standin.asked) == asked
    for a, b in zip(one, metrics(tmp_path / "run")):
        assert a["reward"] == b["reward"] and a["num_tokens"] == b["num_tokens"]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-6)


# ---- a server that samples from something else than the policy

def test_stale_weights_are_seen_and_the_ratios_are_cut(by_server, standin, tmp_path):
    standin.stale = True
    assert train.main(by_server("grpo", "--steps", 3, *SMALL, "--cap", 1.05)) == 0
    first, *later = metrics(tmp_path / "run")
    assert first[NAME] < 1e-5 and first["clip_ratio"] == 0
    assert all(step[NAME] > 1e-3 for step in later)
    assert all(step["clip_ratio"] > 0 for step in later)


def test_grpo_weighs_by_the_ratio_to_what_the_server_sampled_from(run, standin):
    """The gradient on stale answers is the truncated one by hand, in every token."""
    run.policy.master.add_(0.05 * torch.randn(run.policy.master.shape,
                                              generator=torch.Generator().manual_seed(0)))
    standin.stale = True
    cap = 1.2
    rollout = run.rollout(run.problems(3), 4, temperature=1.0, corrected=True)
    now = run.logprobs(run.policy.module, rollout)
    weight = (now - rollout.logp).exp()
    assert (weight[rollout.mask] > cap).any() and (weight[rollout.mask] < 0.95).any()
    adv = torch.linspace(-1, 1, 12)
    slopes = grpo.loss_grad(now, rollout.logp, torch.zeros_like(now), adv, rollout.mask,
                            clip=0.2, beta=0.0, count=1, correct="truncated", cap=cap)["logp"]
    expected = -weight.clamp(max=cap) * adv[:, None] * rollout.mask
    assert torch.allclose(slopes, expected, rtol=1e-5, atol=1e-7)


def test_other_methods_get_the_log_probs_of_training(run, standin):
    next(reinforce.train(run, reinforce.Config(steps=1, prompts=3)))
    run.step += 1
    run.differences()
    standin.stale = True
    rollout = run.rollout(run.problems(3), 4, temperature=0.7)
    assert torch.equal(rollout.logp, run.logprobs(run.policy.module, rollout, 0.7))
    assert run.differences()[NAME] > 1e-4


def test_a_flag_wins_over_the_choice_of_a_correction(by_server, tmp_path):
    assert train.main(by_server("grpo", "--steps", 1, *SMALL, "--correct", "clip")) == 0
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    assert said["method"]["correct"] == "clip"


# ---- what can be wrong with a server

def refusing(path, code, said):
    def change(asked, found):
        if asked == path:
            raise Refusal(code, said)
        return found
    return change


def changing(act):
    """A change to each answer's first choice."""
    def change(asked, found):
        if asked == "/v1/completions":
            act(found["choices"][0])
        return found
    return change


def instead(path, answer):
    return lambda asked, found: answer if asked == path else found


FAULTS = {
    "500": (refusing("/v1/completions", 500, "CUDA out of memory"),
            "answers /v1/completions with 500: CUDA out of memory"),
    "another model": (instead("/v1/models", {"data": [{"id": "other", "max_model_len": 64}]}),
                      "answers /v1/completions with 404: The model `other` does not exist."),
    "no model": (instead("/v1/models", {"data": []}), "lists no model"),
    "weights of another shape": (refusing("/collective_rpc", 500, "assert param.shape"),
                                 "answers /collective_rpc with 500: assert param.shape"),
    "cache": (instead("/reset_prefix_cache", {"success": False}),
              "does somebody else use it?"),
    "no log-probs": (changing(lambda choice: choice.update(logprobs=None)), "gives no log-prob"),
    "too few log-probs": (changing(lambda choice: choice["logprobs"]["token_logprobs"].pop()),
                          "gives no log-prob"),
    "a log-prob that is null": (
        changing(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, None)),
        "gives no log-prob"),
    "no ids": (changing(lambda choice: choice.update(token_ids=None)), "gives no token_ids"),
    "another vocabulary": (changing(lambda choice: choice["token_ids"].__setitem__(0, 4000)),
                           "drew the id 4000; the policy's vocabulary has 280"),
    "another prompt": (changing(lambda choice: choice.update(prompt_token_ids=[3])),
                       "read another prompt than it was sent"),
    "too few answers": (lambda asked, found: {"choices": found["choices"][1:]}
                        if asked == "/v1/completions" else found, "answers where"),
    "an answer that goes on": (
        changing(lambda choice: (choice["token_ids"].extend([5] * 9),
                                 choice["logprobs"]["token_logprobs"].extend([-1.0] * 9))),
        "did not end an answer where it should"),
    "aborted": (changing(lambda choice: choice.update(finish_reason="abort")),
                "broke an answer off ('abort')"),
    "not JSON": (instead("/v1/completions", b"<html>"),
                 "answers /v1/completions with what is not JSON"),
    "no choices": (instead("/v1/completions", {"id": 3}), "gives no choices"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_fails_is_told_in_one_sentence(name, by_server, standin, url, capsys):
    standin.change, part = FAULTS[name]
    assert train.main(by_server("grpo", "--steps", 1, *SMALL)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: the vLLM server at {url} ") and part in said
    assert len(said.strip().splitlines()) == 1 and len(said) < 320


@pytest.mark.parametrize("setting, value, part", [
    ("mode", "raw_logprobs", "gives raw_logprobs, which do not know the temperature; start it with "
                             "--logprobs-mode processed_logprobs"),
    ("development", False, "start it with VLLM_SERVER_DEV_MODE=1"),
    ("context", 6, "takes 6 tokens at most"),
])
def test_a_server_that_was_started_otherwise_is_told_how(setting, value, part, by_server, standin,
                                                         capsys):
    setattr(standin, setting, value)
    assert train.main(by_server("grpo", "--steps", 1, *SMALL)) == 1
    said = capsys.readouterr().err
    assert part in said and len(said.strip().splitlines()) == 1


def test_no_server_at_all(command, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    flags = ("--sampler", "vllm", "--sampler-url")
    assert train.main(command("grpo", *flags, url)) == 1
    said = capsys.readouterr().err
    assert f"--sampler-url {url}: no answer from there" in said and "refused" in said
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in said
    assert train.main(command("grpo", *flags, "localhost:8000")) == 1
    assert "expected http://HOST:PORT" in capsys.readouterr().err
    assert train.main(command("grpo", *flags, url, "--lag", 2)) == 1
    assert "--lag with --sampler vllm" in capsys.readouterr().err


def test_a_server_that_goes_away_costs_no_step(by_server, standin, tmp_path, tiny, capsys, reward):
    """The last whole step is saved, and the run goes on with another server as if nothing were."""
    arguments = by_server("grpo", "--steps", 4, *SMALL)
    assert train.main(arguments) == 0
    whole = metrics(tmp_path / "run")
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    reloads = []

    def dies(path, found):
        reloads.extend([1] if path == "/collective_rpc" else [])
        if len(reloads) == 3:  # before the answers of the third step
            raise Refusal(503, "gone")
        return found

    standin.change = dies
    standin.load(tiny)
    assert train.main([*arguments, "--overwrite"]) == 1
    said = capsys.readouterr()
    assert "503: gone" in said.err and "step 2 is saved; go on with" in said.out
    with serving(StandIn(tiny)) as other:
        assert train.main(["--resume", str(tmp_path / "run"), "--reward", reward,
                           "--sampler-url", other]) == 0
    again = metrics(tmp_path / "run")
    assert [{k: v for k, v in step.items() if k != "seconds"} for step in again] == \
        [{k: v for k, v in step.items() if k != "seconds"} for step in whole]
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


def test_the_first_error_does_not_wait_for_the_others():
    forever, begun = threading.Event(), threading.Barrier(5)

    def work(k):
        begun.wait(20)
        if k == 4:
            raise MinipostError("gone")
        forever.wait(20)

    begin = time.monotonic()
    with pytest.raises(MinipostError, match="gone"):
        together(work, range(5))
    assert time.monotonic() - begin < 5
    forever.set()
    assert together(lambda k: k * k, range(200)) == [k * k for k in range(200)]


def test_an_address_may_end_in_a_slash():
    assert Server("http://localhost:8000/").url == "http://localhost:8000"
