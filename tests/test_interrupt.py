"""Ctrl-C ends a run within two seconds, or says what it waits for and how long that has taken."""

import time

import pytest

from minipost import train
from minipost.layout import tensor_file

GROUPS = ("--steps", 3, "--prompts", 2, "--group-size", 2)
# The reward function is called for greedy and sampled held-out answers, then once in every step.
REWARD = """import os, pathlib, signal, time
calls = []
def reward(completions, **columns):
    calls.append(1)
    if len(calls) == {call}:
        for k in range({signals}):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.7)
        time.sleep({wait})
    return [len(text) / 9 for text in completions]
"""


@pytest.fixture
def interrupted(command, tmp_path, capsys):
    """interrupted(call, signals, wait) -> (exit code, seconds, all that was printed)."""
    def go(call, signals=1, wait=0.0, flags=()):
        path = tmp_path / "mine.py"
        path.write_text(REWARD.format(call=call, signals=signals, wait=wait))
        start = time.perf_counter()
        code = train.main(command("grpo", *GROUPS, "--reward", f"{path}:reward", *flags))
        seconds = time.perf_counter() - start
        found = capsys.readouterr()
        return code, seconds, found.out + found.err
    return go


@pytest.mark.parametrize("call", [1, 3])
def test_before_the_first_step_is_made_there_is_nothing_to_wait_for(interrupted, tmp_path, call):
    """While held-out answers are measured, and in the first step, however long it would take."""
    code, seconds, said = interrupted(call, wait=20)
    assert code == 130 and seconds < 5 and "stopped at once" in said
    assert "finishing" not in said and not list((tmp_path / "run").glob("state/*"))


def test_a_later_step_is_finished_and_it_is_said_how_long_it_has_taken(interrupted, tmp_path):
    code, _, said = interrupted(4)
    assert code == 130
    assert ("finishing step 2 (0 s so far, the last one took 0 s), then saving (once more: stop at "
            "once)") in said
    assert tensor_file.load_state(tmp_path / "run/state/state.safetensors")[1]["step"] == 2


def test_a_measurement_in_between_is_named(interrupted, tmp_path):
    code, _, said = interrupted(4, flags=("--eval-every", 1))
    assert code == 130 and "finishing the measurement after step 1 (0 s so far), then" in said
    assert tensor_file.load_state(tmp_path / "run/state/state.safetensors")[1]["step"] == 1


def test_a_second_signal_breaks_the_step_off_and_saves_the_one_before(interrupted, tmp_path):
    code, seconds, said = interrupted(4, signals=2, wait=20)
    assert code == 130 and seconds < 6
    assert said.index("finishing step 2") < said.index("saving step 1, which was made before")
    assert tensor_file.load_state(tmp_path / "run/state/state.safetensors")[1]["step"] == 1
