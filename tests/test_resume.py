"""A run that is stopped and resumed ends with the bytes of one that was never stopped."""

import json
import os
import shlex
from dataclasses import replace
from functools import partial

import pytest
import test_r1
import test_satori
import torch
from fakes import RLHF, Echo, Hidden, Steps, drive, given_model, make_run, toy

from minipost import checkpoint, train
from minipost.cli import session
from minipost.datasets.rewards import Added, Part
from minipost.datasets.rows import File
from minipost.layout import tensor_file
from minipost.methods import (
    a2c,
    math_shepherd,
    ppo,
    r1,
    reinforce,
    rft,
    satori,
    sft,
    trpo,
)
from minipost.tasks.search import Search

STEPS = 4
GROUPS = ("--prompts", 3, "--group-size", 4, "--minibatch-size", 8, "--epochs", 2)
SAMPLES = ("--prompts", 3, "--group-size", 4)
# answers of more than one word
WORDING = ("--task", "wording", "--max-new-tokens", 12, "--eval-n", 12)
STUDENT = ("--task", "arithmetic", "--terms", 3, "--max-new-tokens", 32,
           "--model", "checkpoints/student")
RECIPES = {
    "sft": ("--batch-size", 7, "--weight-decay", 0.1, "--warmup-steps", 2),
    "sft --replay facts --replay-share 0.3": ("--batch-size", 7),
    "grpo": GROUPS, "grpo --optimizer muon": (*GROUPS, "--schedule", "linear", "--warmup-steps", 2),
    "grpo --kl k3": GROUPS, "grpo --mean answers": GROUPS,
    "grpo --lag 2 --correct truncated": GROUPS, "ppo --lag 1": ("--prompts", 9),
    "grpo --lora 4": GROUPS, "grpo --lora 4 --lag 2": GROUPS, "ppo --lora 4": ("--prompts", 9),
    "grpo --lora 4 --lora-budget 2 --lag 1": GROUPS,
    "grpo --prefix 3 --lag 2": GROUPS, "ppo --bottleneck 2": GROUPS[:2],
    "grpo --lora 2 --base-bits 4": GROUPS,
    "grpo --lora 4 --merge --optimizer muon": GROUPS, "ppo --lora 2 --lora-numbers 9": GROUPS[:2],
    "trpo --lora 2": (*SAMPLES, "--iterations", 3),
    "dpo --lora 4": (*WORDING, "--pairs", 9), "reward --lora 4": (*WORDING, "--prompts", 5),
    "oreo --lora 4 --iterations 2": ("--prompts", 5, "--group-size", 2, "--batch-size", 7),
    "rft --lora 4 --iterations 2 --restart True": ("--prompts", 5, "--group-size", 2, "--least", 0),
    "dr-grpo": GROUPS, "dapo": GROUPS, "gspo": GROUPS, "cispo": GROUPS, "sapo": GROUPS,
    "vineppo": (*GROUPS, "--branches", 2), "entropy": GROUPS,
    "entropy --cov-share 0.1 --entropy-weight 0.01": GROUPS,
    "cispo --lag 1 --sampler-bits 4 --sampler-top-k 3": GROUPS,
    "reinforce": SAMPLES, "self-critical": SAMPLES, "rloo": SAMPLES,
    "a2c": SAMPLES, "a2c --optimizer muon": (*SAMPLES, "--schedule", "cosine"),
    "process-grpo": ("--task", "arithmetic", *GROUPS), "process-grpo --beta 0": (
        "--task", "arithmetic", *GROUPS),
    "reinforce-pp": GROUPS, "trpo": (*SAMPLES, "--fisher", 5, "--iterations", 3),
    "ppo": ("--prompts", 9, "--minibatch-size", 4),
    "ppo --control adaptive": ("--prompts", 9, "--minibatch-size", 4, "--kl-target", 0.01),
    "minimum-risk": SAMPLES, "maxrl": (*SAMPLES, "--least", 0.3), "prime": GROUPS,
    "prime --judge after": GROUPS, "ttrl": GROUPS,
    "intuitor": GROUPS, "es": ("--prompts", 3, "--population", 4),
    "mixer": ("--task", "arithmetic", "--terms", 2, *SAMPLES, "--start", 1, "--every", 2),
    "sdpo": (*STUDENT, "--prompts", 3),
    "step-by-step": (*STUDENT, "--direct", "True", "--examples", 9, "--batch-size", 4,
                     "--temperature", 1),
    "reward": (*WORDING, "--prompts", 5), "plackett-luce": (*WORDING, "--prompts", 5),
    "orm": ("--task", "arithmetic", "--prompts", 5, "--group-size", 2),
    "prm": ("--task", "arithmetic", "--prompts", 5, "--group-size", 2),
    "math-shepherd": ("--task", "arithmetic", "--prompts", 5, "--rollouts", 2,
                      "--batch-size", 4),
    "clicks": (*WORDING, "--prompts", 5),
    "dpo": (*WORDING, "--pairs", 9),
    "ipo": (*WORDING, "--pairs", 9), "simpo": (*WORDING, "--pairs", 9, "--likeliest", 0.8),
    "orpo": (*WORDING, "--pairs", 9), "kto": (*WORDING, "--batch-size", 9),
    "mdpo": (*WORDING, "--prompts", 5), "rpo": ("--pairs", 9),
    "oreo": ("--prompts", 5, "--group-size", 2, "--batch-size", 7),
    "oreo --iterations 2": ("--prompts", 5, "--group-size", 2, "--batch-size", 7),
    "rft": ("--prompts", 5, "--group-size", 2, "--batch-size", 7, "--least", 0),
    "rft --iterations 2 --restart True": ("--prompts", 5, "--group-size", 2, "--least", 0),
    "distill": ("--batch-size", 6), "distill --mix 0.3 --on-policy 1": ("--batch-size", 6),
}
STAGES = (*WORDING, "--sft-steps", 2)


def outcome(run):
    """All that a finished run leaves, without the seconds."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    tensors, facts = tensor_file.load_state(run / "state/state.safetensors")
    for timed in (*metrics, summary, facts):
        timed.pop("seconds")
    facts.pop("log")  # it holds seconds
    facts["settings"]["options"].pop("out")
    weights, = (run / "model").glob("*model.safetensors")  # of the model, or of an adapter
    return weights.read_bytes(), metrics, summary, tensors, facts


def same(one, other):
    assert one[:3] == other[:3]
    assert one[4] == other[4]
    assert one[3].keys() == other[3].keys()
    assert all(torch.equal(one[3][name], other[3][name]) for name in one[3])


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_after_every_step(command, tmp_path, tiny, wide, reward, capsys, stopping, recipe):
    algo, *flags = recipe.split()
    flags += ["--steps", STEPS, "--save-every", 0, *RECIPES[recipe]]
    if algo != "sft" and "wording" not in flags:
        flags += ["--reward", reward]
    if "wording" in flags:
        flags += ["--model", wide]
    if algo == "distill":
        flags += ["--model", tiny, "--teacher", wide]
    stop_everywhere(command(algo, *flags), tmp_path, capsys, stopping, STEPS)


@pytest.mark.parametrize("recipe, total", [
    ("ppo", 6), ("rlaif", 6), ("rlaif --learner dpo", 4), ("iterated-rlhf --rounds 2", 6),
    ("direct-rlaif", 4), ("iterative-grpo --iterations 2 --replay-share 0.5", 6)])
def test_stopped_in_every_stage(command, tmp_path, wide, capsys, stopping, recipe, total):
    """Fine-tuning, reward model, PPO: two steps each, stopped within and between them."""
    algo, *flags = recipe.split()
    flags += ["--steps", 2, "--save-every", 0, *STAGES, "--model", wide]
    flags += ["--judge", wide] if "rlaif" in algo else []
    if algo == "direct-rlaif":
        flags += ["--prompts", 3, "--group-size", 2]
    elif "dpo" not in flags:
        flags += ["--reward-steps", 2, "--prompts", 9, "--minibatch-size", 4]
    if algo == "iterative-grpo":  # two steps of each stage, one in each round
        flags += ["--group-size", 2]
    arguments = command(algo, *flags)
    stop_everywhere(arguments, tmp_path, capsys, stopping, total)
    checkpoint.load(tmp_path / "whole/model")
    if total == 6:
        checkpoint.load_reward_model(tmp_path / "whole/reward_model",
                                     checkpoint.load(wide)[1])


@pytest.mark.parametrize("algo, total", [("r1-zero", 2), ("r1", 10), ("satori", 4)])
def test_stopped_in_every_stage_of_reasoning(command, tmp_path, wide, capsys, stopping, monkeypatch,
                                             algo, total):
    """Cold start, reasoning, rejection sampling, reward model, alignment: two steps each.

    Of Satori format tuning and RL.
    """
    pays = tmp_path / "pays.py"
    pays.write_text("def even(completions, **columns):\n"
                    "    return [float(len(text) % 2 == 0) for text in completions]\n")
    flags = ["--task", "search", "--model", wide, "--reward", f"{pays}:even",
             "--steps", 2, "--prompts", 4, "--group-size", 2, "--minibatch-size", 8,
             "--save-every", 0, "--max-new-tokens", 6]
    if algo == "satori":
        flags += ["--cold-start", 6, "--cold-steps", 2, "--restarts", 8, "--tries", 3]
        # an untrained model makes no attempt
        monkeypatch.setattr(Search, "reflections", lambda task, text: range(1, len(text)))
    else:
        flags += ["--format", 0]
    if algo == "r1":
        flags += ["--cold-start", 6, "--cold-steps", 2, "--rejection-prompts", 4,
                  "--rejection-steps", 2, "--reward-steps", 2, "--align-steps", 2]
    arguments = command(algo, *flags)
    stop_everywhere(arguments, tmp_path, capsys, stopping, total)


def going_on(run, arguments):
    """The arguments that resume a run.  A reward function is named again."""
    named = [a for flag, a in zip(arguments, arguments[1:]) if flag == "--reward"]
    return ["--resume", str(run), *(["--reward", *named] if named else [])]


def stop_everywhere(arguments, tmp_path, capsys, stopping, steps):
    """A whole run, and one stopped after each step and resumed: they must end the same."""
    whole = tmp_path / "whole"
    assert train.main([*arguments, "--out", str(whole)]) == 0
    for k in range(1, steps):
        run = tmp_path / f"stopped-{k}"
        stopping(k)
        assert train.main([*arguments, "--out", str(run)]) == 130
        assert len((run / "metrics.jsonl").read_text().splitlines()) == k
        assert not (run / "summary.json").exists()
        assert (f"stopped after step {k} of {steps}; go on with: {train.PROG} "
                f"{shlex.join(going_on(run, arguments))}\n" in capsys.readouterr().out)
        stopping(None)
        assert train.main(going_on(run, arguments)) == 0
        same(outcome(run), outcome(whole))


def test_stopped_more_than_once(command, tmp_path, reward, stopping):
    arguments = command("grpo", "--steps", STEPS, *GROUPS, "--reward", reward)
    assert train.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    stopping(1)
    assert train.main(arguments) == 130
    for k in range(2, STEPS):
        stopping(k)
        assert train.main(going_on(tmp_path / "run", arguments)) == 130
    stopping(None)
    assert train.main(going_on(tmp_path / "run", arguments)) == 0
    same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_a_crash_between_saves_loses_only_what_came_after(command, tmp_path, stopping, monkeypatch):
    arguments = command("sft", "--steps", 5, "--save-every", 2, "--batch-size", 4)
    assert train.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    log = session.Session.log

    def crash(of, metrics):
        log(of, metrics)
        if of.run.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "log", crash)
    assert train.main(arguments) == 130
    monkeypatch.setattr(session.Session, "log", log)
    run = tmp_path / "run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert train.main(["--resume", str(run)]) == 0
    same(outcome(run), outcome(tmp_path / "whole"))
    before = outcome(run)
    assert train.main(["--resume", str(run)]) == 0
    same(outcome(run), before)


def test_the_headline_is_the_same_after_a_resume(command, tmp_path, stopping, monkeypatch):
    """A task that names its splits out of alphabetical order."""
    monkeypatch.setattr(File, "splits", lambda task, n: {
        "z": task.heldout(n), "a": task.training()[:n]}, raising=False)
    arguments = command("sft", "--steps", 2, "--batch-size", 4)
    stopping(1)
    assert train.main(arguments) == 130
    stopping(None)
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["metric"] == "greedy reward, z"


@pytest.mark.parametrize("damage, part", [
    ("no state", "nothing to resume"), ("truncated", "state.safetensors"),
    ("other state", "not the state of a run"),
    ("settings", "not the settings of a run"),
])
def test_a_run_that_cannot_be_resumed(command, tmp_path, capsys, stopping, damage, part):
    stopping(1)
    assert train.main(command("sft", "--steps", 2, "--batch-size", 4)) == 130
    run = tmp_path / "run"
    state = run / "state/state.safetensors"
    if damage == "no state":
        state.unlink()
    if damage == "truncated":
        os.truncate(state, 1000)
    if damage == "other state":
        tensor_file.save_state(state, {"x": torch.ones(1)}, {"step": 1})
    if damage == "settings":
        (run / "config.json").write_text('{"algo": "sft", "task": [], "method": 3}')
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and part in said


def test_two_processes_and_a_real_signal(command, python, tmp_path):
    """Ctrl-C reaches the whole process group; rank 0 decides when all of it stops."""
    path = tmp_path / "length.py"
    path.write_text("""import os, pathlib, signal
def length(completions, **columns):
    calls = pathlib.Path(__file__).with_name("calls")
    calls.write_text("x" + (calls.read_text() if calls.exists() else ""))
    if len(calls.read_text()) == 4:
        os.killpg(0, signal.SIGINT)
    return [len(text) / 9 for text in completions]
""")
    arguments = command("grpo", "--steps", 3, *GROUPS, "--reward", f"{path}:length")
    arguments[arguments.index("--workers") + 1] = "2"
    stopped = python("-m", "minipost.train", *arguments)
    assert stopped.returncode == 130, stopped.stderr
    resume = stopped.stdout.partition("go on with: ")[2]
    assert stopped.stderr == "" and f"--resume {tmp_path / 'run'}" in resume
    checkpoint.load(tmp_path / "run/model")
    assert python(*shlex.split(resume)[1:]).returncode == 0
    whole = python("-m", "minipost.train", *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


RESUMED = {  # method, Config, task, what Session does before the first step
    "rlhf": (ppo, RLHF, Hidden, None),
    "ppo adaptive": (ppo, ppo.Config(steps=4, prompts=8, minibatch_size=4, control="adaptive",
                                     horizon=40, kl_target=1e-3, lr=1e-2), Echo, None),
    "ppo on a given score": (ppo, ppo.Config(steps=3, prompts=8, lr=1e-2), Hidden, given_model),
    "trpo": (trpo, trpo.Config(steps=3, prompts=3, group_size=4, fisher=6, iterations=3, delta=0.01,
                               damping=0.01), Echo, None),
    "a2c": (a2c, a2c.Config(steps=3, prompts=4, group_size=3, lr=1e-2), Echo, None),
    "reinforce": (reinforce, reinforce.Config(steps=3, prompts=4, group_size=3, lr=1e-2), Echo,
                  None),
}


def saved(run):
    """The state as a file would hold it."""
    tensors, facts = run.state()
    return {key: x.clone() for key, x in tensors.items()}, json.loads(json.dumps(facts))


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_after_any_step_ends_with_the_same_bits(name):
    """Into a fresh Run on other weights, so that all that counts must come from the state."""
    module, cfg, task, start = RESUMED[name]
    whole = toy(task())
    if start:
        start(whole)
    steps = ppo.total(whole, cfg) if module is ppo else cfg.steps
    assert steps == (6 if name == "rlhf" else cfg.steps)
    learn, states, metrics = module.train(whole, cfg), [], []
    for _ in range(steps):
        metrics += drive(whole, learn, 1)
        states.append(saved(whole))
    tensors, facts = states[-1]
    assert facts["step"] == steps and not torch.equal(
        tensors["learner/policy/weights"], states[-2][0]["learner/policy/weights"])
    if cfg.__dict__.get("control") == "adaptive":
        assert facts["carried"]["beta"] != cfg.beta
    for k in range(1, steps):
        run = toy(task(), seed=9)
        run.restore(*states[k - 1])
        if start:
            start(run)
        again = drive(run, module.train(run, cfg), steps - k)
        assert again == metrics[k:], k
        found, numbers = saved(run)
        assert numbers == facts and found.keys() == tensors.keys(), k
        assert all(torch.equal(found[key], tensors[key]) for key in tensors), k


def labelling(name, words):
    """(a run whose reward function logs a metric, what trains it, when it labels, steps)"""
    run = make_run(Steps(), max_new_tokens=5)
    if name == "r1":
        run, method, first, steps = test_r1.opened(words, task=test_r1.Ruled()), r1, 4, 7
        cfg = replace(test_r1.SMALL, language=0.0, rejection_steps=3)
    elif name == "satori":
        run, method, first, steps = test_satori.run_of(), satori, 2, 5
        cfg = satori.Config(**{**test_satori.SMALL, "steps": 3})
    elif name == "rft":
        method, first, steps = rft, 0, 3
        cfg = rft.Config(steps=3, prompts=5, group_size=3, least=0.0, batch_size=4)
    else:
        method, first, steps = math_shepherd, 0, 3
        cfg = math_shepherd.Config(prompts=4, group_size=2, rollouts=2, batch_size=4)

    def mine(completions, log_metric, trainer_state, **columns):
        log_metric("answers", len(completions))
        log_metric("at", trainer_state.global_step)
        return [float(len(text) % 2 == 0) for text in completions]

    run.reward = Added([Part("mine", mine, {})])
    return run, partial(method.train, run, cfg), first, steps


@pytest.mark.parametrize("name", ["math-shepherd", "satori", "rft", "r1"])
def test_what_a_function_logs_while_it_labels_is_of_one_step(name, words):
    """Not of the step that a resumed run begins with, which labels the same answers again."""
    def logged(run, learn, steps):
        found, learn = [], learn()
        for _ in range(steps):
            run.said.clear()
            found.append((drive(run, learn, 1), run.said.metrics(), run.tokens))
        return found

    run, learn, first, steps = labelling(name, words)
    whole, state = [], []
    learn = learn()
    for _ in range(steps):
        whole += logged(run, lambda: learn, 1)
        state.append(saved(run))
    assert whole[first][1]["at"] == first and whole[first][1] != whole[first + 1][1]
    for k in range(first + 1, steps):
        again, learn, *_ = labelling(name, words)
        again.restore(*state[k - 1])
        assert logged(again, learn, steps - k) == whole[k:], k


def test_a_finished_run_goes_on_to_more_steps(command, tmp_path, reward, capsys):
    """A constant rate: the bytes of a run that was asked for as many at once.  A schedule is that
    of the new number from there on, which is said."""
    flags = ("--reward", reward, *GROUPS)
    short, whole = command("grpo", "--steps", 2, *flags), command("grpo", "--steps", 4, *flags)
    assert train.main(short) == 0
    assert train.main([*whole, "--out", str(tmp_path / "whole")]) == 0
    run = tmp_path / "run"
    more = going_on(run, short)
    assert train.main([*more, "--steps", "2"]) == 1
    assert "2 steps have been made, so --steps 2 leaves none" in capsys.readouterr().err
    assert train.main([*more, "--steps", "4"]) == 0
    assert "steps: 2 -> 4\n" in capsys.readouterr().out
    same(outcome(run), outcome(tmp_path / "whole"))
    assert train.main(more) == 0            # config.json has the new number

    arguments = command("sft", "--steps", 2, "--batch-size", 4, "--warmup-steps", 0)
    assert train.main([*arguments, "--out", str(tmp_path / "sft")]) == 0
    assert train.main(["--resume", str(tmp_path / "sft"), "--steps", "8"]) == 0
    assert "from step 3 on the learning rate is that of a cosine schedule over 8 steps" in \
        capsys.readouterr().out
    lines = (tmp_path / "sft/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    assert rates[2:] == [sft.Config(steps=8, warmup_steps=0).rate(1e-3, k) for k in range(2, 8)]


@pytest.mark.parametrize("flags, why", [
    (("--steps", "few"), "expected a whole number"),
    (("--steps", "9"), "cannot be made longer, since its iterations divide the steps")])
def test_a_run_that_cannot_be_made_longer_says_why(command, tmp_path, reward, capsys, flags, why):
    arguments = command("rft", "--steps", 2, "--iterations", 2, "--prompts", 5, "--group-size", 2,
                        "--least", 0, "--reward", reward)
    assert train.main(arguments) == 0
    assert train.main([*going_on(tmp_path / "run", arguments), *flags]) == 1
    assert why in capsys.readouterr().err
