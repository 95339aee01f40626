"""The doctor's checks of rewards, texts and rows: healthy, and with a planted fault."""

import json

import pytest
from fakes import Echo, Letters, said

from minipost.checks import data
from minipost.checks.model import FAULT, NONE, OK, WARNING
from minipost.datasets.rows import File, read
from minipost.tasks.base import Problem
from minipost.tokenizer import Tokenizer, Vocabulary

PROBLEMS = [Problem(c, {"letter": c}) for c in "abcd"]
TEXTS = ["a", "ba", "c", "dd"]


def asked(reward, references=((PROBLEMS[0], "aaa"),)):
    return data.ask_often(reward, PROBLEMS, TEXTS, list(references))


def test_a_reward_function_that_holds_its_contract():
    values, error = asked(Echo().reward)
    said(data.reward_function(values, error), OK, "4 answers")
    assert values["empty"] == [0.0] * 4 and values["reference"] == [1.0]
    assert values["once"] == values["backwards"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    said(data.reward_function({}, ""), NONE)
    said(data.reward_function(values, error, {"sys.stdout", "os.kill"}), WARNING,
         "it changes os.kill, sys.stdout")


def raises(completions, **columns):
    return [1 / len(text) for text in completions]


def is_nan(completions, **columns):
    return [float("nan")] * len(completions)


def is_none(completions, **columns):
    return None


def is_one(completions, **columns):
    return 1.0


def too_few(completions, **columns):
    return [0.0]


def is_dict(completions, **columns):
    return dict.fromkeys(range(len(completions)), 1.0)


@pytest.mark.parametrize("reward, part",
                         [(raises, "raised ZeroDivisionError"), (is_nan, "returned nan"),
                          (is_none, "NoneType"), (is_one, "float"),
                          (is_dict, "dict"), (too_few, "1 values for 4 rows")])
def test_a_reward_function_that_would_end_a_run(reward, part):
    """`raises` does so only for an empty answer, which an untrained policy may well give."""
    values, error = asked(reward)
    assert values == {}
    said(data.reward_function(values, error), FAULT, reward.__name__, part)


def test_a_reward_function_that_fails_for_reference_answers_only():
    def reward(completions, **columns):
        return [float(text != "aaa" or 1 / 0) for text in completions]

    said(data.reward_function(*asked(reward)), FAULT, "ZeroDivisionError")


def test_a_reward_function_that_is_random():
    calls = []

    def reward(completions, **columns):
        calls.append(len(completions))
        return [len(calls) * float(text == "c") for text in completions]

    said(data.reward_function(*asked(reward)), WARNING, "differs on 1, by up to 1")


def test_a_reward_function_that_mixes_up_rows():
    def reward(prompts, completions, letter, **columns):
        return [float(text.count(letter[0])) for text in completions]

    said(data.reward_function(*asked(reward)), FAULT, "4 answers in the other order", "3 of them")


def test_rewards_that_differ_within_groups():
    said(data.reward_spread([0, 1, 0, 0], ["a", "b", "c", "d"], 2), OK, "1 of 2 groups")
    said(data.reward_spread([0, 1, 0, 0], ["a", "b", "c", "d"], 1), NONE)


@pytest.mark.parametrize("values, texts, parts", [
    ([0] * 8, list("abcdefgh"), ("all 4 groups of 2", "4 at 0", "fine-tune first")),
    ([1, 1, 1, 1, 1, 1, 0, 1], list("abcdefgh"),
     ("3 of 4 groups", "3 at 1", "ask harder problems")),
    ([1, 1, 0, 0, 1, 1, 0, 1], list("aabbccde"), ("2 at 1, 1 at 0", "3 of them say the same words",
                                                  "higher --temperature")),
])
def test_groups_that_tie(values, texts, parts):
    said(data.reward_spread(values, texts, 2), WARNING, *parts)


def test_reference_answers_that_earn_what_they_should():
    said(data.reference_rewards([1, 1], [0, 1, 0, 0], [0] * 4), OK, "2 earn 1.000", "0.250",
         "ones 0.000")
    said(data.reference_rewards([0.4, 0.1], [-0.5, 0.1], [0, 0]), OK)
    # graded: one may be poor
    said(data.reference_rewards([0.4, -0.5], [-0.5, 0.1], [0, 0]), OK)
    said(data.reference_rewards([], [0, 1], [0, 0]), NONE)


@pytest.mark.parametrize("references, sampled, empty, status, part", [
    ([1, 1], [1, 1], [1, 1], FAULT, "gives 1 to every sampled, reference and empty answer"),
    ([0, 0, 1], [0, 1], [0, 0], FAULT, "2 of 3 reference answers get the least"),
    ([1, 0, 1, 1], [0, 1], [0, 0], WARNING, "1 of 4 reference answers get the least"),
    ([0.2, 0.3], [0.5, 0.6], [0, 0], WARNING, "less than sampled ones"),
])
def test_reference_answers_that_a_reward_function_misjudges(references, sampled, empty, status,
                                                            part):
    said(data.reference_rewards(references, sampled, empty), status, part)


def rows(*columns):
    return [Problem(f"p{k}", c) for k, c in enumerate(columns)]


def test_rewards_that_a_file_states():
    good, bad = {"completion": "a", "label": True}, {"completion": "b", "label": False}
    said(data.stated_rewards(rows(good, bad)), OK, "2 rows state 2 different values")
    said(data.stated_rewards(rows(good, good)), WARNING, "all 2 rows state 1")
    said(data.stated_rewards(rows({"completion": "a"})), NONE)
    easy = Problem("p", {"completion": "a", "label": "easy"}, "x, line 3")
    said(data.stated_rewards([*rows(good, bad), easy]), WARNING, "1 of 3 rows state no label",
         "x, line 3")
    said(data.stated_rewards([easy]), NONE, "x, line 3 has 'label': 'easy'")
    task = File.__new__(File)
    assert [data.reference(task, row, None) for row
            in rows(good, bad, {"chosen": "c", "rejected": "d"}, {})
            ] == ["a", None, "c", None]
    assert data.exact(rows({"completion": "a"}))
    assert not data.exact(rows(good)) and not data.exact(rows({}))


def test_answers_that_are_cut():
    done = [True] * 9 + [False]
    said(data.cut_answers(done, [5, 8], 8), OK, "1 of 10")
    said(data.cut_answers([*done, False], [5, 8], 8), WARNING, "2 of 11", "within 8 tokens")
    said(data.cut_answers([False] * 4, [], 8), WARNING,
         "all 4 sampled answers are cut at --max-new-tokens 8",
         "raise --max-new-tokens")
    said(data.cut_answers(done, [5, 9, 12], 8), WARNING, "2 of 3 reference answers are longer",
         "--max-new-tokens 12")


def test_answers_that_the_task_cannot_read():
    said(data.parsed_answers(Echo(), ["a"] * 9 + [""], False), OK, "9 of 10")
    said(data.parsed_answers(Echo(), ["a"] * 8 + ["", ""], False), WARNING, "2 of 10",
         "echo can read")
    said(data.parsed_answers(Echo(), [""], True), NONE)


def test_control_tokens_spelt_out():
    backend = Tokenizer.train(["a"], 270).backend
    backend.add_special_tokens(["<think>"])
    words = Vocabulary(Tokenizer(backend), [1], [2], 0)
    for choice in ("stop", "tokens", "plain"):
        said(data.control_texts(["a < b", "</b>"], words, choice), OK, "none of 2")
        said(data.control_texts(["z</s>\n"], words, choice), FAULT, "1 of 1 texts end in '</s>'")
        said(data.control_texts(["</s> in the middle"], words, choice), OK)
    for choice in ("stop", "tokens"):
        said(data.control_texts(["x", "<bos>y", "<eos>"], words, choice), FAULT, "2 of 3 texts",
             "'<bos>'", "take it out")
    texts = ["x", "<think>7</think>"]
    said(data.control_texts(texts, words, "stop"), FAULT, "1 of 2", "'<think>'",
         "--control-tokens tokens", "plain")
    said(data.control_texts(texts, words, "tokens"), OK, "1 of 2 texts, and read as those tokens")
    said(data.control_texts(texts, words, "plain"), OK, "read as characters")


def test_tokens_that_join_at_the_end_of_a_prompt():
    pieces = Tokenizer.train(["the capital of the capital"] * 9, 290).encode
    assert len(pieces(" capital")) == 1
    said(data.boundary([("7+5=?", " 12"), ("the", " capital")], pieces), OK, "2 rows")
    said(data.boundary([("7+5=?", " 12"), ("the ", "capital")], pieces), WARNING, "1 of 2 answers",
         "'the capital'")
    said(data.boundary([], pieces), NONE)


def test_answers_that_the_tokenizer_changes():
    class Lossy(Letters):
        def decode(self, ids):
            return super().decode(ids).strip("a")

    said(data.round_trip(["abc", "b"], Letters()), OK)
    said(data.round_trip(["abc", "b"], Lossy()), WARNING, "1 of 2 answers", "'abc'")
    said(data.round_trip([], Letters()), NONE)


def lower(text):
    return list(text.lower())


def test_pairs_that_say_something():
    pairs = [(f"p{k}", "good", "bad") for k in range(20)]
    said(data.equal_pairs(pairs, lower), OK, "20 pairs")
    said(data.contradictory_pairs(pairs), OK)
    mixed = [(p, b, a) if k % 2 else (p, a, b) for k, (p, a, b) in enumerate(pairs)]
    said(data.length_of_chosen(mixed, lower), OK, "longer in 10, shorter in 10")
    for check in (data.equal_pairs, data.length_of_chosen):
        said(check([], lower), NONE)
    said(data.contradictory_pairs([]), NONE)
    said(data.length_of_chosen(pairs[:19], lower), NONE)


def test_pairs_that_say_nothing_or_the_wrong_thing():
    pairs = [("p", "good", "bad"), ("q", "Fine", "fine"), ("r", "so so", "so  so")]
    said(data.equal_pairs(pairs, lower), FAULT, "1 of 3 pairs have the same tokens", "'q'")
    said(data.equal_pairs(pairs, list), WARNING, "1 of 3 pairs differ in spaces alone", "'r'")
    both = [*pairs, ("p", "bad", "good"), ("s", "bad", "good")]
    said(data.contradictory_pairs(both), WARNING, "2 of 5 pairs", "'p'")


@pytest.mark.parametrize("chosen, rejected, word",
                         [("long", "x", "longer"), ("x", "long", "shorter")])
def test_pairs_that_length_alone_tells_apart(chosen, rejected, word):
    pairs = [("p", chosen, rejected)] * 19 + [("p", rejected, chosen)]
    said(data.length_of_chosen(pairs, list), WARNING, f"the {word} one in 19 of 20 pairs")
    said(data.length_of_chosen([*pairs, ("p", rejected, chosen), ("p", rejected, chosen)], list),
         OK)


def test_prompts_that_are_both_learnt_and_held_out():
    known = [Problem("Say two."), Problem("Say three.")]
    ten = [Problem(f"Say {k}.") for k in range(10)]
    said(data.held_out_prompts(known, ten), OK)
    said(data.held_out_prompts(known, ten[1:]), WARNING, "there are 9")
    said(data.held_out_prompts(known, []), FAULT, "there are none", "heldout(n)")
    said(data.held_out_prompts(known, [Problem("say  TWO."), Problem("Say four.")]), WARNING,
         "1 of 2",
         "'say  TWO.'")
    said(data.held_out_prompts(known * 9, ten, dropped=2), OK,
         "2 rows of --data")
    said(data.held_out_prompts(known * 9, [Problem("Say four.")], dropped=3), WARNING,
         "3 of 21 rows")
    said(data.held_out_prompts(known * 9, ten, unused=2), OK,
         "2 rows, which ask one of them again, are on neither side")
    said(data.held_out_prompts(known * 9, [Problem("Say four.")], unused=3), WARNING,
         "3 of 22 rows are neither")


def test_rows_that_stand_there_twice_or_were_left_out():
    once = rows(*[{"completion": "a"}] * 100)
    said(data.repeated_rows([*once, once[0]]), OK, "1 of 101")
    said(data.repeated_rows([*once, *once[:2]]), WARNING, "2 of 102")
    other = [Problem("p0", {"completion": "b"}), Problem("p1", {"completion": "c"})]
    said(data.repeated_rows([*once, *other]), OK, "0 of 102")
    said(data.skipped_rows([]), OK)
    said(data.skipped_rows(["skipped 2 of 9 rows of x; the first was x, line 3: no"]), WARNING,
         "2 of 9")


def read_rows(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(str(path))[0]


def test_prompts_of_pairs_that_are_said_marked_or_guessed(tmp_path):
    def pairs(text, **more):
        return read_rows(tmp_path, [{"chosen": f"{text}{k} it is", "rejected": f"{text}{k} is it",
                                     **more} for k in range(9)])

    said(data.divided_prompts(pairs("", prompt="a")), NONE)
    said(data.divided_prompts(pairs("Name it. Answer: no ")), OK, "9 of 9 rows",
         "...'Name it. Answer:' + ' no 0 it is'")
    said(data.divided_prompts(pairs("Name it, no ")), WARNING, "9 of 9 rows of", "line 1: "
         "...'Name it, no 0' + ' it is' or ' is it'", "key")


def test_answers_that_begin_with_their_prompts(tmp_path):
    def repeated(n):
        rows = read_rows(tmp_path, [{"prompt": f"{k} + 5", "completion": f"{k} + 5 is {k + 5}"
                                     if k < n else "12"} for k in range(40)])
        return data.repeated_prompts("rows.jsonl", rows)

    said(repeated(0), OK, "none of 40")
    said(repeated(35), WARNING, "35 of 40 rows", "line 1: '0 + 5 is 5'")
    said(repeated(36), FAULT, "36 of 40 rows", "refuse to start")


def test_rows_that_a_model_has_no_room_for():
    said(data.unusable_rows([], 9, False), OK, "all of 9")
    said(data.unusable_rows([("x, line 3", "too long")], 9, False), FAULT, "1 of 9 rows",
         "x, line 3: too long", "--on-bad-row skip")
    said(data.unusable_rows([("x, line 3", "too long")], 9, True), WARNING, "nothing is learnt")


def test_rows_with_values_of_any_kind_are_counted():
    odd = [None, True, 1, [1, [2]], {"a": [1]}, 10**400, 1e308, "\ud800"]
    problems = [Problem("p", {"completion": a, "label": b, "reward": b}) for a in odd for b in odd]
    said(data.repeated_rows(problems), OK, "0 of 64")
    said(data.stated_rewards(problems), WARNING, "all 2 rows state 1")
