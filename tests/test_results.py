"""Rewards by problem."""

from minipost.measure.results import Result


def test_rewards_stand_in_the_order_of_the_problems():
    assert Result.of([1.0, 0.5], ["a", "b"]).of_each(2) == [1.0, 0.5]
    some = Result.of([1.0, 0.5], ["a", "b"], rows=[1, 3])
    assert some.of_each(5) == [None, 1.0, None, 0.5, None]
    assert some.of_each(0) == [None, 1.0, None, 0.5]
