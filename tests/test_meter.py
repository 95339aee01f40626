"""The metrics of a step."""

import pytest

from minipost.measure.meter import Meter


def test_the_meter_adds_pieces_and_averages_updates():
    meter = Meter("a", "b")
    for piece in (1.0, 2.0, 3.0):
        meter.add(a=piece)
    assert meter.means(2) == {"a": 3.0, "b": 0.0}
    with pytest.raises(KeyError):
        meter.add(c=1.0)
