"""Reward functions: the contract that each call is held to."""

import decimal
import fractions
import math
import random

import numpy as np
import pytest
import torch
from fakes import make_run
from hypothesis import given
from hypothesis import strategies as st

from minipost import ops
from minipost.datasets.named import absolute, load_reward, reward_files, sources
from minipost.datasets.rewards import Said, Told, TrainerState, ask, columns
from minipost.datasets.usercode import TimeIsUp
from minipost.errors import MinipostError
from minipost.methods import grpo, reinforce_pp
from minipost.tasks.base import Problem

PROBLEMS = [Problem("a", {"letter": "a"}), Problem("b", {"letter": "b"})]
TEXTS = ["xx", "yy"]


@pytest.fixture
def reward_of(tmp_path):
    """reward_of(code, *functions) -> the reward of a file mine.py; each call writes it anew."""
    def load(code, *functions):
        path = tmp_path / "mine.py"
        path.write_text(code)
        return load_reward([f"{path}:{name}" for name in functions or ("reward",)], None)
    return load


def returns(values):
    def mine(prompts, completions, **columns):
        return values
    return mine


# ---- what a function returns

@pytest.mark.parametrize("values, message", [
    ([1.0], "returned 1 values for 2 rows"),
    ((1.0, 0, 1), "returned 3 values for 2 rows"),
    ([1.0, float("nan")], "returned nan for row 1 .*'yy'.* expected a finite number$"),
    (torch.tensor([1.0, float("inf")]), "returned inf for row 1"),
    ([1.0, 1e39], "returned 1e.39 for row 1 .*'yy'.* expected a number of at most 1e.18 in size$"),
    ([-1e19, 1.0], "returned -1e.19 for row 0 .* at most 1e.18 in size$"),
    ([10**400, 1.0], "returned 1000000000.* for row 0"),
    ([None, 1.0], "returned None for row 0"),
    (["1", 1.0], "returned '1' for row 0"),
    ([1j, 1.0], "returned 1j for row 0"),
    (np.array([1j, 1]), "returned 1j for row 0"),
    ([np.str_("1"), 1.0], r"returned .*'1'.* for row 0"),
    (np.array(["1", "2"]), "returned '1' for row 0"),
    ([[1.0], [2.0]], r"returned \[1.0\] for row 0"),
    (None, "returned a value of type NoneType; expected a list of 2 numbers, one per row"),
    (1.0, "returned a value of type float; expected a list"),
    ({0: 1.0, 1: 2.0}, "returned a value of type dict"),
    ({1.0, 2.0}, "returned a value of type set"),
    ({1: 0, 2: 0}.values(), "returned a value of type dict_values"),
    ("12", "returned a value of type str"),
    (b"12", "returned a value of type bytes"),
    ((float(x) for x in "12"), "returned a value of type generator"),
    (np.ones((2, 1)), r"returned a ndarray of shape \(2, 1\)"),
    (torch.ones(2, 2), r"returned a Tensor of shape \(2, 2\)"),
    (torch.tensor(1.0), r"returned a Tensor of shape \(\)"),
])
def test_a_reward_function_is_held_to_its_contract(values, message):
    with pytest.raises(MinipostError, match=f"reward function .*mine {message}"):
        ask(returns(values), PROBLEMS, TEXTS)


@pytest.mark.parametrize("values", [
    [1, 0.5], (1, 0.5), np.array([1, 0.5]), torch.tensor([1, 0.5], requires_grad=True),
    [True, np.float16(0.5)], [np.bool_(True), torch.tensor(0.5)], torch.tensor([1, 0.5]).bfloat16(),
    [decimal.Decimal(1), fractions.Fraction(1, 2)], [torch.tensor([1]), np.array([[0.5]])],
    np.array([1, 0.5], dtype=object),
])
def test_what_is_a_list_of_numbers(values):
    found = ask(returns(values), PROBLEMS, TEXTS)
    assert found == [1.0, 0.5] and [type(value) for value in found] == [float, float]


class Rude:
    """An object that raises whatever it is asked."""

    def __getattr__(self, name):
        raise SystemExit(name)

    def __repr__(self):
        raise RuntimeError

    __len__ = __iter__ = __float__ = __repr__


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(),
                    st.text(max_size=3), st.binary(max_size=3), st.decimals(), st.fractions(),
                    st.builds(object), st.builds(Rude), st.datetimes(), st.just(np.float16(0.5)))
JUNK = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.tuples(inner, inner), st.lists(inner, min_size=2, max_size=2),
    st.dictionaries(st.text(max_size=2), inner)), max_leaves=6)
SHAPES = st.lists(st.integers(0, 2), max_size=3)
ARRAYS = st.builds(
    lambda shape, kind: np.zeros(shape, dtype=kind), SHAPES,
    st.sampled_from(["f2", "i8", "?", "c8", "U3", "S3", "M8[s]", "m8[s]", "O", "f4,i4", "V2"]))
TENSORS = st.builds(
    lambda shape, kind, where: torch.zeros(shape, dtype=kind, device=where), SHAPES,
    st.sampled_from([torch.float64, torch.bfloat16, torch.bool, torch.complex64, torch.int8]),
    st.sampled_from(["cpu", "meta"]))
ODD = st.one_of(st.sets(st.integers()), st.just(range(2)), st.builds(lambda: iter([1.0, 2.0])),
                st.just(torch.eye(2).to_sparse()), st.just(torch.zeros(2).to_sparse()),
                st.just(ask), st.just(list), st.builds(lambda: (x for x in (1, 2))),
                st.builds(lambda: np.ma.array([1.0, 2.0], mask=[0, 1])))


@given(st.one_of(JUNK, ARRAYS, TENSORS, ODD), st.booleans())
def test_whatever_comes_back_is_a_list_of_floats_or_one_sentence(values, raises):
    def mine(**columns):
        if raises and isinstance(values, BaseException | type(None)):
            raise values or RuntimeError
        return values

    try:
        found = ask(mine, PROBLEMS, TEXTS)
    except MinipostError as error:
        assert "reward function" in str(error) and "mine" in str(error)
    else:
        assert len(found) == 2 and all(type(value) is float for value in found)
        assert np.isfinite(found).all()


# ---- several functions

def test_of_several_functions_the_wrong_one_is_named(reward_of):
    code = """def one(prompts, completions, **columns):
    return [1.0] * len(prompts)
def two(completions, **columns):
    return [None, 2]
def short(**columns):
    return [1.0]
def bad(**columns):
    return [1.0, "x"]
def boom(completions, **columns):
    return [1 / (text != "yy") for text in completions]
"""
    assert ask(reward_of(code, "one", "two"), PROBLEMS, TEXTS) == [1.0, 3.0]
    for wrong, message in [("short", "short returned 1 values for 2 rows"),
                           ("bad", "bad returned 'x' for row 1"),
                           ("boom", r"boom raised ZeroDivisionError.* for row 1 \(compl.* 'yy'")]:
        with pytest.raises(MinipostError, match=f"the reward function {message}"):
            ask(reward_of(code, "one", wrong), PROBLEMS, TEXTS)
    large = code + "def large(**columns):\n    return [0.0, -9e17]\n"
    with pytest.raises(MinipostError, match="large returned -1.8e.18 for row 1 .*at most 1e"):
        ask(reward_of(large, "large", "large"), PROBLEMS, TEXTS)
    with pytest.raises(MinipostError, match=r"two \+ two returned None for row 0 .* at least one"):
        ask(reward_of(code, "two", "two"), PROBLEMS, TEXTS)
    with pytest.raises(MinipostError, match="function two returned None for row 0.*number [(]grpo, "
                       "dr-grpo, .* leave an answer without a reward out[)]$"):
        ask(reward_of(code, "two"), PROBLEMS, TEXTS)


# ---- what a function is given

def test_a_reward_function_receives_the_columns_as_lists():
    def mine(prompts, completions, letter, **rest):
        assert not rest
        return [float(p == letter_ and c == "x") for p, c, letter_ in
                zip(prompts, completions, letter)]

    assert ask(mine, PROBLEMS, ["x", "y"]) == [1.0, 0.0]
    assert columns([Problem("p", {"k": 1}), Problem("q", {})]) == {"k": [1, None]}


def test_a_reward_function_may_change_what_it_was_given(reward_of):
    """Two functions and two rows that are one problem: each gets lists and dicts of its own."""
    problem = Problem("a", {"steps": [{"say": ["b"]}]})
    texts = ["xx", "yy"]
    reward = reward_of("""def reward(prompts, completions, steps):
    values = [len(step) * len(step[0]["say"]) for step in steps]
    for step in steps:
        step[0]["say"].pop()
        step.append(1)
    for things in (prompts, completions, steps):
        things.clear()
    return values
""", "reward", "reward")
    for _ in range(2):
        assert ask(reward, [problem, problem], texts) == [2.0, 2.0]
    assert problem == Problem("a", {"steps": [{"say": ["b"]}]}) and texts == ["xx", "yy"]


@pytest.mark.parametrize("arguments, message", [
    ("prompts, completion_ids, **columns", "'completion_ids'; it gets prompts, completions, lett"),
    ("prompts, completions", "unexpected keyword argument 'letter'"),
    ("completions, letter", "unexpected keyword argument 'prompts'"),
    ("prompts, completions, letter, /, trainer_state=None", "'prompts'"),
])
def test_a_reward_function_that_wants_other_arguments(reward_of, arguments, message):
    with pytest.raises(MinipostError, match=f"function reward cannot be called: .*{message}"):
        ask(reward_of(f"def reward({arguments}):\n    return [1.0] * 2\n"), PROBLEMS, TEXTS)


def test_a_column_with_the_name_of_an_argument():
    with pytest.raises(MinipostError, match="have the key 'completions'.* another name"):
        ask(returns([1.0]), [Problem("a", {"completions": "b"})], ["x"])


def test_a_run_draws_nothing_from_the_global_random_streams():
    """So a reward function may seed them: the same step follows."""
    found, states = [], (random.getstate(), np.random.get_state(), torch.get_rng_state())
    for seed in (1, 2):
        def seeded(prompts, completions, seed=seed, **columns):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            return [len(text) for text in completions]

        run = make_run()
        run.reward = seeded
        steps = grpo.train(run, grpo.Config(prompts=2, group_size=4))
        next(steps), next(steps)
        found.append(run.policy.flat)
    assert torch.equal(*found)
    random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])


# ---- what a function raises

def test_an_exception_has_its_place_and_its_row(reward_of):
    code = """import json

def one(text):
    return json.loads(text)

def reward(completions, **columns):
    return [one(text) for text in completions]
"""

    rows = [Problem("a"), *(Problem(text, place="rows.jsonl, line 17") for text in "bc")]
    with pytest.raises(MinipostError) as caught:
        ask(reward_of(code), rows, ["1", "{", "["])
    assert str(caught.value).endswith("mine.py, line 4: `return json.loads(text)`) for row 1 "
                                      "(rows.jsonl, line 17; completion '{')")
    assert str(caught.value).startswith("the reward function reward raised JSONDecodeError: ")


def test_an_exception_of_no_single_row(reward_of):
    """Here all rows together raise one, and a row alone another."""
    reward = reward_of("""def reward(prompts, **columns):
    if len(prompts) == 1:
        raise KeyError("two, please")
    raise ValueError
""")
    with pytest.raises(MinipostError,
                       match=r"raised ValueError \(.*line 4: `.*`\) for the whole batch of 2$"):
        ask(reward, PROBLEMS, TEXTS)


@pytest.mark.parametrize("call, said", [
    ("os._exit(3)", r"reward called os._exit\(3\)"), ("sys.exit(0)", "reward raised SystemExit: 0"),
    ("os.abort()", r"reward called os.abort\(\)"), ("exit()", "reward raised SystemExit: None"),
    ("os.execl('/bin/false', 'false')", r"reward called os.execv\('/bin/false', .*\)"),
    ("raise GeneratorExit", "reward raised GeneratorExit"),
    ("import posix; posix._exit(0)", r"reward called os._exit\(0\)"),
])
def test_a_reward_function_cannot_end_the_process(reward_of, call, said):
    code = f"import os, sys\ndef reward(**columns):\n    {call}\n"
    with pytest.raises(MinipostError, match=rf"{said} \(.*mine.py, line 3: `.*`\) for row 0"):
        ask(reward_of(code), PROBLEMS, TEXTS)


def test_a_key_press_goes_through():
    """At the first call: the rows are not asked again one by one."""
    calls = []

    def mine(**columns):
        calls.append(columns)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(mine, PROBLEMS, TEXTS)


# ---- --reward FILE.py:FUNCTION

@pytest.mark.parametrize("code, function, message", [
    ("def one(**columns): ...\ndef _two(): ...", "reward", "no function 'reward'; it has one$"),
    ("", "reward", "no function 'reward'; it has none$"),
    ("def one(**columns): ...", "", "no function ''; it has one$"),
    ("reward = 3", "reward", "reward is of type int"),
    ("class Reward: ...", "Reward", "Reward is of type Reward; expected a function"),
    ("class Reward:\n    def __init__(self, n): ...", "Reward", "raised TypeError: .*'n'"),
    ("class Reward:\n    n = 3", "Reward.n", "Reward.n is of type int"),
    ("class Reward: ...", "Reward.f", "no function 'Reward.f'"),
    ("x = 1\ndef reward(:\n", "reward", r"raised SyntaxError: .* \(.*mine.py, line 2: `def rew"),
    ("x = 1\n'\0'", "reward", "raised (ValueError|SyntaxError): .*null bytes"),
    ("import os\nos._exit(3)", "reward", r"the file called os._exit\(3\) \(.*mine.py, line 2"),
    ("import sys\nsys.exit(0)", "reward", r"the file raised SystemExit: 0 \(.*mine.py, line 2"),
    ("from json import nothing", "reward", r"raised ImportError: .* \(.*mine.py, line 1: `from "),
    ("def __getattr__(name):\n    exit(0)", "reward", r"raised SystemExit: 0 \(.*mine.py, line 2"),
])
def test_a_file_without_such_a_function(reward_of, code, function, message):
    with pytest.raises(MinipostError, match=f"--reward .*mine.py:{function}: .*{message}"):
        reward_of(code, function)


@pytest.mark.parametrize("name, message", [
    ("mine.py", "expected FILE.py:FUNCTION"), (":reward", "expected FILE.py:FUNCTION"),
    ("", "expected FILE.py:FUNCTION"), ("nowhere.py:reward", "nowhere.py: there is no such file"),
    (".:reward", "is no regular file"), ("x" * 300 + ":reward", "expected FILE.py:FUNCTION"),
    ("x\0:reward", "expected FILE.py:FUNCTION"),
])
def test_no_such_file(name, message):
    with pytest.raises(MinipostError, match=f"--reward .*{message}"):
        load_reward([name], None)


def test_objects_that_can_be_called(reward_of):
    code = """import functools
class Scorer:
    def __call__(self, prompts, completions, **columns):
        return [len(text) for text in completions]
reward = Scorer()
part = functools.partial(Scorer.__call__, None)
"""
    assert ask(reward_of(code, "reward", "part"), PROBLEMS, ["x", "yyy"]) == [2.0, 6.0]


def test_the_files_of_a_reward(tmp_path):
    for name, code in [("two.py", "from helpers_of_two import f as reward\nagain = reward\n"),
                       ("idle.py", ""),
                       ("helpers_of_two.py", "def f(**columns):\n    return [1.0, 2.0]\n")]:
        (tmp_path / name).write_text(code)
    names = [f"{tmp_path}/two.py:reward", f"{tmp_path}/../{tmp_path.name}/two.py:again"]
    assert reward_files(names) == [tmp_path / "two.py"]
    assert ask(load_reward(names, None), PROBLEMS, TEXTS) == [2.0, 4.0]
    assert sources(names) == [tmp_path / "helpers_of_two.py", tmp_path / "two.py"]


# ---- a time limit

@pytest.mark.parametrize("texts, where", [
    (["xx", "yy", "xx"], "row 1 "), (["xx", "xx", "xx"], "the whole batch of 3")])
def test_a_reward_function_that_does_not_return(reward_of, texts, where):
    """For one row; or for several together, though not for any of them alone."""
    reward = reward_of("""import time
def reward(completions, **columns):
    while len(completions) > 1 or "yy" in completions:
        try:
            time.sleep(0.001)
        except Exception:
            pass
    return [1.0]
""")
    with pytest.raises(MinipostError, match=r"reward took more than 0.3 s \(.*mine.py, line [35]: "
                                            rf".*\) for {where}"):
        ask(reward, PROBLEMS[:1] * 3, texts, limit=0.3)
    assert ask(reward, PROBLEMS[:1], ["xx"], limit=60.0) == [1.0]


@pytest.mark.parametrize("seconds, where", [(36, "row 1 "), (24, "the whole batch of 2")])
def test_a_row_is_to_blame_that_takes_half_of_the_limit(monkeypatch, seconds, where):
    """Where each row takes a while, the one that is asked at the end of the limit is not it."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def mine(completions, **columns):
        clock[0] += seconds
        if completions != ["xx"]:
            raise TimeIsUp
        return [1.0]

    with pytest.raises(MinipostError, match=f"mine took more than 60 s.* for {where}"):
        ask(mine, PROBLEMS, TEXTS, limit=60.0)


def test_a_run_has_the_limit_and_reports_the_row(reward_of):
    run = make_run(reward_timeout=0.05)
    run.reward = reward_of("def reward(**columns):\n    while True: pass\n")
    with pytest.raises(MinipostError, match="reward took more than 0.05 s .* for row 0"):
        run.grade_texts(PROBLEMS, ["a", "b"])


def test_a_call_into_c_that_does_not_return_ends_the_process(python, tmp_path):
    """No handler of Python's runs meanwhile.  The stack that is printed names the line."""
    (tmp_path / "mine.py").write_text(
        "def reward(**columns):\n    return [sum(range(10**13))] * 2\n")
    done = python("-c", f"""
from minipost.datasets import usercode
from minipost.datasets.named import load_reward
from minipost.datasets.rewards import ask
from minipost.tasks.base import Problem
usercode.GRACE = 0.2
ask(load_reward(["{tmp_path}/mine.py:reward"], None), [Problem("a")] * 2, ["", ""], limit=0.1)
""")
    assert done.returncode == 1 and f'{tmp_path}/mine.py", line 2 in reward' in done.stderr


def test_a_function_that_catches_everything_is_named_when_it_ends_the_process(python, tmp_path):
    (tmp_path / "mine.py").write_text("""import time
def stubborn(**columns):
    while True:
        try:
            time.sleep(100)
        except BaseException:
            pass
""")
    done = python("-c", f"""
from minipost.datasets import usercode
from minipost.datasets.named import load_reward
from minipost.datasets.rewards import ask
from minipost.tasks.base import Problem
usercode.GRACE = 0.2
ask(load_reward(["{tmp_path}/mine.py:stubborn"], None), [Problem("a")] * 2, ["", ""], limit=0.1)
""")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith(
        "error: the reward function stubborn did not return within 0.1 s (--reward-timeout) (")
    assert "mine.py, line 5: `time.sleep(100)`)" in done.stderr


# ---- TRL's contract

def told(said=None, ids=((1, 2), (3,)), **state):
    return Told(lambda: [list(each) for each in ids], TrainerState(**state), said or Said())


def test_weights(reward_of, tmp_path):
    code = "def one(**columns):\n    return [1.0, 2.0]\ndef two(**columns):\n    return [None, 4]\n"
    reward = reward_of(code, "one=0.5", "two=-0.25")
    assert ask(reward, PROBLEMS, TEXTS) == [0.5, 0.0] == reward(["a"], ["b"])
    assert ask(reward_of(code, "one=2"), PROBLEMS, TEXTS) == [2.0, 4.0]
    for wrong in ("one=", "one=x", "one=nan", "one=inf"):
        with pytest.raises(MinipostError, match="the weight '.*' is no finite number"):
            reward_of(code, wrong)


def test_a_function_gets_what_it_takes_of_trl_s_arguments(reward_of):
    code = """def named(completions, completion_ids, letter, trainer_state, prompts):
    return [len(ids) + 10 * trainer_state.global_step for ids in completion_ids]
def every(log_metric, **columns):
    assert columns["trainer_state"].max_steps == 7 and columns["log_extra"]
    log_metric("seen", len(columns["completions"]))
    log_metric("seen", 4)
    return [0, 0]
def none(prompts, completions, letter):
    return [0, 0]
"""
    said = Said()
    reward = reward_of(code, "named", "every", "none")
    more = told(said, global_step=3, max_steps=7)
    assert ask(reward, PROBLEMS, TEXTS, more=more) == [32.0, 31.0]
    assert said.metrics() == {"seen": 3.0, "rewards/named": 31.5, "rewards/every": 0.0,
                              "rewards/none": 0.0}
    with pytest.raises(MinipostError, match="have the key 'trainer_state'"):
        ask(reward, [Problem("a", {"trainer_state": 1})] * 2, TEXTS, more=more)


def test_ids_are_not_made_for_who_does_not_take_them():
    def mine(prompts, completions, letter):
        return [1.0, 2.0]

    assert ask(mine, PROBLEMS, TEXTS, more=Told(lambda: 1 / 0, TrainerState(), Said())) == [1, 2]


@pytest.mark.parametrize("call, part", [
    ("log_metric('a', float('nan'))", r"log_metric\('a', nan\); expected a name and a finite"),
    ("log_metric('a', None)", "expected a name and a finite number"),
    ("log_metric(3, 1.0)", "expected a name and a finite number"),
    ("log_extra('a', [1])", r"log_extra\('a', \[1\]\); expected a name and a list of 2 values"),
    ("log_extra('a', 'xy')", "expected a name and a list of 2 values"),
])
def test_what_a_function_logs_is_held_to_its_form(reward_of, call, part):
    code = f"def reward(log_metric, log_extra, **columns):\n    {call}\n    return [1, 1]\n"
    with pytest.raises(MinipostError, match=part):
        ask(reward_of(code), PROBLEMS, TEXTS, more=told())


def test_extra_columns_of_equal_answers_come_in_their_order(reward_of):
    said = Said()
    reward = reward_of("def reward(log_extra, **columns):\n    log_extra('k', [1, 2, 3])\n"
                       "    return [1, 1, 1]\n")
    ask(reward, [PROBLEMS[0]] * 3, ["x", "y", "x"], more=told(said, ids=((), (), ())))
    assert [said.of("a", text)["k"] for text in ("x", "x", "y")] == [1, 3, 2]
    assert said.of("b", "x") == {}


def test_async_functions_wait_together(reward_of):
    code = """import asyncio
met = asyncio.Event()
async def first(completions, **columns):
    await asyncio.wait_for(met.wait(), 20)
    return [len(text) for text in completions]
class Second:
    async def __call__(self, completions, **columns):
        met.set()
        return [None, 10]
def plain(completions, **columns):
    return [100, 100]
"""
    assert ask(reward_of(code, "first", "Second", "plain"), PROBLEMS, TEXTS) == [102.0, 112.0]


def test_in_a_running_loop_an_async_function_is_awaited_too(reward_of):
    import asyncio

    reward = reward_of("async def reward(**columns):\n    return [1, 2]\n")

    async def notebook():
        return ask(reward, PROBLEMS, TEXTS)

    assert asyncio.run(notebook()) == [1.0, 2.0]


def test_an_async_function_is_named_with_its_row(reward_of):
    code = """import asyncio
async def good(completions, **columns):
    await asyncio.sleep(0)
    return [0.0] * len(completions)
async def bad(completions, **columns):
    await asyncio.sleep(0)
    return [1 / (text != "yy") for text in completions]
async def short(**columns):
    return [1.0]
async def slow(**columns):
    await asyncio.sleep(60)
def wrong(prompts):
    return [1.0]
"""
    with pytest.raises(MinipostError, match="bad raised ZeroDivisionError.* line 7.* for row 1 "):
        ask(reward_of(code, "good", "bad"), PROBLEMS, TEXTS)
    with pytest.raises(MinipostError, match="short returned 1 values for 2 rows"):
        ask(reward_of(code, "good", "short"), PROBLEMS, TEXTS)
    with pytest.raises(MinipostError, match="slow took more than 0.2 s"):
        ask(reward_of(code, "good", "slow"), PROBLEMS, TEXTS, limit=0.2)
    with pytest.raises(MinipostError, match="wrong cannot be called"):  # and nothing is left open
        ask(reward_of(code, "good", "wrong"), PROBLEMS, TEXTS)


def test_classes_and_methods(reward_of):
    code = """class Scorer:
    made = 0
    def __init__(self):
        Scorer.made += 1
    def __call__(self, completions, **columns):
        return [Scorer.made] * len(completions)
    def method(self, **columns):
        return [10, 20]
    @staticmethod
    def static(**columns):
        return [100, 200]
    class Inner:
        @classmethod
        def f(cls, **columns):
            return [1000, 2000]
"""
    reward = reward_of(code, "Scorer", "Scorer.method", "Scorer.static", "Scorer.Inner.f")
    assert ask(reward, PROBLEMS, TEXTS) == [1111.0, 2221.0]  # one object of the class


def test_a_function_of_an_installed_module(tmp_path, monkeypatch):
    (tmp_path / "pack_x").mkdir()
    (tmp_path / "pack_x" / "__init__.py").write_text("")
    (tmp_path / "pack_x" / "mod.py").write_text("def f(**columns):\n    return [1, 2]\n")
    (tmp_path / "pack_x" / "bad.py").write_text("import nowhere_x\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ask(load_reward(["pack_x.mod:f=2"], None), PROBLEMS, TEXTS) == [2.0, 4.0]
    assert reward_files(["pack_x.mod:f=2"]) == [tmp_path / "pack_x" / "mod.py"]
    assert absolute("pack_x.mod:f=2") == "pack_x.mod:f=2" and absolute("a/b.py:f")[0] == "/"
    for name, part in [("pack_x.none:f", "there is no module pack_x.none; expected FILE.py"),
                       ("none_x:f", "there is no module none_x"),
                       ("pack_x.mod:g", "the module has no function 'g'; it has f"),
                       ("pack_x.bad:f", "the module raised ModuleNotFoundError: .*nowhere_x")]:
        with pytest.raises(MinipostError, match=f"--reward {name}: {part}"):
            load_reward([name], None)


def test_answers_to_which_no_function_applies_teach_grpo_nothing():
    """Their siblings are compared with each other alone."""
    reward = torch.tensor([1.0, math.nan, 0.0, 0.5, math.nan, 2.0, math.nan, math.nan],
                          dtype=torch.float64)
    adv = ops.group_normalised(reward, 4)
    known = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    assert torch.allclose(adv[[0, 2, 3]], (known - known.mean()) / (known.std() + 1e-4))
    assert adv[[1, 4, 5, 6, 7]].eq(0).all()
    run, calls = make_run(), []
    run.reward = lambda prompts, completions, **columns: calls.append(completions) or [
        None if k % 2 else float(k) for k in range(len(completions))]
    found = next(grpo.train(run, grpo.Config(prompts=2, group_size=4)))
    assert found["unscored_ratio"] == 0.5 and found["reward"] == 3.0
    assert found["reward_std"] == pytest.approx(2**0.5)
    with pytest.raises(MinipostError, match="returned None for row 1"):
        next(reinforce_pp.train(run, reinforce_pp.Config(prompts=2, group_size=4)))
