"""The floor of a GRPO step: which matrix products it counts."""

from collections import Counter

import pytest
import torch
from fakes import PAD, tiny
from torch.utils.flop_counter import FlopCounterMode

from minipost.gpt import GPTConfig
from scripts import floor
from scripts.floor import Pass


def test_operations_against_a_count_by_hand():
    """D 8, F 12, 2 layers, 4 query and 2 key heads of width 2, 10 tokens; tied or not."""
    config = GPTConfig(10, 8, 12, 2, 4, 2, 2)
    layer = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 2 * 8 * 12 + 12 * 8  # q, k and v, o, gate and up, down
    assert floor.operations(config, Pass(5, 3)) == 2 * (5 * 2 * layer + 3 * 8 * 10)
    assert floor.operations(config, Pass(5, 3, backward=True)) == 6 * (5 * 2 * layer + 3 * 8 * 10)


def test_the_passes_of_a_step():
    """Two prompts of 3 tokens, answered by 1 and 4, and by 2 and 2 tokens."""
    assert floor.passes(2, 3, [1, 4, 2, 2]) == {
        "sampling": Counter({Pass(6, 2): 1, Pass(3, 3): 1, Pass(1, 1): 2}),
        "training": Counter({Pass(6 + 9 - 4, 9, True): 1})}


@pytest.mark.parametrize("kv", [1, 4])
def test_operations_are_those_of_the_model(kv):
    """With one answer to a prompt, the counts are those of the operators that really run."""
    model, new, counted = tiny(kv=kv), 4, {}
    tokens = torch.full((2, 3 + new), PAD)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.head(model.hidden(tokens[:, :3])[:, -1])
        for _ in range(1, new):
            model.head(model.hidden(tokens[:, :1])[:, -1])
    counted["sampling"] = counter.get_flop_counts()["Global"]
    with FlopCounterMode(display=False) as counter:
        model.head(model.hidden(tokens[:, :-1])[:, 2:]).sum().backward()
    counted["training"] = counter.get_flop_counts()["Global"]
    for part, steps in floor.passes(2, 3, [new, new]).items():
        products = sum(n for op, n in counted[part].items() if str(op) == "aten.mm")
        assert products == sum(often * floor.operations(model.config, step)
                               for step, often in steps.items())


def test_every_part_takes_time(monkeypatch):
    """The number of threads is restored afterwards."""
    monkeypatch.setattr(floor, "LEAST", 1e-3)
    config, threads = GPTConfig(10, 8, 12, 2, 4, 2, 2), torch.get_num_threads()
    found = floor.floor(config, prompts=2, prompt_tokens=3, group_size=2, new_tokens=3, threads=2)
    assert set(found) == {"sampling", "training"} and min(found.values()) > 0
    assert min(floor.attention(config, 2, 3, [3, 1, 2, 2]).values()) > 0
    assert torch.get_num_threads() == threads
