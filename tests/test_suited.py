"""Which rows a method learns from: others are refused, in one sentence that says what to do."""

import json

import pytest

import minipost
from minipost import doctor, evaluate, methods, train
from minipost.datasets.rows import File
from minipost.datasets.suited import sampled
from minipost.errors import MinipostError
from minipost.methods import sft
from minipost.tasks.base import Problem, is_held_out


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(n=40, **columns):
    return [{"prompt": f"{k}+5=?", "completion": f" {k + 5}", **columns} for k in range(n)]


def judged(n=40, key="label", values=(True, False)):
    return [{**row, key: values[k % 2]} for k, row in enumerate(plain(n))]


def pairs(n=40):
    return [{"prompt": f"{k}+5=?", "chosen": " 1", "rejected": " 2"} for k in range(n)]


STEP = ("--steps", 1, "--report", False)
TWO = ("--prompts", 2, "--group-size", 2)


# ---- labels that a method does not read

@pytest.mark.parametrize("algo, part", [
    ("sft", "it would be learnt"), ("mixer", "it would be learnt"),
    ("grpo", "an answer that equals it would count as right"),
    ("distill", "an answer that equals it would count as right"),
])
def test_a_completion_that_is_labelled_wrong_is_a_bad_row(command, fails, tmp_path, algo, part):
    data = write(tmp_path / "rows.jsonl", judged())
    fails(command(algo, *STEP, "--data", data), f"{data}, line 2: the label is false", part,
          "--on-bad-row skip", "kto, oreo or rft")
    assert not (tmp_path / "run").exists()


def test_a_completion_that_is_labelled_wrong_is_no_right_answer_to_measure_by(
        fails, tiny, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", judged(6))
    flags = ["--model", tiny, "--data", data, "--workers", 1, "--max-new-tokens", 4]
    fails(flags, f"{data}, line 2: the label is false", "a --reward", main=evaluate.main)
    assert evaluate.main([*map(str, flags), "--on-bad-row", "skip"]) == 0
    assert "skipped 3 of 6 rows" in capsys.readouterr().err
    run = minipost.open(str(tiny), data=judged(40), max_new_tokens=4)
    rows = [p for p in run.task.training() if not p.columns["label"]][:2]
    assert run.task.reward([p.prompt for p in rows], ["a", rows[1].columns["completion"]],
                           completion=[p.columns["completion"] for p in rows],
                           label=[False, False]) == [None, None]


def test_with_a_reward_function_no_label_matters(command, tmp_path, reward):
    data = write(tmp_path / "rows.jsonl", judged())
    assert train.main(command("grpo", *STEP, *TWO, "--reward", reward, "--data",
                       str(data))) == 0


def test_labels_are_read_by_those_that_read_them(tmp_path):
    task = File(str(write(tmp_path / "rows.jsonl", judged())))
    for name in ("kto", "oreo", "rft"):
        assert len(task.fitted(methods.load(name).READS, None, paid=True).rows) == 40
    # A pair says itself which answer is better, whatever else the row holds.
    both = [{**a, **b} for a, b in zip(judged(), pairs())]
    task = File(str(write(tmp_path / "both.jsonl", both)))
    assert len(task.fitted(("chosen", "rejected"), None, paid=True).rows) == 40


@pytest.mark.parametrize("reads, paid, said", [
    (("completion",), False, "every completion is learnt"), ((), True, "counts as right"),
    ((), False, None), (("completion", "label", "reward"), True, None),
])
@pytest.mark.parametrize("key", ["reward", "label"])
def test_numbers_that_are_not_read_are_told(tmp_path, key, reads, paid, said):
    if key == "label" and said is None and reads:
        return  # oreo refuses a label that is a number
    data = write(tmp_path / "rows.jsonl", judged(key=key, values=(1, 0)))
    found = File(str(data)).fitted(reads, None, paid).skipped()
    assert [f"the numbers under {key!r} are not read" in line for line in found] == [True] * bool(
        said)
    assert not said or said in found[0]


# ---- rows without what a method reads

@pytest.mark.parametrize("algo", ["dpo", "ipo", "orpo", "simpo", "rpo", "reward", "plackett-luce",
                                  "kto"])
@pytest.mark.parametrize("rows, others", [(plain(), "such rows are for sft"), (
    judged(key="reward", values=(0.5, 1)), "such rows are for oreo and rft")])
def test_rows_without_pairs_are_refused(command, fails, tmp_path, algo, rows, others):
    data = write(tmp_path / "rows.jsonl", rows)
    wants = "chosen and rejected" + " or completion and label" * (algo == "kto")
    fails(command(algo, *STEP, "--data", data), f"{data}, line 1: the keys are prompt, "
          "completion", f"{algo} reads {wants};", others, "--reward")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows", [plain(label=True), judged(values=(False, True))])
def test_labels_are_no_pairs(command, fails, tmp_path, rows):
    data = write(tmp_path / "rows.jsonl", rows)
    fails(command("dpo", *STEP, "--data", data), f"{data}, line 1: the keys",
          "such rows are for kto, oreo and rft")


def test_with_a_reward_function_answers_are_sampled_aloud(command, tmp_path, reward, capsys):
    data = write(tmp_path / "rows.jsonl", plain())
    assert train.main(command("dpo", *STEP, "--pairs", 2, "--reward", reward, "--data",
                       str(data))) == 0
    assert f"no row of {data} has chosen and rejected, so dpo samples answers: the reward" in \
        " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", methods.names())
def test_methods_that_read_nothing_of_the_kind_take_any_rows(name):
    """And those that do take rows that have it."""
    reads = methods.load(name).READS
    for columns, taken in (({"chosen": "a", "rejected": "b"}, {"chosen"}),
                           ({"completion": "a", "label": True}, {"label"}),
                           ({"completion": "a", "reward": 0.5}, {"reward"})):
        if taken <= {*reads} or not {*reads} - {"completion"}:
            assert sampled("f", name, reads, Problem("p", columns), True) == ""
    if "reward" in reads:
        assert "counts as right that equals" in sampled("f", name, reads, Problem(
            "p", {"completion": "a"}), True)


# ---- too few rows

@pytest.mark.parametrize("n", [8, 40])
def test_what_is_wrong_with_a_row_is_said_however_few_there_are(command, fails, tmp_path, n):
    rows = [{**row, "label": True} for row in (few() if n == 8 else plain(n))]
    rows[2]["label"] = "yes"
    data = write(tmp_path / "rows.jsonl", rows)
    fails(command("kto", *STEP, "--data", data), f"{data}, line 3: expected true or false")


def few():
    """8 rows of which none is held out."""
    return [row for row in plain() if not is_held_out([row["prompt"]])][:8]


def test_too_few_rows_are_counted(command, fails, tiny, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", few())
    fails(command("sft", *STEP, "--data", data), f"{data}: its 8 rows ask 8 questions", "30",
          "--eval-data", "--eval-n 0")
    with pytest.raises(MinipostError, match="its 8 rows ask 8 questions"):
        minipost.evaluate(minipost.open(str(tiny), data=few(), max_new_tokens=4))
    capsys.readouterr()
    assert doctor.main(["--model", str(tiny), "--data", str(data), "--max-new-tokens", "4",
                        "--prompts", "2", "--group-size", "2"]) == 1
    assert "its 8 rows ask 8 questions" in " ".join(capsys.readouterr().out.split())


def test_where_nothing_is_measured_nothing_is_held_out(command, tmp_path, spy):
    data, found = write(tmp_path / "rows.jsonl", few()), spy(sft, "demonstrations")
    assert train.main(command("sft", *STEP, "--batch-size", 8, "--eval-n", 0, "--data",
                       str(data))) == 0
    assert {p.prompt for p, _ in found[0][1]} == {row["prompt"] for row in few()}


def test_what_is_replayed_needs_nothing_held_out(command, tmp_path):
    data = write(tmp_path / "old.jsonl", few())
    assert train.main([*command("sft", *STEP, "--batch-size", 4, "--replay", data)]) == 0


@pytest.mark.parametrize("rows", [few(), [{"prompt": "a"}] * 2 + [[]]])
def test_a_resumed_run_says_that_its_data_has_changed(command, fails, tmp_path, rows):
    data = write(tmp_path / "rows.jsonl", plain())
    assert train.main(command("sft", *STEP, "--batch-size", 4, "--data", str(data))) == 0
    write(data, rows)
    fails(["--resume", tmp_path / "run"], f"/{data.name} has changed since", "put it back")


# ---- a flag that is at fault

@pytest.mark.parametrize("algo", ["sft", "grpo", "reinforce"])
@pytest.mark.parametrize("flags", [(), ("--on-bad-row", "skip"), ("--task", "facts")])
def test_no_row_is_blamed_for_a_length_that_leaves_no_room(command, fails, algo, flags):
    fails(command(algo, *STEP, "--max-new-tokens", 100000, *flags), "error: --max-new-tokens "
          "100000 leaves no room for a prompt in the model's context of 64; lower it")


def test_the_limit_of_a_sampled_answer_may_be_max_length(command, fails):
    fails(command("grpo", *STEP, "--max-length", 9, "--max-new-tokens", 9), "error: "
          "--max-new-tokens 9 leaves no room for a prompt in --max-length 9; lower it")


def test_the_doctor_blames_the_flag_too(tiny, rows, capsys):
    assert doctor.main(["--model", str(tiny), "--data", str(rows), "--max-new-tokens", "64",
                        "--json"]) == 1
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert found["rows for this model"]["status"] == "ok"
    assert "--max-new-tokens" in found["context"]["todo"]


def test_a_prompt_that_is_too_long_by_itself_is_to_be_shortened(tiny):
    run = minipost.open(str(tiny), task="facts", max_new_tokens=4)
    with pytest.raises(MinipostError, match="the model's context of 64; shorten the prompt$"):
        run.answer(["x" * 99])
    with pytest.raises(MinipostError, match="; lower --max-new-tokens$"):
        run.answer(["x" * 61])


# ---- the file that lacks something

def test_the_file_without_completions_is_named(command, fails, tmp_path):
    good, held = write(tmp_path / "good.jsonl", plain()), write(tmp_path / "held.jsonl", pairs(4))
    fails(command("sft", *STEP, "--data", good, "--eval-data", held), f"/{held.name}, line ",
          "a row without a completion", "with the keys of", f"/{good.name}", "--eval-n 0")
    write(held, pairs(60))
    fails(command("grpo", *STEP, *TWO, "--data", held, "--eval-data", good),
          f"/{held.name}, line ", "--reward", "dpo")
    fails(command("sft", *STEP, "--data", held), "no completion", "dpo and its like")


# ---- what says which answers are better

@pytest.mark.parametrize("algo", ["mdpo", "clicks", "iterative-grpo", "iterated-rlhf"])
def test_methods_that_order_answers_need_something_that_tells_them_apart(command, fails, tmp_path,
                                                                        algo):
    """That equals the row's completion tells hardly any two apart: they tied, after minutes."""
    data = write(tmp_path / "rows.jsonl", plain())
    fails(command(algo, "--report", False, "--data", data),
          f"{data}, line 1: {algo} orders answers", "name a --reward")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algo", ["ttrl", "intuitor"])
def test_methods_that_learn_from_no_reward_take_prompts_alone(command, tmp_path, algo):
    """What is only logged is not there then."""
    data = write(tmp_path / "rows.jsonl", [{"prompt": row["prompt"]} for row in plain()])
    assert train.main(command(algo, *STEP, *TWO, "--eval-n", 0, "--data", str(data))) == 0
    line, = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert "accuracy" not in json.loads(line) and "reward" in json.loads(line)


@pytest.mark.parametrize("algo", ["rlaif", "direct-rlaif"])
def test_a_judge_that_is_not_there_is_said_at_the_start(command, fails, tmp_path, algo):
    fails(command(algo, "--report", False, "--task", "wording", "--judge", tmp_path / "none"),
          "none: no such model directory")
    assert not (tmp_path / "run").exists()


def test_a_prompt_without_room_is_refused_where_answers_are_sampled(command, fails, tmp_path,
                                                                    reward):
    """By methods too that read answers, where the rows have none."""
    rows = [{"prompt": row["prompt"] * 9} for row in plain()]
    data = write(tmp_path / "rows.jsonl", rows)
    for algo in ("grpo", "dpo", "kto", "rft"):
        fails(command(algo, *STEP, "--reward", reward, "--data", data, "--max-length", 12),
              "40 of 40 rows do not fit --max-length 12")
