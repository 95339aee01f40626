"""Tool use: a cold start, then GRPO with the tool; the calculator's problems."""

import copy
import random

import pytest
import torch
from fakes import Echo, Letters, drive, make_run, small, tiny
from test_tools import Caller

from minipost import methods
from minipost.chat import Turns
from minipost.errors import MinipostError
from minipost.measure.results import evaluate
from minipost.methods import grpo, sft, tool_use
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.base import Problem, Task
from minipost.tasks.calculator import Calculator


class Shown(Caller):
    """Caller with demonstrations: a call, what the tool says, the letter again."""

    def demonstrate(self, problem, rng):
        return Turns(["h", 2 * problem.prompt, problem.prompt])


SMALL = dict(steps=2, cold_steps=3, cold_start=8, prompts=4, group_size=4, minibatch_size=8)


def run_of():
    return make_run(Shown(), tiny(seed=1), max_new_tokens=12)


def test_it_is_sft_and_then_grpo_with_the_tool():
    """Step by step, weight for weight."""
    run, plain, cfg = run_of(), run_of(), tool_use.Config(**SMALL)
    assert tool_use.total(run, cfg) == 5 and tool_use.milestones(run, cfg) == {3: "cold start"}
    found = drive(run, tool_use.train(run, cfg), 5)
    rows = sft.demonstrations(plain, 8)
    steps = drive(plain, sft.train(plain, sft.Config(3, lr=cfg.sft_lr), rows), 3)
    plain.policy.reset_optimizer()
    steps += drive(plain, grpo.train(plain, grpo.Config(**{
        **{k: v for k, v in vars(cfg).items() if k in grpo.Config.__dataclass_fields__}}),
        first=3), 2)
    assert torch.equal(run.policy.flat, plain.policy.flat)
    for a, b in zip(found, steps):
        assert {k: v for k, v in a.items() if k != "observations"} == b
    assert all("observations" in each for each in found[3:]) and found[3]["observations"] > 0
    assert "observations" not in found[0]


def test_a_resumed_run_goes_on_in_its_stage():
    """From the middle of the cold start, and of RL."""
    whole, cfg = run_of(), tool_use.Config(**SMALL)
    drive(whole, tool_use.train(whole, cfg), 5)
    for at in (1, 3, 4):
        run = run_of()
        drive(run, tool_use.train(run, cfg), at)
        again = run_of()
        again.restore(*copy.deepcopy(run.state()))
        drive(again, tool_use.train(again, cfg), 5 - at)
        assert torch.equal(again.policy.flat, whole.policy.flat), at


def test_the_cold_start_learns_no_observation():
    """Its gradient is that of the model's parts alone, whatever the tool's own chance is."""
    run = run_of()
    problem = Problem("b", {"letter": "b"})
    batch = run.encode([problem], [run.task.demonstrate(problem, None)])
    assert batch.mask.tolist() == [[False, True, False, False, True, True]]
    whole = run.encode([problem], ["hbbb"])
    assert torch.equal(whole.tokens, batch.tokens) and int(whole.mask.sum()) == 5


def test_a_task_without_a_tool_is_refused():
    with pytest.raises(MinipostError, match="the answers to the task echo call no tool; calculat"):
        tool_use.check(make_run(Echo()), tool_use.Config())
    tool_use.check(run_of(), tool_use.Config())


def test_its_file_says_what_it_takes():
    method = methods.load("tool-use")
    assert method.TASK == "calculator" and isinstance(method.PROOF, str)
    assert not method.ON_POLICY and Calculator().acts


class Secret(Task):
    """The answer is a letter that the tool alone knows; half of the demonstrations guess it."""

    name, call_end, acts, lies = "secret", "h", True, False

    def sample(self, n, rng):
        return [Problem(rng.choice("abcd"), {"secret": rng.choice("efg")}) for _ in range(n)]

    def heldout(self, n):
        return self.sample(n, random.Random("held-out"))

    def demonstrate(self, problem, rng):
        secret = problem.columns["secret"]
        return Turns([rng.choice("efg")] if rng.random() < 0.5 else ["h", secret, secret])

    def tool(self, problem, text):
        secret = problem.columns["secret"]
        return "efge"["efg".index(secret) + 1] if self.lies else secret

    def parse(self, text):
        return text[-1:] or None

    def reward(self, prompts, completions, secret, **columns):
        return [float(text[-1:] == right) for text, right in zip(completions, secret)]


def sampled(run):
    return evaluate(run, run.task.heldout(200), 1.0).score.value


def test_rl_learns_to_ask_a_tool_that_knows():
    """After the cold start it asks half of the time.  The control: a tool that lies is left."""
    found = {}
    for lies in (False, True):
        task = Secret()
        task.lies = lies
        run = Run(Learner(small()), Letters(), task, task.reward, max_new_tokens=6)
        learn = tool_use.train(run, tool_use.Config(
            steps=25, cold_steps=40, cold_start=500, prompts=16, minibatch_size=128, lr=3e-3,
            sft_lr=1e-2))
        drive(run, learn, 40)
        cold, metrics = sampled(run), drive(run, learn, 25)
        found[lies] = cold, sampled(run), metrics[0]["observations"], metrics[-1]["observations"]
    cold, after, asked, asks = found[False]
    assert 0.5 < cold < 0.8 < 0.95 < after and 0.4 < asked < 0.7 < 0.95 < asks
    cold, after, asked, asks = found[True]
    assert cold < 0.25 and after < 0.45 and 0.4 < asked < 0.7 and asks < 0.2


# ---- the task

def test_problems_of_the_calculator():
    task = Calculator()
    held, seen = task.heldout(300), task.sample(300, random.Random(0))
    assert len({p.prompt for p in held}) == 300
    assert not {p.prompt for p in held} & {p.prompt for p in seen}
    for problem in held + seen:
        total = eval(problem.columns["chain"])
        assert problem.columns["answer"] == total >= 0
        text = task.demonstrate(problem, random.Random(1))
        assert task.reward([""], [text], answer=[total]) == [1.0]
        lines = text.split("\n")
        for line in lines[:-1]:
            made, _, result = line.partition("=")
            assert eval(made.strip("[]")) == int(result)
    calls = [text.count("[") for text in (task.demonstrate(p, random.Random(k))
                                          for k, p in enumerate(seen))]
    assert 0.25 < sum(calls) / 900 < 0.35
    assert all(Calculator(calls=1.0).demonstrate(p).count("[") == 3 for p in seen[:9])
    assert all("[" not in Calculator(calls=0.0).demonstrate(p) for p in seen[:9])


@pytest.mark.parametrize("knobs, said", [
    (dict(terms=1), "terms must be 2..16"), (dict(largest=5), "largest must be 9..99999"),
    (dict(calls=1.5), "calls is 1.5; expected 0 to 1"), (dict(calls="x"), "calls is 'x'")])
def test_knobs_of_the_calculator(knobs, said):
    with pytest.raises(MinipostError, match=said):
        Calculator(**knobs)
