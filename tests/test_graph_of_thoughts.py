"""Graph of thoughts: parts that add up to the whole."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from minipost.tasks.arithmetic import Arithmetic
from minipost.test_time import graph_of_thoughts


def calculator(texts, n):
    """A solver of chains who is right but for the first sample of each."""
    found = []
    for text in texts:
        total = sum(int(x) for x in re.findall("[+-]?[0-9]+", text.split("=")[0]))
        found.append([f"Answer: {total + (k == 0) * (n > 1)}" for k in range(n)])
    return found


@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 99))
def test_a_graph_adds_up_its_parts(terms, size, seed):
    rng = random.Random(seed)
    numbers = [rng.randint(1, 9)] + [rng.choice((-1, 1)) * rng.randint(1, 9) for _
                                     in range(terms - 1)]
    problem = Arithmetic()._problem(numbers)
    graph, = graph_of_thoughts.search([problem], calculator, Arithmetic(), size, 3)
    assert graph[-1]["answer"] == sum(numbers)
    used = [place for thought in graph for place in thought["of"]]
    assert sorted(used) == list(range(len(graph) - 1))          # all but the last go into another
    for thought in graph:
        chain = thought["prompt"].split("=")[0]
        assert len(re.findall("[0-9]+", chain)) <= size


def test_a_graph_ends_with_the_thought_that_states_nothing():
    def sample(texts, n):
        return [["what?"] * n if text.startswith("1") else ["Answer: 3"] * n for text in texts]

    problem = Arithmetic().pose("1+2-5-1")
    graph, = graph_of_thoughts.search([problem], sample, Arithmetic(), 2, 2)
    assert graph[-1]["answer"] is None and graph[-1]["text"] == "what?" and len(graph) == 2


def test_the_answer_that_most_state_is_kept():
    assert graph_of_thoughts.keep(["x", "Answer: 2", "Answer: 3", "Answer: 3"],
                                  Arithmetic().parse) == (3, "Answer: 3")
    assert graph_of_thoughts.keep(["Answer: 2", "Answer: 3"],
                                  Arithmetic().parse) == (2, "Answer: 2")
