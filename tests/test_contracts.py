"""What a stranger meets: files found by their name, one sentence where one is not whole, old
names."""

import ast
import importlib
import inspect
import io
import json
import shutil
import sys
import tokenize
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import minipost
from minipost import api, evaluate, methods, prove, solve, tasks, test_time, train
from minipost.cli import options
from minipost.errors import MinipostError

ROOT = Path(__file__).parents[1]
STRANGERS = Path(__file__).parent / "strangers"


@pytest.fixture
def added(tmp_path, monkeypatch):
    """add(package, file): a package of minipost finds a stranger's file, until the test ends."""
    def add(package, file, text=None):
        folder = tmp_path / package.__name__.rsplit(".")[-1]
        folder.mkdir(exist_ok=True)
        if text is None:
            shutil.copy(STRANGERS / file, folder)
        else:
            (folder / file).write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{Path(file).stem}", raising=False)
        importlib.invalidate_caches()
    yield add
    for name in list(sys.modules):
        if name.startswith("minipost.") and Path(getattr(sys.modules[name], "__file__", "") or "/"
                                                 ).is_relative_to(tmp_path):
            del sys.modules[name]


def code_lines(path):
    """Lines of code: no docstrings, no comments, no blank lines."""
    text = path.read_text()
    prose = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            prose |= set(range(body[0].lineno, body[0].end_lineno + 1))
    dull = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
            tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in dull:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - prose)


# ---- a stranger's three tasks, a file each

def test_a_new_method_is_one_file_of_at_most_60_lines(added, command, tmp_path, reward):
    assert code_lines(STRANGERS / "topr.py") <= 60
    added(methods, "topr.py")
    assert "topr" in methods.names()
    assert train.main([*command("topr", "--steps", 2, "--prompts", 2, "--group-size", 4,
                                "--schedule", "linear", "--lag", 1, "--keep-rollouts", 1),
                       "--reward", reward]) == 0
    assert len(list((tmp_path / "run" / "rollouts").iterdir())) == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    module = methods.load("topr").module
    assert methods.load("topr").EXPORTS == {"policy": "model"}
    generator = torch.Generator().manual_seed(0)
    logp, old = (torch.randn(3, 4, generator=generator, dtype=torch.float64) / 50 for _ in "ab")
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    adv = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logp.requires_grad_()
    module.loss(logp, old, adv, mask, count=3)[0].backward()
    by_hand = module.loss_grad(logp.detach(), old, adv, mask, count=3)["logp"]
    assert torch.allclose(logp.grad, by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("flag", ["--lag", "--keep-rollouts", "--sampler-bits", "--sampler-top-k"])
def test_a_method_that_is_not_said_to_be_on_policy_is_told_what_to_say(added, flag):
    added(methods, "quiet.py", (STRANGERS / "topr.py").read_text().replace("ON_POLICY", "NO"))
    with pytest.raises(MinipostError, match=r"its file does not say ON_POLICY = True\)"):
        train.settings_of(["--algo", "quiet", flag, "8"])


def test_a_new_method_is_proved_by_its_own_file(added, tmp_path, capsys):
    added(methods, "topr.py")
    from minipost.proof import estimates

    (estimate,) = estimates.stated("topr")
    assert estimate.rows == 2 and estimate.module.__name__ == "minipost.methods.topr"
    text = (STRANGERS / "topr.py").read_text()
    start = text.index("PROOF"), text.index("\n\n\n@dataclass")
    added(methods, "unproved.py", text[: start[0]] + text[start[1]:])
    out = ["--out", str(tmp_path / "p.json")]
    assert prove.main(["--algo", "unproved", *out]) == 1
    said = capsys.readouterr().err
    assert "unproved.py: has no PROOF" in said and "estimates.py" in said
    assert len(said.strip().splitlines()) == 1 and not (tmp_path / "p.json").exists()


def test_a_broken_method_stops_no_proof_of_another(added, tmp_path, capsys):
    added(methods, "half.py", "TASK = 'arithmetic'\n")
    asked = ["--horizon", "1", "--samples", "20", "--workers", "1", "--out", str(tmp_path / "p")]
    assert prove.main(["--algo", "sft", *asked]) == 0
    assert "1 of 1 statements hold" in capsys.readouterr().out
    assert prove.main(["--algo", "half", *asked]) == 1
    assert "half.py: does not define Config" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["train", "Config", "TASK", "METRIC"])
def test_a_method_that_is_not_whole_is_told_what_it_lacks(added, missing):
    text = (STRANGERS / "topr.py").read_text()
    for old in (f"def {missing}(", f"class {missing}(", f"{missing} = "):
        text = text.replace(old, old.replace(missing, f"No{missing}"))
    added(methods, "broken.py", text)
    with pytest.raises(MinipostError, match=rf"broken\.py: does not define {missing},"):
        methods.load("broken")


YIELD = "        yield {**meter"


@pytest.mark.parametrize("old, new, said", [
    ("    while True:", "    for _ in range(1):", "train ended before the last step"),
    (YIELD, YIELD.replace("yield", "return"), "train gives a dict; expected a generator"),
    (YIELD, YIELD.replace("{", "{'step': 7, "), "logs the metric 'step', which is one of"),
    (YIELD, YIELD.replace("{", "{'num_tokens': 7, "), "logs the metric 'num_tokens'"),
    (YIELD, YIELD.replace("{", "{'reward mean': reward.mean(), "),
     "the metric 'reward mean' is a Tensor; expected a number"),
    (YIELD, YIELD.replace("{", "{'note': 'well', "), "the metric 'note' is a str"),
    (YIELD, "        yield 1.0\n        {**meter", "train yields a float; expected a dict"),
    ('METRIC = "sampled"', 'METRIC = "samplde"', "METRIC is 'samplde'; it measures greedy, sam"),
    ('TASK = "arithmetic"', 'TASK = "arithmetics"', "TASK is 'arithmetics'; expected one of arith"),
    ("    epochs: int = 1 ", "    seed: int = 1 ", "the setting 'seed' of Config is one of "
     "minipost/train.py too"),
    ("    epochs: int = 1 ", "    budget: int = 1 ", "the setting 'budget' of Config is one of"),
    ("    epochs: int = 1 ", "    data: int = 1 ", "the setting 'data' of Config is one of the"),
    ("    epochs: int = 1 ", "    largest: int = 1 ", "minipost/tasks/arithmetic.py: the setting "
     "'largest' of Arithmetic is one of minipost/methods/wrong.py too; give it another name"),
    ("class Config(Descent):", "class Config:", "Config is no frozen dataclass"),
])
def test_a_mistake_in_a_method_is_one_sentence(added, command, tmp_path, capsys, old, new, said):
    text = (STRANGERS / "topr.py").read_text()
    assert text.count(old) == 1
    text = text.replace(old, new)
    if "no frozen" in said:
        text = text.replace("@dataclass(frozen=True)", "@dataclass")
    added(methods, "wrong.py", text)
    given = command("wrong", "--steps", 2, "--prompts", 2, "--group-size", 2, "--task",
                    "arithmetic")
    assert train.main(given) == 1
    heard = capsys.readouterr().err
    assert "wrong.py" in heard and said in heard and heard.count("\n") == 1
    assert heard.startswith("error: ")


def test_a_step_that_was_made_before_a_mistake_is_kept(added, command, tmp_path, capsys):
    added(methods, "short.py", (STRANGERS / "topr.py").read_text().replace(
        "    while True:", "    for _ in range(1):"))
    train.main(command("short", "--steps", 2, "--prompts", 2, "--group-size", 2, "--task",
                       "arithmetic"))
    assert "step 1 is saved" in capsys.readouterr().out
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_in_python_a_method_that_ends_early_is_one_sentence(added, tiny):
    added(methods, "early.py", (STRANGERS / "topr.py").read_text().replace(
        "    while True:", "    for _ in range(1):"))
    run = minipost.open(tiny, task="arithmetic", max_new_tokens=4)
    steps = minipost.train(run, "early", steps=2, prompts=2, group_size=2)
    assert next(steps)["step"] == 1
    with pytest.raises(MinipostError, match=r"early\.py: train ended before the last step"):
        next(steps)


@pytest.mark.parametrize("old, new, said", [
    ("@dataclass(frozen=True)", "@dataclass", "Parity is no frozen dataclass; write"),
    ("largest: int", "steps: int", "wrong.py: the setting 'steps' of Parity is one of "
     "minipost/methods/sft.py too"),
    ("largest: int", "seed: int", "the setting 'seed' of Parity is one of minipost/train.py too"),
])
def test_a_mistake_in_a_task_is_one_sentence(added, monkeypatch, capsys, old, new, said):
    text = (STRANGERS / "parity.py").read_text().replace(old, new)
    added(tasks, "wrong.py", text.replace('"parity"', '"wrong"'))
    for module in (options, tasks):
        monkeypatch.setattr(module, "TASKS", tasks.found())
    assert train.main(["--algo", "sft", "--task", "wrong"]) == 1
    heard = capsys.readouterr().err
    assert said in heard and heard.count("\n") == 1


def test_in_python_a_knob_named_like_an_option_of_a_run_is_refused(added, monkeypatch, tiny):
    """It would set either; on the command line it is refused too."""
    text = (STRANGERS / "parity.py").read_text().replace("largest", "seed")
    added(tasks, "wrong.py", text.replace('"parity"', '"wrong"'))
    monkeypatch.setattr(api, "TASKS", tasks.found())
    monkeypatch.setattr(tasks, "TASKS", tasks.found())
    with pytest.raises(MinipostError, match="the setting 'seed' of Parity is one of minipost"):
        minipost.open(tiny, task="wrong", seed=3)


def test_a_new_task_is_one_file(added, monkeypatch):
    added(tasks, "parity.py")
    found = tasks.found()
    assert set(found) == {*tasks.TASKS, "parity"} and found["parity"]().heldout(3)
    monkeypatch.setattr(options, "TASKS", found)
    monkeypatch.setattr(tasks, "TASKS", found)
    given = train.settings_of(["--algo", "sft", "--task", "parity", "--largest", "50"])
    assert given.task.largest == 50


def test_a_task_that_is_not_whole_is_told_what_it_lacks_and_hurts_no_other(added, monkeypatch,
                                                                           capsys):
    text = (STRANGERS / "parity.py").read_text().replace("def reward", "def no")
    added(tasks, "half.py", text.replace('"parity"', '"half"'))
    for module in (options, tasks):
        monkeypatch.setattr(module, "TASKS", tasks.found())
    assert train.main(["--algo", "sft", "--task", "half"]) == 1
    said = capsys.readouterr().err
    assert "half.py: Parity does not define reward; minipost/tasks/base.py says" in said
    assert train.settings_of(["--algo", "sft", "--task", "arithmetic"]).task.name == "arithmetic"


@pytest.mark.parametrize("file, text, name, said", [
    ("vowels.py", "import nothing_here\n", "vowels",
     "minipost/tasks/vowels.py, line 1: cannot be imported (ModuleNotFoundError: No module named "
     "'nothing_here')"),
    ("vowels.py", "def (\n", "vowels", "minipost/tasks/vowels.py: cannot be imported (SyntaxError"),
    ("sums.py", None, "arithmetic",
     "minipost/tasks/sums.py: its task is called 'arithmetic', as is that of "
     "minipost/tasks/arithmetic.py; give one of them another name"),
])
def test_a_task_file_that_cannot_be_used_hurts_no_other(added, monkeypatch, capsys, file, text,
                                                        name, said):
    """Neither is one of ours replaced without a word."""
    added(tasks, file, text or (STRANGERS / "parity.py").read_text().replace("parity", name))
    monkeypatch.setattr(tasks, "FAULTS", {})
    for module in (options, tasks):
        monkeypatch.setattr(module, "TASKS", tasks.found())
    assert train.main(["--algo", "sft", "--task", name]) == 1
    assert said in (heard := capsys.readouterr().err) and heard.count("\n") == 1
    assert train.settings_of(["--algo", "sft", "--task", "countdown"]).task.name == "countdown"


@pytest.mark.parametrize("text, said", [
    ("def f(:\n", "minipost/methods/mine.py: cannot be imported (SyntaxError"),
    ("x = 1\n\nx = y\n", "minipost/methods/mine.py, line 3: cannot be imported (NameError"),
])
def test_a_method_that_cannot_be_imported_is_said_in_one_sentence(added, capsys, text, said):
    """Where it is asked for; no other method hears of it."""
    added(methods, "mine.py", text)
    assert train.main(["--algo", "mine"]) == 1
    assert said in (heard := capsys.readouterr().err) and heard.count("\n") == 1
    assert train.settings_of(["--algo", "sft"]).method.name == "sft"


def test_a_new_way_to_answer_is_one_file(added, capsys):
    added(test_time, "shortest.py")
    small = ["--model", str(ROOT / "checkpoints/student"), "--max-new-tokens", "24"]
    assert evaluate.main(["--method", "shortest", "--n", "3", "--workers", "1", "--json",
                          *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["arms"]) == {"1 sample", "shortest of 3"}
    assert solve.main(["--method", "shortest", *small]) == 0
    added(test_time, "mute.py",
          (STRANGERS / "shortest.py").read_text().replace("def show", "def no"))
    with pytest.raises(MinipostError, match=r"mute\.py: does not define show"):
        test_time.load("mute")


# ---- the contracts that are written down

def test_every_file_keeps_its_contract():
    for name in methods.names():
        method = methods.load(name)
        assert method.PROOF and all(isinstance(f, str) for f in method.EXPORTS.values()), name
        assert [f.name for f in fields(method.Config)][0] == "steps"
        assert set(method.READS) <= {"completion", "chosen", "rejected", "label", "reward"}, name
        if hasattr(method.module, "loss"):
            assert hasattr(method.module, "loss_grad"), name
    for name in test_time.names():
        way = test_time.load(name)
        assert way.BEFORE and way.AFTER and way.BEFORE != way.AFTER, name


def test_the_front_hall_shows_what_a_learner_reads_and_little_else():
    hall = [path for path in (ROOT / "minipost").iterdir() if path.name != "__pycache__"]
    # families.py keeps gpt.py a page; chat.py says what a message is to a model; shard.py builds on
    # optim.py, which engine/ may not import; report.py is a door; parts.py and opening.py are what
    # run.py would hold else
    assert sum(path.suffix == ".py" for path in hall) <= 27
    assert {path.name for path in hall if path.is_dir()} == {
        "checks", "cli", "datasets", "engine", "layout", "measure", "methods", "page", "proof",
        "tasks", "test_time"}


# ---- losses are held to shapes

LOSSES = [name for name in methods.names() if hasattr(methods.load(name).module, "loss")]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_names_the_tensor_that_has_a_wrong_shape(name):
    """Every tensor in turn gets one axis more, which would broadcast without a word."""
    loss = methods.load(name).module.loss
    assert hasattr(loss, "axes"), f"{name}: the loss is not held to shapes (ops.shapes)"
    sizes = {"B": 2, "T": 3, "S": 4, "N": 5, "V": 6, "K": 2}
    wanted = loss.axes
    for wrong in wanted:
        given = {argument: torch.ones([sizes[axis] for axis in axes.split()], dtype=torch.bool
                                      if argument.startswith((
                                          "mask", "good", "starts", "kept", "first", "given",
                                          "told"))
                                      else torch.float64)
                 for argument, axes in wanted.items()}
        given[wrong] = given[wrong][..., None].expand(*given[wrong].shape, 2)
        rest = {p.name: 1 for p in inspect.signature(loss).parameters.values()
                if p.name not in given and p.default is p.empty}
        with pytest.raises(MinipostError, match=rf"\.(loss|policy_gradient): {wrong} has shape"):
            loss(**given, **rest)


def test_an_advantage_per_token_is_no_advantage_per_answer():
    """(B, T) where (B,) is meant broadcast to (B, B, T) and gave a number."""
    from minipost.methods import grpo, reinforce

    x, mask = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)
    for loss in (lambda adv: grpo.loss(x, x, x, adv, mask, clip=0.2, beta=0.0, count=4),
                 lambda adv: reinforce.loss(x, adv, mask, count=4)):
        assert loss(torch.ones(2))[0].dim() == 0
        with pytest.raises(MinipostError,
                           match=r"adv has shape \(2, 2\); expected \(B\) with B = 2"):
            loss(torch.ones(2, 2))


# ---- names that have changed

@pytest.mark.parametrize("algo, old, new", [
    ("grpo", "group", "group_size"), ("oreo", "copies", "group_size"),
    ("reward", "answers", "group_size"),
    ("plackett-luce", "ranked", "group_size"), ("kto", "answers", "batch_size"),
    ("sft", "batch", "batch_size"), ("grpo", "minibatch", "minibatch_size"),
    ("dpo", "flip", "label_smoothing"), ("sft", "warmup", "warmup_steps"),
    ("sft", "decay", "weight_decay"),
])
def test_an_old_flag_works_and_says_its_new_name_once(capsys, algo, old, new):
    value = "0.25" if old in ("flip", "decay") else "6"
    for argument in ([f"--{old}", value], [f"--{old}={value}"]):
        config = train.settings_of(["--algo", algo, *argument]).config
        assert getattr(config, new) == float(value)
        said = capsys.readouterr().err
        assert said == f"--{old} is now --{new.replace('_', '-')}\n"
    config_value = getattr(config, new)
    assert getattr(options.rebuild(type(config), {old: config_value}), new) == config_value
    train.settings_of(["--algo", algo, f"--{new.replace('_', '-')}", value])
    assert capsys.readouterr().err == ""


def test_old_options_of_every_run_work_too(capsys):
    given = train.settings_of(["--algo", "sft", "--room", "40", "--micro", "3"]).options
    assert (given.max_new_tokens, given.micro_batch_size) == (40, 3)
    assert capsys.readouterr().err.splitlines() == [
        "--room is now --max-new-tokens", "--micro is now --micro-batch-size"]
