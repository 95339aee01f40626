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


def test_the_thought_that_states_nothing_goes_last_and_parents_keep_their_names():
    def sample(texts, n):
        return [["what?"] * n if text.startswith("1+2=?") else sloppy([text], n)[0]
                for text in texts]

    problem = Arithmetic().pose("1+2-5-1")
    graph, = graph_of_thoughts.search([problem], sample, Arithmetic(), 2, 2, 1)
    assert [thought["answer"] is None for thought in graph] == [False, False, True]
    assert [thought["of"] for thought in graph] == [[], [0], []]
    assert graph[0]["answer"] == graph[1]["answer"] + 1


def test_the_answer_that_most_state_is_kept():
    assert graph_of_thoughts.keep(["x", "Answer: 2", "Answer: 3", "Answer: 3"],
                                  Arithmetic().parse) == (3, "Answer: 3")
    assert graph_of_thoughts.keep(["Answer: 2", "Answer: 3"],
                                  Arithmetic().parse) == (2, "Answer: 2")


def sloppy(texts, n):
    """A solver that adds 1 to every sum, a critic who sees it, and a reviser who mends it."""
    found = []
    for text in texts:
        total = sum(int(x) for x in re.findall("[+-]?[0-9]+", text.split("=")[0]))
        if text.endswith("Critique:\n"):
            stated = int(text.partition("Answer: ")[2].split("\n")[0])
            said = f"{total} {'ok' if stated == total else 'no'}"
        else:
            said = f"Answer: {total + (not text.endswith('Revise:' + chr(10)))}"
        found.append([said] * n)
    return found


@given(st.integers(2, 20), st.integers(2, 5), st.integers(0, 99))
def test_refined_thoughts_are_mended_before_they_are_put_together(terms, size, seed):
    rng = random.Random(seed)
    numbers = [rng.randint(1, 9)] + [rng.choice((-1, 1)) * rng.randint(1, 9) for _
                                     in range(terms - 1)]
    problem, task = Arithmetic()._problem(numbers), Arithmetic()
    right, = graph_of_thoughts.search([problem], sloppy, task, size, 2, 3)
    assert right[-1]["answer"] == sum(numbers)
    wrong, = graph_of_thoughts.search([problem], sloppy, task, size, 2, 0)
    assert wrong[-1]["answer"] != sum(numbers) or len(wrong) > 1
    assert len(right) == 2 * len(wrong)                         # each has one parent that it mends
    mended = [t for t in right if t["prompt"].endswith("Revise:\n")]
    assert len(mended) == len(wrong)
    for thought in mended:
        (parent,) = thought["of"]
        assert right[parent]["answer"] == thought["answer"] + 1
    used = [place for thought in right for place in thought["of"]]
    assert sorted(used) == list(range(len(right) - 1))


def test_a_revision_without_an_answer_does_not_count_and_rounds_are_kept_to():
    said = []

    def sample(texts, n):
        said.extend(texts)
        kind = texts[0].rsplit("\n", 2)[-2] if texts[0].count("\n") > 1 else "solve"
        return [[{"Critique:": "1+2=3 no", "Revise:": "what?"}.get(kind, "Answer: 4")] * n
                for _ in texts]

    problem = Arithmetic().pose("1+2")
    graph, = graph_of_thoughts.search([problem], sample, Arithmetic(), 2, 1, 3)
    assert [t["answer"] for t in graph] == [4] and len(said) == 3   # solved, criticised, revised
