"""How methods look in plots: told apart where they meet, and names that do not overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost import methods
from scripts import compare, compute_optimal, looks
from scripts.studies import forgetting, pass_at_k

TOGETHER = [compare.METHODS, ["base", *pass_at_k.METHODS], forgetting.METHODS,
            *(curves for _, curves in compute_optimal.CURVES.values())]


@pytest.mark.parametrize("names", TOGETHER)
def test_methods_of_one_plot_have_different_colours(names):
    assert len({looks.colour(name) for name in names}) == len(list(names))


def test_a_colour_means_one_method_in_all_panels_of_a_page():
    every = {name for _, curves in compute_optimal.CURVES.values() for name in curves}
    assert len({looks.colour(name) for name in every}) == len(every)


def test_grpo_looks_alike_among_training_and_test_time_methods():
    assert looks.colour("grpo") == looks.colour(compute_optimal.LEARNT)
    assert set(compare.METHODS) <= set(looks.COLOURS) & set(methods.names())


def test_a_method_that_is_new_has_a_colour_too():
    assert looks.line("new") == looks.line("new") and looks.colour("new") in looks.LATER


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_names_keep_their_order_and_their_distance(heights):
    found = looks.spread(heights, 0.045)
    order = sorted(range(len(heights)), key=lambda k: (heights[k], k))
    placed = [found[k] for k in order]
    assert all(b - a > 0.045 - 1e-9 for a, b in zip(placed, placed[1:]))
    assert -1e-9 <= placed[0] and placed[-1] <= 1 + 1e-9


def test_names_that_have_room_stay_where_they_are():
    assert looks.spread([0.9, 0.1, 0.5], 0.045) == [0.9, 0.1, 0.5]
