"""Runs on chats: every method that reads a file learns from rows of messages."""

import io
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from minipost import checkpoint, doctor, evaluate, files, solve, train
from minipost.chat import Messages, Template
from minipost.datasets.chats import ROLES, conversation, in_chat
from minipost.datasets.rows import File, Row, read
from minipost.errors import MinipostError
from minipost.opening import as_asked
from minipost.tasks.arithmetic import Arithmetic
from minipost.tokenizer import Tokenizer
from tests.conftest import TEXTS, tiny_model
from tests.test_chat import TEMPLATES, TOOLS

USER, SAID, OTHER = (lambda k: {"role": "user", "content": f"{k}+5=?"},
                     lambda k: {"role": "assistant", "content": f" {k + 5}"},
                     lambda k: {"role": "assistant", "content": " no"})
KINDS = {
    "messages": lambda k: {"messages": [USER(k), SAID(k), USER(k + 1), SAID(k + 1)]},
    "prompt": lambda k: {"prompt": [USER(k)], "completion": [SAID(k)]},
    "pair": lambda k: {"prompt": [USER(k)], "chosen": [SAID(k)], "rejected": [OTHER(k)]},
    "whole pair": lambda k: {"chosen": [USER(k), SAID(k)], "rejected": [USER(k), OTHER(k)]},
    "label": lambda k: {"prompt": [USER(k)], "completion": [SAID(k)], "label": k % 2 == 0},
    "reward": lambda k: {"prompt": [USER(k)], "completion": [SAID(k)], "reward": k % 2},
    "sharegpt": lambda k: {"conversations": [{"from": "human", "value": f"{k}+5=?"},
                                             {"from": "gpt", "value": f" {k + 5}"}]},
    "plain": lambda k: {"prompt": f"{k}+5=?", "completion": f" {k + 5}"},
}


def write(path, kind, n=40):
    path.write_text("".join(json.dumps(KINDS[kind](k)) + "\n" for k in range(n)))
    return str(path)


@pytest.fixture(scope="session")
def chatty(tmp_path_factory):
    """A tiny model with ChatML whose turns end in a token that it does not state as EOS."""
    directory = tmp_path_factory.mktemp("chatty")
    words = Tokenizer.train(TEXTS, 280)
    words.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    size = words.backend.get_vocab_size()
    checkpoint.create(directory, tiny_model(context=96, vocab=size), Tokenizer(words.backend))
    (directory / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    return directory


@pytest.fixture
def go(chatty, tmp_path):
    """go(algo, kind, *flags) -> the Run's exit code, on a file of this kind."""
    def run(algo, kind, *flags):
        data = write(tmp_path / "rows.jsonl", kind)
        return train.main(["--algo", algo, "--model", str(chatty), "--data", data, "--out",
                           str(tmp_path / "run"), "--workers", "1", "--max-new-tokens", "4",
                           "--eval-n", "3", "--show", "1", "--overwrite", "--steps", "1",
                           *map(str, flags)])
    return run


READERS = [("sft", "messages"), ("sft", "prompt"), ("sft", "sharegpt"), ("sft", "plain"),
           ("dpo", "pair"), ("dpo", "whole pair"), ("ipo", "pair"), ("simpo", "pair"),
           ("orpo", "pair"), ("mdpo", "prompt"), ("plackett_luce", "pair"), ("reward", "pair"),
           ("rlaif", "prompt"), ("kto", "pair"), ("kto", "label"), ("oreo", "reward"),
           ("oreo", "label"), ("rft", "reward"), ("grpo", "prompt"), ("grpo", "messages"),
           ("ppo", "prompt"), ("rloo", "sharegpt"), ("dapo", "prompt"), ("trpo", "prompt"),
           ("reinforce_pp", "prompt"), ("distill", "prompt")]


@pytest.mark.parametrize("algo, kind", READERS)
def test_every_method_that_reads_rows_learns_from_messages(go, chatty, algo, kind, capsys,
                                                           tmp_path):
    (tmp_path / "r.py").write_text("def f(completions, **columns):\n    return [float("
                                   "len(said[0]['content'])) for said in completions]\n")
    names = {"plackett_luce": "plackett-luce", "reinforce_pp": "reinforce-pp"}
    flags = ["--chat"] if kind == "plain" else ["--teacher", chatty] if algo == "distill" else \
        ["--sft-steps", 1, "--reward-steps", 1] if algo == "rlaif" else \
        ["--reward", f"{tmp_path}/r.py:f"] if algo == "mdpo" else []
    code = go(names.get(algo, algo), kind, *flags)
    assert code == 0, capsys.readouterr()


def load(chatty, path, *, chat=False):
    """A file as a run has it: (File in the model's chats, Vocabulary)."""
    _, words = checkpoint.load(chatty)
    return as_asked(File(str(path)), words, chat), words


def test_each_turn_of_the_assistant_is_learnt_and_nothing_else(go, chatty, tmp_path, spy):
    from minipost.run import Run

    calls = spy(Run, "encode")
    assert go("sft", "messages", "--batch-size", 8) == 0
    _, words = checkpoint.load(chatty)
    batch = next(found for given, found in calls if len(found) == 8)
    for row, mask in zip(batch.targets, batch.mask):
        text = words.tokenizer.decode(row[mask].tolist(), {})
        assert re.fullmatch(r" \d+<\|im_end\|> \d+<\|im_end\|>", text)


def test_a_chat_is_its_rendering_with_control_tokens(chatty, tmp_path):
    """Equal to strings that spell the template out, read as tokens: ids and masks."""
    task, words = load(chatty, write(tmp_path / "a.jsonl", "prompt"))
    for problem in task.training()[:5]:
        before, after, learnt = words.conversation(problem.prompt, problem.columns["completion"])
        text = f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert before == words.tokenizer.encode(text, control=True)
        assert after == words.response(str(problem.columns["completion"])) and all(learnt)
        assert words.end == words.tokenizer.id("<|im_end|>")


def test_plain_rows_in_chat_are_the_chats_they_would_be(chatty, tmp_path):
    plain, words = load(chatty, write(tmp_path / "a.jsonl", "plain"), chat=True)
    chats, _ = load(chatty, write(tmp_path / "b.jsonl", "prompt"))
    assert plain.sides == chats.sides                       # the same held out, as strings
    for a, b in zip(plain.training(), chats.training()):
        assert words.conversation(a.prompt, a.columns["completion"]) == words.conversation(
            b.prompt, b.columns["completion"])
        assert b.prompt.given and not a.prompt.given
    again = plain.fitted(("completion",), None)
    assert all(isinstance(p.prompt, Messages) for p in again.training())


def test_the_end_of_a_turn_and_the_template_travel_with_the_model(go, chatty, tmp_path):
    assert go("sft", "prompt") == 0
    saved = tmp_path / "run" / "model"
    ids = files.read_json(saved / "generation_config.json")
    _, words = checkpoint.load(chatty)
    end = words.tokenizer.id("<|im_end|>")
    before = files.read_json(chatty / "generation_config.json")
    assert ids == {**before, "eos_token_id": [before["eos_token_id"], end]}
    assert (saved / "chat_template.jinja").read_text() == TEMPLATES["chatml"]
    assert end in checkpoint.load(saved)[1].eos and end not in words.eos
    assert go("sft", "plain") == 0                          # no chat: nothing is added
    assert files.read_json(saved / "generation_config.json") == before


def test_sampling_ends_at_the_end_of_a_turn(go, chatty, spy):
    from minipost.run import Run

    calls = spy(Run, "complete")
    assert go("grpo", "prompt", "--max-new-tokens", 40, "--group-size", 8) == 0
    end = checkpoint.load(chatty)[1].tokenizer.id("<|im_end|>")
    stopped = 0
    for _, found in calls:
        for row, mask, done in zip(found.targets, found.mask, found.finished.tolist()):
            ids = row[mask].tolist()
            assert end not in ids[:-1] and (done or ids[-1] != end)
            stopped += ids[-1] == end
    assert stopped


REWARD = """
SEEN = []
def f(prompts, completions, **columns):
    SEEN.append((prompts, completions, columns))
    assert all(set(map(type, (p, c))) == {KIND} for p, c in zip(prompts, completions))
    if KIND is list:
        assert prompts[0][-1]["role"] == "user" and completions[0][0]["role"] == "assistant"
        assert columns["completion"][0][0]["content"].startswith(" ")
        return [float(len(c[0]["content"])) for c in completions]
    assert all(type(text) is str for text in columns["completion"])
    return [float(len(c)) for c in completions]
"""


@pytest.mark.parametrize("kind, type_, flags", [
    ("prompt", "list", []), ("plain", "str", ["--chat"]), ("plain", "str", [])])
def test_a_reward_function_reads_what_the_row_holds(go, tmp_path, kind, type_, flags, capsys):
    """Messages as messages, as TRL gives them; strings as strings, also in chat."""
    path = tmp_path / "pay.py"
    path.write_text(f"KIND = {type_}\n{REWARD}")
    assert go("grpo", kind, "--reward", f"{path}:f", *flags) == 0, capsys.readouterr()


def test_a_template_that_is_not_used_is_said(go, capsys):
    line = "the model has a chat template, and prompts that are strings are used as they are"
    assert go("sft", "plain") == 0 and line in capsys.readouterr().out
    assert go("sft", "plain", "--chat") == 0 and line not in capsys.readouterr().out
    assert go("sft", "prompt") == 0 and line not in capsys.readouterr().out


def test_a_model_without_a_template_is_told(tiny, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", "prompt")
    for flags in (["--data", data], ["--task", "arithmetic", "--chat"]):
        assert train.main(["--algo", "sft", "--model", str(tiny), "--out", str(tmp_path / "run"),
                           "--workers", "1", *flags]) == 1
        assert "need a chat template, and this model has none" in capsys.readouterr().err


# ---- forms of rows

def row(columns):
    return Row(columns, "x.jsonl", 7)


def test_forms_that_say_the_same_are_the_same():
    want = conversation(row(KINDS["prompt"](3)))
    for kind in ("sharegpt",):
        found = conversation(row(KINDS[kind](3)))
        assert (found["prompt"].turns, found["completion"].turns) == (
            want["prompt"].turns, want["completion"].turns)
    pair, whole = (conversation(row(KINDS[kind](3))) for kind in ("pair", "whole pair"))
    for key in ("prompt", "chosen", "rejected"):
        assert pair[key].turns == whole[key].turns
    ultra = conversation(row({**KINDS["whole pair"](3), "prompt": "3+5=?",
                              "messages": [USER(3), SAID(3)]}))
    assert ultra["prompt"].turns == [USER(3)] and ultra["chosen"].turns == [SAID(3)]
    half = conversation(row({"prompt": [USER(3)], "chosen": " 8", "rejected": " no"}))
    assert half["chosen"].turns == pair["chosen"].turns
    late = conversation(row({"chosen": [USER(3), SAID(3), SAID(4)],
                             "rejected": [USER(3), SAID(3), OTHER(3)]}))
    assert late["prompt"].turns == [USER(3)] and late["chosen"].turns == [SAID(3), SAID(4)]
    share = conversation(row({"conversations": [{"from": "human", "value": "3+5=?"}],
                              "chosen": {"from": "gpt", "value": " 8"},
                              "rejected": {"from": "gpt", "value": " no"}}))
    assert share["rejected"].turns == [OTHER(3)] and share["prompt"].turns == [USER(3)]


def test_a_conversation_is_divided_before_the_first_turn_of_the_assistant():
    turns = [{"role": "system", "content": "s"}, USER(1), SAID(1), USER(2), SAID(2), USER(3)]
    found = conversation(row({"messages": turns}))
    assert found["prompt"].turns == turns[:2] and found["completion"].turns == turns[2:5]
    assert conversation(row({"messages": turns[:2]})).get("completion") is None
    tools = conversation(row({"messages": turns, "tools": json.dumps(TOOLS),
                              "chat_template_kwargs": {"enable_thinking": False}}))
    assert tools["prompt"].tools == TOOLS
    assert tools["prompt"].options == {"enable_thinking": False}
    spare = {**USER(1), "tool_calls": None}                 # as Arrow fills what a row lacks
    assert conversation(row({"messages": [spare, SAID(1)]}))["prompt"].turns == [USER(1)]
    plain = row({"prompt": "a", "completion": "b", "messages": [USER(1)]})
    assert conversation(plain) is plain


@pytest.mark.parametrize("columns, said", [
    ({"messages": [SAID(1), USER(1)]}, "assistant speaks first"),
    ({"prompt": [USER(1), SAID(1)], "completion": [SAID(1)]}, "prompt ends with a message of the"),
    ({"prompt": [USER(1)], "completion": [USER(1)]}, "under 'completion' begin or end with"),
    ({"completion": [SAID(1)]}, "under 'completion' has no prompt"),
    ({"messages": [{"content": "x"}]}, "message 1 under 'messages' has no role"),
    ({"messages": [{"role": "User", "content": "x"}]}, "has the role 'User'; expected 'user'"),
    ({"prompt": [USER(1)], "completion": [{"role": "gpt", "content": "x"}]},
     "message 1 under 'completion' has the role 'gpt'; expected 'assistant'"),
    ({"messages": [{"role": "usr", "content": "x"}]},
     "has the role 'usr'; expected system, developer, user, assistant, tool or another"),
    ({"messages": [USER(1), "x"]}, "message 2 under 'messages' is no object"),
    ({"messages": [USER(1), {"role": "assistant", "content": ""}]}, "is an empty answer"),
    ({"messages": [{"role": "user", "content": 5}]}, "has '5' under 'content'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "is no text"),
    ({"conversations": [{"from": "Ann", "value": "x"}]}, "is from 'Ann'; expected human, gpt"),
    ({"chosen": [USER(1), SAID(1)], "rejected": [USER(2), OTHER(1)]}, "do not part at an answer"),
    ({"chosen": [USER(1), SAID(1)], "rejected": [USER(1)]}, "do not part at an answer"),
    ({"messages": [USER(1)], "tools": "{"}, "'tools' is a string that is no JSON"),
    ({"messages": [USER(1)], "tools": [1]}, "expected a list of objects under 'tools'"),
    ({"messages": [USER(1)], "chat_template_kwargs": 3}, "expected an object under 'chat_templ"),
    ({"messages": [USER(1)], "chat_template_kwargs": {"tools": 3}}, "names 'tools'"),
    ({"prompt": [{"role": "user", "content": json.loads("[" * 90 + "]" * 90)}]}, "in each other"),
])
def test_what_is_wrong_with_a_chat_is_said(tmp_path, columns, said):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(columns) + "\n") * 3)
    with pytest.raises(MinipostError, match=re.escape(f"{path}, line 1: ")) as caught:
        read(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("role", ROLES)
def test_roles_that_templates_know_are_kept(tmp_path, role):
    turns = [USER(1), {"role": role, "content": "x"}, USER(2), SAID(1)]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    row, = read(str(path))[0]
    assert [*row["prompt"].turns, *row["completion"].turns] == turns


def test_rows_of_two_kinds_do_not_mix(tmp_path):
    path = tmp_path / "rows.jsonl"
    chats, plain = ([json.dumps(KINDS[kind](k)) for k in range(9)] for kind in ("prompt", "plain"))
    path.write_text("\n".join([*chats, plain[0]]))
    with pytest.raises(MinipostError, match="line 10: expected messages, as most rows hold"):
        read(str(path))
    assert len(read(str(path), skip=True)[0]) == 9
    path.write_text("\n".join([*plain, chats[0]]))
    with pytest.raises(MinipostError, match="line 10: the row holds messages, which most rows do"):
        read(str(path))
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join(plain))
    path.write_text("\n".join(chats))
    with pytest.raises(MinipostError, match="one are messages and the others strings"):
        File(str(path), str(test))


def test_a_row_that_the_template_refuses_is_a_bad_row(chatty, tmp_path, go, capsys):
    (tmp_path / "model").mkdir()
    for file in chatty.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% if '13' in messages[0].content %}{{ raise_exception('no 13') }}{% endif %}"
        + TEMPLATES["chatml"])
    assert go("sft", "prompt", "--model", tmp_path / "model") == 1
    error = capsys.readouterr().err
    assert "rows.jsonl, line 14: " in error and "chat template says: no 13" in error
    assert go("sft", "prompt", "--model", tmp_path / "model", "--on-bad-row", "skip") == 0
    assert "skipped 1 of 40 rows" in capsys.readouterr().out


@pytest.mark.parametrize("how, count", [("tokens", 4), ("plain", 3)])
def test_the_user_says_what_a_control_token_in_a_message_is(go, tmp_path, spy, how, count, chatty,
                                                            monkeypatch, capsys):
    from minipost.run import Run

    monkeypatch.setitem(KINDS, "spelt", lambda k: {
        "prompt": [{"role": "user", "content": f"<|im_start|>{k}"}], "completion": [SAID(k)]})
    assert go("sft", "spelt") == 1 and "say --control-tokens tokens" in capsys.readouterr().err
    calls = spy(Run, "encode")
    assert go("sft", "spelt", "--control-tokens", how, "--batch-size", 4) == 0
    words = checkpoint.load(chatty)[1]
    ids = [words.tokenizer.id(token) for token in ("<|im_start|>", "<|im_end|>")]
    for row in next(found for _, found in calls if len(found) == 4).tokens.tolist():
        assert sum(row.count(i) for i in ids) == count + 1


# ---- tasks, the doctor and other commands

def test_tasks_in_chat_ask_the_same_in_messages(chatty):
    task = in_chat(Arithmetic(terms=2))
    assert isinstance(task.heldout(1)[0].prompt, Messages)
    assert task.heldout(3) == Arithmetic(terms=2).heldout(3)
    assert task == Arithmetic(terms=2) and type(Arithmetic(terms=2).heldout(1)[0].prompt) is str


def test_the_other_forms_of_a_task_in_chat_are_messages_too():
    """The teacher of SDPO and the hints of STaR read them where the policy reads the problem."""
    plain, task = Arithmetic(terms=2), in_chat(Arithmetic(terms=2))
    one = plain.pose("4+5")
    other = replace(one, prompt=Messages.by("user", one.prompt))
    draft, fault = "4+5=8\nAnswer: 8", "4+5=9 no"
    for name, given in (("hint", ()), ("critique", (draft,)), ("revise", (draft, fault))):
        asked = getattr(task, name)(other, *given)
        assert type(asked) is Messages and asked.first == getattr(plain, name)(one, *given)


def test_evaluate_asks_in_chat(chatty, capsys):
    flags = ["--model", str(chatty), "--task", "arithmetic", "--terms", "2", "--n", "3",
             "--max-new-tokens", "4", "--workers", "1"]
    assert evaluate.main([*flags, "--chat"]) == 0
    assert "held-out" in capsys.readouterr().out


def test_the_doctor_shows_the_masks(chatty, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", "messages")
    flags = ["--model", str(chatty), "--max-new-tokens", "4", "--json"]
    doctor.main(["--data", data, *flags])
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    said = found["assistant turns"]
    turns, rows, ended = map(int, re.search(r"(\d+) turns in (\d+) rows, of which (\d+) end",
                                            said["what"]).groups())
    assert said["status"] == "ok" and turns == ended == 2 * rows > 0
    assert re.search(r"assistant\\n\[\[ \d<\|im_end\|>\]\]", said["what"])
    assert "<|im_start|>" in said["what"]
    assert found["chat template"]["status"] == "ok"
    assert found["EOS in the loss"]["status"] == "ok"
    assert "as the chat template ends a turn" in found["EOS in the files"]["what"]
    data = write(tmp_path / "plain.jsonl", "plain")
    doctor.main(["--data", data, *flags])
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert found["chat template"]["status"] == "warning" and "--chat" in found["chat template"][
        "todo"]
    assert "end by themselves" in found["empty answers"]["what"]


# ---- a question

@pytest.fixture
def echo(monkeypatch):
    """Models answer with the end of what they read last, and then end their turn."""
    from minipost import rollout

    seen = []

    def generate(model, prompts, *, max_new_tokens, eos, pad, **options):
        seen.append((prompts, max_new_tokens, eos, options))
        ids = prompts[0]
        found = rollout.pack(prompts, [[ids[-6], max(eos)]], pad)
        return rollout.Rollout(found.tokens, found.mask, found.mask.float(), torch.tensor([0]),
                               torch.tensor([True]))
    monkeypatch.setattr(rollout, "generate", generate)
    return seen


def test_solve_answers_a_question(chatty, echo, capsys):
    words = checkpoint.load(chatty)[1]
    flags = ["--chat", "--model", str(chatty), "--device", "cpu"]
    assert solve.main([*flags, "--problem", "a12"]) == 0
    (ids,), room, eos, options = echo[0]
    assert words.tokenizer.decode(ids, {}) == "<|im_start|>user\na12<|im_end|>\n" \
        "<|im_start|>assistant\n"
    assert room == 96 - len(ids) and words.tokenizer.id("<|im_end|>") in eos
    assert options["temperature"] == 0.0
    out = capsys.readouterr().out
    assert out.strip() and "im_end" not in out


def test_solve_talks_by_lines(chatty, echo, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n\n<|im_end|>\n"))
    assert solve.main(["--chat", "--model", str(chatty), "--json", "--system", "s", "--device",
                       "cpu"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["problem"] for each in said] == ["x", "<|im_end|>"]
    words = checkpoint.load(chatty)[1]
    (ids,), *_ = echo[1]
    text = words.tokenizer.decode(ids, {})
    assert text.startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
                           f"<|im_start|>assistant\n{said[0]['answer']}<|im_end|>")
    assert ids.count(words.tokenizer.id("<|im_end|>")) == 4  # and none of what was typed


@pytest.mark.parametrize("flags, said", [
    (["--problem", "a" * 99], "leaves no room for an answer"),
    (["--task", "arithmetic"], "answers a question, not a task"),
    (["--model", "checkpoints/base"], "chat template")])
def test_what_solve_refuses(chatty, flags, said, capsys):
    assert solve.main(["--chat", "--model", str(chatty), "--device", "cpu", *flags]) != 0
    assert said in capsys.readouterr().err


# ---- --chat-template

@pytest.fixture
def own(tmp_path):
    """A file of a template that differs from the model's."""
    path = tmp_path / "own.jinja"
    path.write_text(TEMPLATES["chatml"].replace("<|im_start|>", "<|im_start|>Mr "))
    return path


@pytest.mark.parametrize("bare", [True, False])
def test_a_template_of_ones_own_is_used_and_saved(go, chatty, own, tmp_path, bare):
    """In place of the model's, or where the model has none."""
    model = tmp_path / "model"
    shutil.copytree(chatty, model)
    if bare:
        (model / "chat_template.jinja").unlink()
        assert go("sft", "messages", "--model", model) == 1
    assert go("sft", "messages", "--model", model, "--chat-template", own) == 0
    saved = tmp_path / "run" / "model"
    assert (saved / "chat_template.jinja").read_text() == own.read_text()
    vocabulary = checkpoint.load(saved)[1]
    assert "<|im_start|>Mr user" in vocabulary.chat.asked(Messages([USER(1)]))
    assert (model / "chat_template.jinja").exists() != bare


def test_a_changed_template_is_no_resume(go, own, tmp_path, capsys):
    assert go("sft", "messages", "--chat-template", own) == 0
    resume = ["--resume", str(tmp_path / "run"), "--steps", "2"]
    assert train.main(resume) == 0
    own.write_text(own.read_text() + " ")
    capsys.readouterr()
    assert train.main([*resume[:-1], "3"]) == 1
    assert "own.jinja has changed since" in capsys.readouterr().err


def test_every_command_takes_it(chatty, own, tmp_path, capsys, monkeypatch):
    used, asked = [], Template.asked
    monkeypatch.setattr(Template, "asked", lambda self, *rest: used.append(self.place) or asked(
        self, *rest))
    data = write(tmp_path / "rows.jsonl", "prompt")
    flags = ["--model", str(chatty), "--chat-template", str(own), "--max-new-tokens", "4"]
    assert solve.main(["--chat", *flags, "--problem", "1+5=?"]) == 0
    assert {*used} == {own} and not used.clear()
    assert evaluate.main(["--data", data, "--n", "3", "--workers", "1", *flags]) == 0
    assert {*used} == {own} and not used.clear()
    doctor.main(["--data", data, *flags])
    assert {*used} == {own}
    capsys.readouterr()
    for path, said in ((tmp_path / "nowhere", "nowhere"), (tmp_path, str(tmp_path))):
        assert doctor.main(["--data", data, *flags, "--chat-template", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1
