"""Learner, Run and Meter: the optimizer, the streams, the reward contract, ranks."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fakes import Echo, Letters, sequences, tiny
from hypothesis import given, settings, strategies as st

from minipost.datasets.rewards import ask, columns
from minipost.errors import MinipostError
from minipost.measure.meter import Meter
from minipost.methods import grpo
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run
from minipost.tasks.base import Problem

settings.register_profile("minipost", deadline=None, max_examples=30)
settings.load_profile("minipost")


def make(task=None, **options):
    task = task or Echo()
    return Run(Learner(tiny()), Letters(), task, task.reward, max_new_tokens=4, **options)


def test_the_optimizer_is_adamw_with_clipping():
    """Five steps against PyTorch's AdamW and clip_grad_norm_, decay on matrices only."""
    mine, theirs, seqs = tiny(), tiny(), sequences(4)
    learner = Learner(mine, betas=(0.8, 0.95), weight_decay=0.1)
    groups = [{"params": [p for p in theirs.parameters() if p.dim() == 2], "weight_decay": 0.1},
              {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95))
    for _ in range(5):
        for model in (mine, theirs):
            (-logprobs(model, seqs).sum()).backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert learner.step(0.01, 1.0) == pytest.approx(float(expected))
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert torch.allclose(a, b, atol=1e-6)      # clip_grad_norm_ adds 1e-6 to the norm
    assert not torch.allclose(mine.norm.weight, tiny().norm.weight)


def test_bfloat16_weights_learn_through_a_float32_copy():
    """Updates far below bfloat16's spacing add up instead of vanishing."""
    module = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    start = module.weight.detach().clone()
    learner = Learner(module)
    for _ in range(300):
        learner.grad.fill_(1.0)
        learner.step(1e-5)
    assert learner.master.dtype == torch.float32
    assert ((start - module.weight) - 0.003).abs().max() < 0.002
    assert torch.equal(learner.flat, learner.master.to(torch.bfloat16))


def test_a_gradient_that_is_not_finite_is_dropped_and_five_in_a_row_end_the_run():
    learner = Learner(tiny())
    start = learner.flat.clone()
    for _ in range(4):
        learner.grad.fill_(float("nan"))
        learner.step(0.1)
    assert torch.equal(learner.flat, start) and learner.skipped == 4
    learner.grad.fill_(1.0)
    learner.step(0.1)
    assert not torch.equal(learner.flat, start)
    with pytest.raises(MinipostError, match="not finite 5 steps in a row"):
        for _ in range(5):
            learner.grad.fill_(float("inf"))
            learner.step(0.1)


def test_a_reference_is_the_policy_as_it_was():
    run = make()
    reference, start = run.reference(), run.policy.flat.clone()
    run.policy.flat.add_(1.0)
    assert run.reference() is reference and not any(p.requires_grad for p in reference.parameters())
    kept = sorted(reference.parameters(), key=lambda p: p.dim() < 2)
    flat = torch.cat([p.flatten() for p in kept])
    assert torch.equal(flat, start)


def test_a_part_that_nobody_asks_for_after_a_resume_stays_in_the_state():
    run, again = make(), make()
    run.reference()
    run.learner("critic", tiny)
    tensors, facts = run.state()
    again.restore(tensors, facts)
    found, numbers = again.state()
    assert numbers == facts and found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_finite_list_is_gone_through_in_epochs():
    class Finite(Echo):
        def training(self):
            return [Problem("a", {"letter": i}) for i in range(7)]

    run, seen = make(Finite()), []
    for run.step in range(7):
        seen += [p.columns["letter"] for p in run.problems(4)]
    assert all(sorted(seen[k : k + 7]) == list(range(7)) for k in range(0, 28, 7))
    assert seen[:7] != seen[7:14]
    run.step = 3
    assert [p.columns["letter"] for p in run.problems(4)] == seen[12:16]    # by the step alone


def test_the_meter_adds_pieces_and_averages_updates():
    meter = Meter("a", "b")
    for piece in (1.0, 2.0, 3.0):
        meter.add(a=piece)
    assert meter.means(2) == {"a": 3.0, "b": 0.0}
    with pytest.raises(KeyError):
        meter.add(c=1.0)


PROBLEMS = [Problem("a", {"letter": "a"}), Problem("b", {"letter": "b"})]


@pytest.mark.parametrize("values, message", [
    ([1.0], "returned 1 values for 2 rows"),
    ([1.0, float("nan")], "returned nan for row 1 .*'yy'.* expected a finite number"),
    ([None, 1.0], "returned None for row 0"),
    (["1", 1.0], "returned '1' for row 0"),
    (None, "returned NoneType, expected a list"),
])
def test_a_reward_function_is_held_to_its_contract(values, message):
    def mine(prompts, completions, **columns):
        return values

    with pytest.raises(MinipostError, match=f"reward function .*mine {message}"):
        ask(mine, PROBLEMS, ["xx", "yy"])


def test_a_reward_function_that_raises_is_named():
    def mine(**columns):
        return [1 / 0]

    with pytest.raises(MinipostError, match="mine raised ZeroDivisionError: division by zero"):
        ask(mine, PROBLEMS, ["x", "y"])


def test_a_reward_function_receives_the_columns_as_lists():
    def mine(prompts, completions, letter, **rest):
        assert not rest
        return [float(p == letter_ and c == "x") for p, c, letter_ in
                zip(prompts, completions, letter)]

    assert ask(mine, PROBLEMS, ["x", "y"]) == [1.0, 0.0]
    assert columns([Problem("p", {"k": 1}), Problem("q", {})]) == {"k": [1, None]}


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 99))
def test_micro_batches_cover_the_rows_in_order_of_length(rows, micro, seed):
    run = make(micro_batch_size=micro)
    lengths = torch.randint(1, 9, (rows,), generator=torch.Generator().manual_seed(seed))
    cut = run.micro_batches(range(rows), lengths)
    flat = [row for part in cut for row in part]
    assert sorted(flat) == list(range(rows)) and all(len(part) <= micro for part in cut)
    assert [int(lengths[i]) for i in flat] == sorted(lengths.tolist())


def test_the_ratio_is_one_before_the_first_update():
    run = make(seed=3)
    problems = run.problems(4)
    rollout = run.sample(problems, 3, temperature=0.8)
    with torch.no_grad():
        ratio = (logprobs(run.policy.module, rollout, 0.8) - rollout.logp)[rollout.mask].exp()
    assert (ratio - 1).abs().max() < 1e-5
    metrics = next(grpo.train(run, grpo.Config(prompts=2, group_size=3, minibatch_size=6, beta=0.0)))
    assert metrics["clip_ratio"] == 0.0


TWO_RANKS = textwrap.dedent("""
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from minipost import parallel
    from minipost.methods import grpo
    from test_run import make

    def main():
        run = make(seed=1)
        metrics = next(grpo.train(run, grpo.Config(prompts=5, group_size=4, minibatch_size=20, beta=0.1)))
        flags = torch.tensor([float(parallel.rank())])
        parallel.all_reduce(flags)
        return run.policy.flat, metrics, float(flags)

    flat, metrics, ranks = parallel.launch(main, {workers})
    print(ranks, *(metrics[k] for k in ("loss", "kl", "entropy", "reward", "grad_norm")),
          *flat[::97].tolist())
""")


def test_two_ranks_make_the_step_that_one_makes():
    """Sampling, scoring, gradients and metrics are the same however the work is shared."""
    tests, found = str(Path(__file__).parent), []
    for workers in (1, 2):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TWO_RANKS.format(tests=tests, workers=workers)],
            capture_output=True, text=True, cwd=Path(tests).parent, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append([float(x) for x in done.stdout.split()])
    assert [f[0] for f in found] == [0.0, 1.0]      # the second run really had two ranks
    assert found[0][1:] == pytest.approx(found[1][1:], rel=1e-6, abs=1e-9)
