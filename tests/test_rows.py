"""Rows of a file: what is read, what is left out, what is held out."""

import gzip
import json
from dataclasses import asdict

import pytest
from fakes import Letters, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost.datasets.fitting import fitted
from minipost.datasets.prompts import end_of_prompt, questions, repeats
from minipost.datasets.rows import File, read
from minipost.errors import MinipostError
from scripts.fuzz_rows import fuzz_rows


@pytest.mark.parametrize("row, part", [
    ({"completion": "b", "label": 1}, "expected true or false under 'label', found 1"),
    ({"completion": "b"}, "found None"), ({"label": True}, "non-empty string under 'completion'"),
    ({"completion": "", "label": True}, "non-empty string under 'completion'"),
])
def test_a_row_without_a_label_among_labelled_ones(tmp_path, row, part):
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "completion": "b", "label": False}
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, {"prompt": "a", **row}, good)))
    with pytest.raises(MinipostError, match="line 2: ") as caught:
        read(str(path), reads=("label", "reward"))
    assert part in str(caught.value)


def test_of_judged_answers_to_one_prompt_all_are_held_out(tmp_path):
    rows = [{"prompt": "a", "completion": c, "label": c == "b"} for c in "bcd"]
    for name, prompt in (("train", "e"), ("test", "a")):
        (tmp_path / name).write_text("".join(json.dumps({**r, "prompt": prompt}) + "\n" for r
                                             in rows))
    task = File(str(tmp_path / "train"), str(tmp_path / "test"))
    assert sorted(p.columns["completion"] for p in task.heldout(9)) == ["b", "c", "d"]
    plain = tmp_path / "plain"
    plain.write_text("".join(json.dumps({"prompt": "a", "completion": c}) + "\n" for c in "bcd"))
    assert len(File(str(tmp_path / "train"), str(plain)).heldout(9)) == 1


GOOD = b'{"prompt": "a", "completion": "b"}\n'


def test_the_odd_row_out_is_the_one_that_is_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    plain = [{"prompt": str(k), "completion": "b"} for k in range(9)]
    odd = [{"prompt": "x", "completion": "b", "label": True}, {"prompt": "y", "reward": 9}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*odd, *plain, "no object"]))
    rows, said = read(str(path), True, ("label", "reward"))
    assert rows == tuple(plain)
    assert [int(s.partition("line ")[2].partition(":")[0]) for s in said] == [1, 2, 12]
    # Without completions a reward is a column like any other.
    path.write_text("".join(json.dumps({"prompt": str(k), "reward": 5}) + "\n" for k in range(9)))
    assert len(read(str(path), False)[0]) == 9


def test_a_pair_without_a_prompt_begins_with_it(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"chosen": "Praise the soup. Fresh!", "rejected": "Praise the soup. Nasty."},
            {"chosen": "7+5= 12", "rejected": "7+5= 13", "x": 1},
            {"prompt": "", "chosen": "ab", "rejected": "ac"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(str(path))[0] == (
        {"prompt": "Praise the soup.", "chosen": " Fresh!", "rejected": " Nasty."},
        {"prompt": "7+5=", "chosen": " 12", "rejected": " 13", "x": 1},
        {"prompt": "", "chosen": "ab", "rejected": "ac"})


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n"
                            for row in rows))
    return str(path)


# ---- where a prompt ends

HH = "\n\nHuman: Name\nfour fish.\n\nAssistant: Cod.\n\nHuman: More?\n\nAssistant:"


@pytest.mark.parametrize("chosen, rejected, prompt", [
    # behind the last mark that an answer follows, however many words the answers share
    ("Town 1: name it. Answer: Marten", "Town 1: name it. Answer: Margate",
     "Town 1: name it. Answer:"),
    ("Town 1: name it. Answer: The Orla", "Town 1: name it. Answer: The Esk",
     "Town 1: name it. Answer:"),
    (HH + " I like cod.\nYes", HH + " I like cod.\nNo", HH),
    (HH + " Yes", HH + " Yes, cod", HH),
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello",
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHey",
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    ("[INST] Hi [/INST] Hello", "[INST] Hi [/INST] Hey", "[INST] Hi [/INST]"),
    ("### Instruction:\nHi\n\n### Response:\nHello", "### Instruction:\nHi\n\n### Response:\nHey",
     "### Instruction:\nHi\n\n### Response:\n"),
    ("Q: two?\nA: It is 2", "Q: two?\nA: It is 3", "Q: two?\nA:"),
    *((f"{head} It is 2", f"{head} It is 3", head) for head in (
        "user: two?\nassistant:", "human: two?\nai:", "Two\nfish.\nTL;DR:", "Two?\ntl;dr:",
        "Two?\nSo\nFinal answer:", "Two?\n**final Answer**:", "Two?\nanswer:",
        "\u95ee\u9898\uff1a2\uff1f\n\u7b54\u6848\uff1a", "\u95ee\u9898:2?\n\u7b54\u6848:",
        "Two?\n### response:", "Two?\nASSISTANT\uff1a", "Two? Answer\uff1a")),
    # else behind the last line break, else before the word
    ("Praise it.\nso fresh", "Praise it.\nso nasty", "Praise it.\n"),
    ("Praise it.\nfresh", "Praise it.\nnasty", "Praise it.\n"),
    *((f"Praise it.\nThe {word} so fresh", f"Praise it.\nThe {word} so nasty", "Praise it.\n")
      for word in ("assistant:", "final answer:", "tl;dr:", "user:", "\u7b54\u6848\uff1a")),
    ("Praise it.\na: fresh", "Praise it.\na: nasty", "Praise it.\n"),
    ("Praise it.  Fresh", "Praise it.  Foul", "Praise it."),
    ("Praise it. Fresh", "Praise it. Nasty", "Praise it."),
    ("Praise it.  Fresh", "Praise it.  Nasty", "Praise it."),
])
def test_a_prompt_ends_where_the_texts_say_so_and_never_inside_a_word(tmp_path, chosen, rejected,
                                                                      prompt):
    for a, b in ((chosen, rejected), (rejected, chosen)):
        path = write(tmp_path / "pairs.jsonl", [{"chosen": a, "rejected": b}])
        row, = read(path)[0]
        assert row["prompt"] == prompt
        assert (prompt + row["chosen"], prompt + row["rejected"]) == (a, b)
        assert row.turn != row.guess and row.turn == (not prompt.startswith("Praise"))


@pytest.mark.parametrize("chosen, rejected", [
    ("7+5=12", "7+5=13"), ("fresh", "nasty"), (" fresh", " nasty"), ("a b", "a b c"),
    ("Q: a?\nA: x", "Q: b?\nA: y"), ("user: a?\nassistant: x", "user: b?\nassistant: y"),
    ("\u95ee\u9898\uff1a a?\n\u7b54\u6848\uff1ax", "\u95ee\u9898\uff1a b?\n\u7b54\u6848\uff1ay"),
    (HH, HH + " Yes"), ("Praise it. ", "Praise it. Fresh"), ("Praise it.\n ", "Praise it.\nFresh"),
])
def test_a_pair_without_a_place_where_its_prompt_ends(tmp_path, chosen, rejected):
    path = write(tmp_path / "pairs.jsonl", [{"chosen": chosen, "rejected": rejected}])
    with pytest.raises(MinipostError, match="line 1: a pair without a prompt needs two texts that"):
        read(path)


@given(st.text(st.sampled_from("ab \n:"), max_size=9), *[st.text(st.sampled_from("ab \n"),
                                                               min_size=1, max_size=5)] * 2)
def test_both_texts_begin_with_the_prompt_and_go_on(head, a, b):
    chosen, rejected = (f"{head}{x}" for x in (a, b))
    if chosen == rejected:
        return
    end, turn = end_of_prompt(chosen, rejected)
    assert chosen[:end] == rejected[:end] and not turn
    assert (end, turn) == end_of_prompt(rejected, chosen)
    # a word is whole: where a prompt ends is white space on one side or the other
    assert not end or chosen[end - 1].isspace() or chosen[end].isspace()


# ---- what is held out

def asks(rows):
    return {" ".join(row.prompt.split()) for row in rows}


def test_two_pairs_of_one_question_are_on_the_same_side(tmp_path):
    """Their answers share first words, each pair other ones."""
    path = write(tmp_path / "pairs.jsonl", [
        {key: f"Town {k}: name its river. Answer: {answer}" for key, answer in pair.items()}
        for k in range(60) for pair in ({"chosen": "Orla", "rejected": "Esk"},
                                        {"chosen": "Marten", "rejected": "Margate"},
                                        {"chosen": "The Orla", "rejected": "The Esk"})])
    task = File(path)
    training, heldout = asks(task.training()), asks(task.heldout(999))
    assert not training & heldout and len(training) + len(heldout) == 60 and len(heldout) > 2
    assert len(task.training()) == 3 * len(training)


def test_where_an_end_was_guessed_a_longer_prompt_is_the_same_question(tmp_path):
    """The first pair ends in "river", the second in "the": both may be one question's."""
    def rows(k):
        return [{"chosen": f"Name {k} river Orla", "rejected": f"Name {k} river Esk"},
                {"chosen": f"Name {k} river the Orla", "rejected": f"Name {k} river the Esk"},
                {"prompt": f"Name {k} river the one", "chosen": "a", "rejected": "b"}]

    data = write(tmp_path / "pairs.jsonl", [row for k in range(60) for row in rows(k)])
    task = File(data)
    numbers = [{p.prompt.split()[1] for p in side} for side in task.sides]
    assert not numbers[0] & numbers[1] and len(numbers[1]) > 2
    assert len(set(questions(read(data)[0]))) == 60
    test = write(tmp_path / "test.jsonl", [{"prompt": "Name 7 river", "chosen": "a",
                                            "rejected": "b"}])
    assert len(File(data, test).training()) == 3 * 59
    said = [{"prompt": f"Name {k}" + " river" * (k % 2)} for k in (1, 1, 2)]
    assert len(set(questions(read(write(tmp_path / "said.jsonl", said))[0]))) == 2


def test_a_short_guess_is_not_the_question_of_all_that_begin_with_it(tmp_path):
    """However the odd pair begins, the other 200 are divided as they are without it."""
    def pair(start, k):
        return {key: f"{start} capital of land{k} is {name}{k}."
                for key, name in (("chosen", "Alpha"), ("rejected", "Beta"))}

    for start, odd in (("When", "When {} sat."), ("Say what the", "Say what the {} did"),
                       ("What is the", "What is the capital of {} ?")):
        rows = [pair(start, k) for k in range(200)]
        sides = File(write(tmp_path / "rows", rows)).sides
        rows.append({"chosen": odd.format("cat"), "rejected": odd.format("dog")})
        task = File(write(tmp_path / "rows", rows))
        assert [p.prompt for p in task.training() if "land" in p.prompt] == [
            p.prompt for p in sides[0]]
        assert asks(task.heldout(999)) >= asks(sides[1])
        assert sum(map(len, task.sides)) == 201 and task.skipped() == []


@pytest.mark.parametrize("eval_data", [False, True])
def test_rows_of_neither_side_are_counted(tmp_path, eval_data):
    """Rows in are rows trained on, held out, or counted."""
    rows = [{"prompt": f"{k}?", "completion": c} for k in range(60) for c in "bcd"]
    data = write(tmp_path / "rows", rows)
    held = write(tmp_path / "held", rows[:30]) if eval_data else ""
    task = File(data, held)
    n = len(task.heldout(999))
    assert task.unused == 2 * n > 4
    assert task.skipped()[-1] == (
        f"{2 * n} of {30 if eval_data else 180} rows of {held or data} are neither trained on nor "
        "held out: they ask a held-out question again, which counts once")
    assert len(task.training()) + n + task.unused == 180  # held rows stand for those left out


@pytest.mark.parametrize("eval_data", [False, True])
def test_a_question_in_another_spelling_is_on_the_same_side(tmp_path, eval_data):
    spellings = ("Caf\u00e9 {}?", " Caf\u00e9  {}?\n", "Cafe\u0301 {}?")
    rows = [{"prompt": text.format(k), "completion": "b"} for k in range(80) for text in spellings]
    data = write(tmp_path / "rows.jsonl", rows)
    held = write(tmp_path / "held.jsonl", [rows[k] for k in range(0, 30, 10)])
    task = File(data, held if eval_data else "")
    numbers = [{p.prompt.split()[1] for p in side} for side in task.sides]
    assert not numbers[0] & numbers[1] and len(numbers[1]) > 2
    if eval_data:
        assert len(task.training()) == 240 - 9
        assert task.skipped() == [f"left out 9 of 240 rows of {data}: their questions are held "
                                  f"out in {held}"]
    else:
        assert len(task.heldout(999)) == len(numbers[1])
        assert f"{2 * len(numbers[1])} of 240 rows" in task.skipped()[0]
        assert sorted(p.place for p in task.training()) == sorted(
            f"{data}, line {n + 1}" for n, row in enumerate(rows)
            if row["prompt"].split()[1] in numbers[0])


def test_a_question_typed_otherwise_is_on_the_same_side(tmp_path):
    """And what else is there is divided as if there were no such spellings."""
    spellings = ("what is {}?", "What is {}\uff1f", "What is\u200b {}?", "\ufeffWhat is {}?",
                 "Wh\u00adat is {}?", "What is {} ?", "WHAT IS {}?", "What\u00a0is {}  ?\n")
    rows = [{"prompt": text.format(k), "completion": "b"} for k in range(80)
            for text in spellings]
    assert len(set(questions(read(write(tmp_path / "rows", rows))[0]))) == 80
    task = File(write(tmp_path / "rows", rows))
    assert len(task.training()) + len(task.heldout(999)) + task.unused == 640
    assert len(task.training()) == 640 - 8 * len(task.heldout(999)) and task.unused > 30
    other = [{"prompt": text, "completion": "b"} for text in ("5 - 3", "5-3", "a (b)", "a(b)")]
    assert len(set(questions(read(write(tmp_path / "rows", other))[0]))) == 4


def test_what_is_held_out_does_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = [{"prompt": text.format(k), "completion": "b"} for k in range(80)
            for text in ("x {}", "x  {}")]
    found = [asks(File(write(tmp_path / "rows", order)).heldout(99)) for order in
             (rows, rows[::-1])]
    assert found[0] == found[1]


@pytest.mark.parametrize("key, values", [("label", [True, False]), ("reward", [0.0, 1.0])])
def test_held_out_rows_of_judged_answers_are_never_trained_on(tmp_path, key, values):
    """Nor are any of theirs left out of what is held out."""
    rows = [{"prompt": f"{k}?", "completion": c, key: value} for k in range(60)
            for c, value in zip("cd", values)]
    task = File(write(tmp_path / "rows.jsonl", rows))
    training, heldout = ([(p.prompt, p.columns["completion"]) for p in side]
                         for side in task.sides)
    assert not asks(task.training()) & asks(task.heldout(999))
    assert sorted([*training, *heldout]) == sorted((r["prompt"], r["completion"]) for r in rows)
    assert len(heldout) == 2 * len(asks(task.heldout(999))) > 4


# ---- answers that begin with their prompts

def repeating(n, whole=40, answers=("completion",), prompt="{}+5=? Answer:"):
    """Rows of which n have answers that begin with their prompts."""
    return [{"prompt": prompt.format(k), **{
        key: (prompt.format(k) if k < n else "") + f" {k + 5 + len(key)}" for key in answers}}
        for k in range(whole)]


@pytest.mark.parametrize("reads", [("completion",), ("chosen", "rejected")])
def test_answers_that_repeat_their_prompts_are_refused(tmp_path, reads):
    def fit(rows, reads=reads):
        return File(write(tmp_path / "rows.jsonl", rows)).fitted(reads, lambda problem: None)

    for n in (36, 40):
        with pytest.raises(MinipostError, match=rf"in {n} of 40 rows the answer begins with the "
                           r"whole prompt \(line 1: '0\+5=\? Answer: .*take it out"):
            fit(repeating(n, answers=reads))
        assert fit(repeating(n, answers=reads), ("label",)).skipped() == []  # nobody learns them
    assert "in 35 of 40 rows" in fit(repeating(35, answers=reads)).skipped()[0]
    assert fit(repeating(0, answers=reads)).skipped() == []


@pytest.mark.parametrize("prompt", ["{}+5=? Say it.", "User: {}?\nAssistant:"])
@pytest.mark.parametrize("mark, count", [
    ("", 40), ("Assistant:", 40), ("assistant: ", 40), ("<|im_start|>assistant\n", 40), ("So ", 0),
    ("So\nAssistant: ", 0)])
def test_answers_that_repeat_their_prompts_behind_a_mark(tmp_path, prompt, mark, count):
    found = repeating(40, prompt=prompt)
    rows = read(write(tmp_path / "rows.jsonl", [
        {**row, "completion": mark + row["completion"]} for row in found]))[0]
    assert sum(map(repeats, rows)) == count
    assert not any(repeats(row.but({"completion": f"{mark} 12"})) for row in rows)


@pytest.mark.parametrize("prompt", ["a{}", "{}", "Say {} twice ->\n"])
def test_answers_that_say_a_short_prompt_or_a_line_again_are_answers(tmp_path, prompt):
    rows = repeating(40, prompt=prompt)
    for row in rows:
        row["completion"] = row["completion"].replace("\n", "")
    task = File(write(tmp_path / "rows.jsonl", rows)).fitted(("completion",), lambda problem: None)
    assert task.skipped() == []


def test_a_rejected_answer_may_parrot(tmp_path):
    rows = repeating(40, answers=("chosen", "rejected"))
    for row in rows:
        row["chosen"] = "12"
    task = File(write(tmp_path / "rows.jsonl", rows))
    assert task.fitted(("chosen", "rejected"), lambda problem: None).skipped() == []


# ---- rows that a run cannot use

ODD = [({"prompt": "a" * 6, "completion": "b"}, r"a prompt of 7 tokens .'aaaaaa'. and a response "
        r"of up to 4 do not fit the model's context of 10; lower --max-new-tokens to 3"),
       ({"prompt": "a" * 9, "completion": "b"}, r"a prompt of 10 tokens .* leaves no room"),
       ({"prompt": "a", "completion": "b" * 8},
        r"a prompt of 2 tokens .'a'. and a completion of 9 tokens .'bbbbbbbb'. do not fit"),
       ({"prompt": "a", "completion": "h"}, r"the tokenizer makes nothing of a completion, 'h'")]


class Mute(Letters):
    """It makes no token of h."""

    def response(self, text):
        return super().response(text.replace("h", ""))


class NoBos(Letters):
    def prompt(self, text):
        return super().prompt(text)[1:]


@pytest.mark.parametrize("kind", range(len(ODD)))
@pytest.mark.parametrize("place", ["data", "eval_data"])
def test_a_row_that_a_run_cannot_use_is_a_bad_row(tmp_path, kind, place):
    """The rest is what it would be without that row."""
    model, words = tiny(context=10), Mute()
    rows = [{"prompt": a + b, "completion": b} for a in "abcdefg" for b in "abcdefg"]
    odd, part = ODD[kind]
    names = {name: write(tmp_path / name, rows[at:] if name != place else
                         [*rows[at : at + 3], odd, *rows[at + 3 :]])
             for name, at in (("data", 0), ("eval_data", 30))}
    clean = File(write(tmp_path / "clean", rows), write(tmp_path / "clean_eval", rows[30:]))
    with pytest.raises(MinipostError, match=rf"{names[place]}, line 4: {part}"):
        fitted(File(**names), model, words, 4, ("completion",))
    found = fitted(File(**names, on_bad_row="skip"), model, words, 4, ("completion",))
    assert found.sides == clean.sides
    said, = [s for s in found.skipped() if s.startswith("skipped")]
    assert f"skipped 1 of {len(rows) + 1 - (place == 'eval_data') * 30} rows" in said
    assert f"{names[place]}, line 4: " in said and "are kept" in said
    assert asdict(found) == {**names, "on_bad_row": "skip", "columns": "", "max_length": 0,
                             "on_long_row": "stop"}
    if kind > 1:  # who does not learn completions has no need of room for them
        assert fitted(File(**names), model, words, 4).rows


def test_an_empty_prompt_needs_a_bos(tmp_path):
    rows = [{"prompt": "a" * (k % 3), "completion": "b"} for k in range(40)]
    data = write(tmp_path / "rows", rows), write(tmp_path / "test", rows[2:3])
    assert fitted(File(*data), tiny(), Letters(), 4).rows
    with pytest.raises(MinipostError, match=f"{data[0]}, line 1: an empty prompt needs a BOS"):
        fitted(File(*data), tiny(), NoBos(), 4)
    assert len(fitted(File(*data, "skip"), tiny(), NoBos(), 4).rows) == 26


def test_many_skipped_rows_are_said_and_what_is_kept(tmp_path):
    data = write(tmp_path / "rows", [*["x"] * 30, *[{"prompt": str(k)} for k in range(20)]])
    assert File(data, on_bad_row="skip").skipped() == [
        f"skipped 30 of 50 rows of {data}; the first was {data}, line 1: expected one JSON object, "
        "found 'x' (Expecting value: line 1 column 1 (char 0)); 20 are kept, fewer than half"]


def test_the_answer_of_a_row_is_read_without_outer_spaces(tmp_path):
    task = File(write(tmp_path / "rows", [{"prompt": str(k), "completion": " b"}
                                          for k in range(40)]))
    assert [task.parse(text) for text in (" b\n", "b c", " \n")] == ["b", "b c", None]
    assert task.reward(["1"] * 3, ["b ", " b", "c"], [" b"] * 3) == [1.0, 1.0, 0.0]


# ---- rows that name things otherwise

@pytest.mark.parametrize("row, part", [
    ({"question": "0?", "answer": "4"},
     "the keys are question, answer); rename by --columns question:prompt,answer:completion"),
    ({"instruction": "Add", "input": "1 2", "output": "3"},
     "rename by --columns instruction:prompt,output:completion; what stands under "
     "'input' belongs to the prompt"),
    ({"text": "Q: 0? A: 4"}, "divide 'text' into 'prompt' and 'completion'"),
    ({"messages": ["0?", "4"]}, "a list under 'messages' that holds no messages"),
    ({"conversations": []}, "a list under 'conversations' that holds no messages"),
    ({"prompt": ["0?"], "completion": "4"}, "a list under 'prompt' that holds no messages"),
    ({"question": "0?", "chosen": "a b", "rejected": "a c"}, "rename by --columns question:prompt"),
    ({"x": "0?", "completion": "a c"}, "found None (the keys are x, completion)"),
    ({"Prompt": "0?", "COMPLETION": "4"},
     "rename by --columns Prompt:prompt,COMPLETION:completion"),
    ({"Question": "0?", "Chosen": "a b", "Rejected": "a c"},
     "rename by --columns Question:prompt,Chosen:chosen,Rejected:rejected"),
    ({"Chosen": "0? b", "Rejected": "0? c"}, "rename by --columns Chosen:chosen,Rejected:rejected"),
    ({"Prompt": "0?", "chosen": "a b", "rejected": "a c"}, "rename by --columns Prompt:prompt"),
    ({"chosen": "0? b", "Rejected": "0? c"},
     "found None; rename it by --columns Rejected:rejected"),
    ({"prompt": "0?", "completion": 12}, "under 'completion', found 12; write it in quotes"),
    ({"prompt": 0.5, "completion": "4"}, "under 'prompt', found 0.5; write it in quotes"),
    ({"prompt": "0?", "completion": True}, "under 'completion', found True"),
    ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, "under 'chosen', found a list of 1"),
    ({"completion": "a" * 999, **{f"key {k}" * 9: 1 for k in range(99)}}, "key 0key 0key 0key 0, "),
])
def test_a_row_with_other_keys_is_told_how_to_name_them(tmp_path, row, part):
    path = write(tmp_path / "rows.jsonl", [row] * 30)
    with pytest.raises(MinipostError) as caught:
        read(path)
    assert f"{path}, line 1: " in str(caught.value) and part in str(caught.value)
    assert ("quotes" in str(caught.value)) == ("quotes" in part)
    assert len(str(caught.value)) < 300


def test_a_label_of_another_meaning_is_a_column_for_who_reads_none(tmp_path):
    rows = [{"prompt": f"{k}", "completion": "b", "label": "easy", "reward": 7} for k in range(40)]
    task = File(write(tmp_path / "rows.jsonl", rows))
    assert task.training()[0].columns["label"] == "easy"
    assert len(task.fitted(("completion",), lambda problem: None).rows) == 40
    for key, part in (("label", "true or false under 'label', found 'easy'"),
                      ("reward", "within 0..1 under 'reward', found 7")):
        with pytest.raises(MinipostError, match=f"line 1: expected .*{part}"):
            task.fitted(("completion", key), lambda problem: None)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([GOOD, b"\r\n", b'{"prompt": "c"}'])
                | st.dictionaries(st.sampled_from(["prompt", "completion", "x"]),
                                  st.text(max_size=3) | st.none() | st.floats())
                .map(lambda row: json.dumps(row).encode()), max_size=4))
def test_jsonl_of_any_bytes(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        rows = read(str(path))[0]
    except MinipostError as error:
        assert str(path) in str(error)
    else:
        assert rows and all(isinstance(row["prompt"], str) for row in rows)


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_damaged_files_end_in_our_sentences(seed):
    said = []
    found = fuzz_rows(3, seed, said.append)
    assert found["failures"] == 0, said


@pytest.mark.parametrize("path, part", [
    (".", "is a directory without state.json; expected a file of rows, or"),
    ("a\0b", "could not be read"),
    ("nowhere.jsonl", "no such file"), ("x" * 5000, "could not be read"),
    ("/dev/zero", "is a device; expected a file"),
])
def test_what_is_no_file(path, part):
    with pytest.raises(MinipostError, match=part):
        read(path)


@pytest.mark.parametrize("content, sentence", [
    (gzip.compress(b'{"prompt": "a"}', mtime=0), "is compressed by gzip; unpack it"),
    ('{"prompt": "a"}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    (b"[1]\n[2]", "line 1: expected a JSON object, found list"),
    (b"prompt,completion\na,b", "looks like CSV, not JSON; pandas.read_csv(FILE)"),
])
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_of_another_kind_is_told_apart(tmp_path, content, sentence, skip):
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(MinipostError) as error:
        read(str(tmp_path / "data"), skip)
    assert sentence in str(error.value)
