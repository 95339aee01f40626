"""Chats: what a template renders, which tokens are learnt, and what may be a control token.

templates/ holds small templates of ours in the shapes that public models have.
"""

import copy
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from minipost import files
from minipost.chat import Messages, Template, marked
from minipost.errors import MinipostError
from minipost.layout.vocabulary_file import read_vocabulary
from minipost.tokenizer import Tokenizer, Vocabulary
from tests import foreign

TEMPLATES = {path.stem: path.read_text() for path in
             sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
TAGS = {"chatml": ["<|im_start|>", "<|im_end|>"], "qwen_tools": ["<|im_start|>", "<|im_end|>"],
        "smollm": ["<|im_start|>", "<|im_end|>"], "generation": ["<|im_start|>", "<|im_end|>"],
        "llama2": [], "mistral": ["[INST]", "[/INST]"],
        "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "zephyr": ["<|user|>", "<|system|>", "<|assistant|>"],
        "gemma": ["<start_of_turn>", "<end_of_turn>"],
        "phi": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]}
BACKENDS = {"llama2": foreign.old_llama, "mistral": lambda: foreign.metaspace("first"),
            "zephyr": foreign.old_llama, "gemma": lambda: foreign.metaspace("never"),
            "phi": foreign.old_llama, "llama3": foreign.llama3}
ENDS = {"llama2": "</s>", "mistral": "</s>", "llama3": "<|eot_id|>", "zephyr": "</s>",
        "gemma": "<end_of_turn>", "phi": "<|end|>"}
ASKED = [{"role": "user", "content": "What is 7+5? Say it."}]
SAID = [{"role": "assistant", "content": "7+5=12  two"}]
LONG = [*ASKED, *SAID, {"role": "user", "content": " and 12?\n"},
        {"role": "assistant", "content": "the answer is é12"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b & 'c'",
                                           "parameters": {"type": "object"}}}]
CALLS = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 7, "b": 5}}}]},
    {"role": "tool", "content": "12"}, {"role": "assistant", "content": "12"}]


def directory_of(name, folder, **said):
    """The directory of a model's tokenizer with the template of this name."""
    backend = BACKENDS.get(name, foreign.bytelevel)()
    backend.add_special_tokens([AddedToken(tag, normalized=False, rstrip=name == "phi")
                                for tag in TAGS[name]])
    backend.add_tokens(["<think>", "</think>"])             # as in Qwen3: tokens, and no control
    foreign.write(folder, backend, vocab_size=backend.get_vocab_size(), **said)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    return folder


def vocabulary_of(folder):
    raw = files.read_json(folder / "config.json")
    found = read_vocabulary(folder, raw, raw["vocab_size"])
    found.begin_chat()
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: directory_of(name, tmp_path_factory.mktemp(name)) for name in TEMPLATES}


@pytest.fixture(scope="module")
def known(folders):
    return {name: vocabulary_of(folder) for name, folder in folders.items()}


def split(turns):
    """Prompt and answer of a conversation, in Messages."""
    first = next(k for k, turn in enumerate(turns) if turn["role"] == "assistant")
    return turns[:first], turns[first:]


def learnt_text(words, ids, learnt):
    """The stretches of text that are learnt."""
    found, stretch = [], []
    for i, yes in [*zip(ids, learnt), (None, False)]:
        if yes:
            stretch.append(i)
        elif stretch:
            found.append(words.tokenizer.decode(stretch, {}))
            stretch = []
    return found


# ---- equal to transformers

@pytest.fixture(scope="module")
def peers(folders):
    transformers = pytest.importorskip(
        "transformers", reason="the extra 'interop' installs transformers, which this compares "
                               "with")
    return {name: transformers.AutoTokenizer.from_pretrained(folder)
            for name, folder in folders.items()}


WAYS = {"one turn": (LONG[:2], {}), "turns": (LONG, {}), "system": ([*SYSTEM, *LONG], {}),
        "tools": (CALLS, {"tools": TOOLS}), "no thinking": (LONG[:2], {"enable_thinking": False}),
        "thinking": ([*LONG[:3], {**LONG[3], "reasoning_content": "12, 12"}], {})}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(peers, known, name, way):
    turns, more = WAYS[way]
    if way == "tools" and name != "qwen_tools":
        pytest.skip("only a template with tools shows them")
    tools, options = more.get("tools"), {k: v for k, v in more.items() if k != "tools"}
    prompt, answer = split(turns)
    words, how = known[name], dict(tokenize=True, return_dict=True, **more)
    ask = Messages(prompt, tools, options)
    assert words.prompt(ask) == peers[name].apply_chat_template(
        prompt, add_generation_prompt=True, **how)["input_ids"]
    if way == "no thinking" and name == "qwen_tools":
        return                                              # see the test of refusals
    whole = peers[name].apply_chat_template(turns, **how)["input_ids"]
    before, after, learnt = words.conversation(ask, Messages(answer))
    assert before + after == whole[: len(before + after)]
    rest = words.tokenizer.decode(whole[len(before + after):], {})
    assert not rest.replace("</s>", "").strip()             # nothing that anybody says
    assert before == words.prompt(ask)[: len(before)]       # the policy is asked as it is taught
    said = [turn for turn in answer if turn["role"] == "assistant"]
    parts = learnt_text(words, after, learnt)
    assert len(parts) == len(said)
    for part, turn in zip(parts, said):
        assert turn["content"].strip() in part and part.endswith(ENDS.get(name, "<|im_end|>"))
        assert "and 12" not in part and "user" not in part


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("turns", [LONG, [*SYSTEM, *LONG]])
def test_generation_blocks_give_the_masks_of_transformers(peers, known, turns):
    found = peers["generation"].apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    prompt, answer = split(turns)
    before, after, learnt = known["generation"].conversation(Messages(prompt), Messages(answer))
    mask = [0] * len(before) + [int(yes) for yes in learnt]
    assert mask == found["assistant_masks"][: len(mask)] and sum(mask) == sum(
        found["assistant_masks"])
    plain = known["chatml"].conversation(Messages(prompt), Messages(answer))
    assert plain[2] == learnt                               # both ways to tell give one mask


# ---- what is learnt, and what ends it

def test_the_template_says_what_ends_a_turn(known):
    for name, words in known.items():
        end = words.tokenizer.id(ENDS.get(name, "<|im_end|>"))
        assert words.end == end and end in words.eos and 2 in words.eos
        assert words.response("x")[-1] == end


def test_of_several_eos_ids_the_one_that_the_tokenizer_names_is_written(tmp_path):
    folder = foreign.write(tmp_path, foreign.llama3())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    raw = files.read_json(folder / "config.json")
    words = read_vocabulary(folder, raw, 400)
    assert words.response("x")[-1] == 2 and words.eos == {1, 2}
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    assert read_vocabulary(folder, raw, 400).response("x")[-1] == 2  # the first


def test_turns_of_the_prompt_are_not_learnt(known):
    before, after, learnt = known["chatml"].conversation(Messages(LONG[:3]), Messages(LONG[3:]))
    assert all(learnt) and learnt_text(known["chatml"], after, learnt) == [
        LONG[3]["content"] + "<|im_end|>"]
    generated = known["generation"].conversation(Messages(LONG[:3]), Messages(LONG[3:]))
    assert generated[1:] == (after, learnt)


def test_a_template_without_an_end_gets_the_models_eos(known):
    words = copy.copy(known["chatml"])
    words.template = Template({"default": "{% for m in messages %}{{ m.role + ': ' + m.content + "
                                          "'\\n' }}{% endfor %}{% if add_generation_prompt %}"
                                          "{{ 'assistant: ' }}{% endif %}"}, {}, "here")
    words.end = min(words.stated)
    words.begin_chat()
    assert words.ending == "" and words.end == 2
    before, after, learnt = words.conversation(Messages(LONG[:1]), Messages(LONG[1:]))
    assert after[-1] == 2 and learnt[-1]
    assert [text.strip() for text in learnt_text(words, after, learnt)] == [
        "7+5=12  two", "the answer is é12</s>"]


def test_a_turn_that_is_asked_for_in_another_way_is_refused(known):
    ask = Messages(LONG[:1], options={"enable_thinking": False})
    with pytest.raises(MinipostError, match="message 2 of 2 in another way.*generation. blocks"):
        known["qwen_tools"].conversation(ask, Messages(LONG[1:2]))


def test_a_template_that_refuses_says_why(known):
    with pytest.raises(MinipostError, match=r"chat_template.jinja: .* must take turns"):
        known["llama2"].prompt(Messages(LONG[1:3]))
    with pytest.raises(MinipostError, match="needs? a chat template, and this model has none"):
        Vocabulary(known["llama2"].tokenizer, [], [2], 0).begin_chat()


@pytest.mark.parametrize("source, said", [
    ("{% if %}", "chat template says"), ("{{ 1 / 0 }}", "division by zero"),
    ("{{ messages.__class__.__mro__ }}", "unsafe|access"), ("{{ messages.append(1) }}", "unsafe"),
    ("{% set n = namespace(__x=1) %}", "cannot hold"), ("{{ messages[0] + 1 }}", "says")])
def test_a_template_can_do_no_harm(source, said):
    with pytest.raises(MinipostError, match=said):
        Template({"default": source}, {}, "here").render(ASKED)


def test_without_jinja2_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MinipostError, match="needs jinja2, which is not installed; pip install"):
        Template({"default": "x"}, {}, "here").render(ASKED)


# ---- control tokens in what people write

SPELLINGS = ["<|im_end|>", "<|im_start|>assistant\n", "</s>", "<|im_", "im_end|>", "<s>", "x", " "]


@given(st.lists(st.sampled_from(SPELLINGS), max_size=5).map("".join),
       st.lists(st.sampled_from(SPELLINGS), max_size=5).map("".join))
def test_no_text_of_a_message_becomes_a_control_token(known, asked, said):
    for name in ("chatml", "generation", "zephyr", "qwen_tools"):
        words, plain = known[name], "1" + re.sub(r"[<>|/]", "1", asked)
        control = words.tokenizer.control
        turns = [{"role": "user", "content": "1" + asked}]
        answer = [{"role": "assistant", "content": "1" + said + "1"}]
        count = sum(i in control for i in words.prompt(Messages([{**turns[0], "content": plain}])))
        ids = words.prompt(Messages(turns))
        assert sum(i in control for i in ids) == count
        assert "1" + asked in words.tokenizer.decode(ids, {})
        before, after, learnt = words.conversation(Messages(turns), Messages(answer))
        part, = learnt_text(words, after, learnt)
        assert part == "1" + said + "1" + ENDS.get(name, "<|im_end|>")
        assert before == ids and sum(i in control for i in after) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_in_pieces_has_the_tokens_of_the_text_in_one(known, name):
    """A text with a mark is read piece by piece; without its effect the ids are the same."""
    words = known[name].tokenizer
    for text in (known[name].template.render([*SYSTEM, *LONG])[0], "a</s>b</s> c<s>d</s>"):
        ids, places = words.places(text)
        pieces, others = words.places("\ue001" + text, "\ue001")
        assert pieces == ids
        assert [end - 1 for _, end in others] == [end for _, end in places]


def test_control_tokens_are_written_where_the_user_asks(known):
    words = known["chatml"]
    turns = Messages([{"role": "user", "content": "a <|im_start|> b"}])
    start = words.tokenizer.id("<|im_start|>")
    assert words.prompt(turns).count(start) == 2
    assert words.prompt(turns, control=True).count(start) == 3


def test_what_a_model_says_behind_a_prompt_is_plain(known):
    words = known["chatml"]
    ids = words.prompt(Messages(ASKED) + "a <|im_end|>" + " b")
    assert words.prompt(Messages(ASKED)) == ids[: -len(words.response("a <|im_end|> b")) + 1]
    assert ids.count(words.end) == 1


def test_marks_differ_from_what_the_texts_hold():
    parts, mark = marked([Messages([{"role": "user", "content": "\ue000<s>"}])], ["<s>"])
    assert mark == "\ue001" and parts[0].turns[0]["content"] == "\ue000<\ue001s>"
    assert marked([Messages(ASKED)], ["<s>"]) == ([Messages(ASKED)], "")


# ---- messages as texts

def test_messages_are_texts_that_differ_where_their_rendering_may():
    one = Messages(ASKED)
    assert one == ASKED[0]["content"] and Messages.by("user", str(one)) == one
    assert Messages(LONG).first == ASKED[0]["content"]
    others = [one, Messages(ASKED, TOOLS), Messages(ASKED, None, {"enable_thinking": False}),
              Messages([*SYSTEM, *ASKED]), Messages(ASKED) + "x",
              Messages([{**ASKED[0], "name": "Ann"}])]
    assert len(set(others)) == len(others)
    parts = Messages([{"role": "user", "content": [{"type": "text", "text": "a"},
                                                   {"type": "text", "text": "b"}]}])
    assert parts == "ab"
    for again in (copy.deepcopy(others[1] + "y"), pickle.loads(pickle.dumps(others[1] + "y"))):
        assert again == others[1] + "y" and again.tools == TOOLS and again.more == "y"


# ---- the files of a model

def test_a_template_stands_in_either_file(tmp_path):
    folder = directory_of("chatml", tmp_path)
    (folder / "chat_template.jinja").unlink()
    raw, side = files.read_json(folder / "config.json"), folder / "tokenizer_config.json"

    def read(template):
        side.write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>",
                                    "chat_template": template}))
        return read_vocabulary(folder, raw, raw["vocab_size"]).template

    assert read(None) is None
    assert read("{{ eos_token }}").render(ASKED)[0] == "</s>"
    named = read([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    assert named.render(ASKED)[0] == "a" and named.render(ASKED, TOOLS)[0] == "b"
    for wrong in (3, [{"name": "tool_use", "template": "b"}], {"default": 1}):
        with pytest.raises(MinipostError, match="expected a text under 'chat_template'"):
            read(wrong)
    (folder / "chat_template.jinja").write_text("c")
    assert read("{{ eos_token }}").render(ASKED)[0] == "c"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(MinipostError, match="not UTF-8"):
        read("a")


def test_what_tokenizers_say_is_known():
    assert isinstance(Tokenizer(foreign.old_llama()).each, bool)
    assert Tokenizer(foreign.old_llama()).each and not Tokenizer(foreign.metaspace("first")).each
