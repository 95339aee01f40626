"""The table of searches: what its cells are made of."""

from scripts import bench_search as bench


def result(seconds, tokens, right, greedy=("a",)):
    name = bench.WANTED[0]
    return {"searches": {name: {"seconds": seconds, "tokens": tokens, "right": right}},
            "greedy": {"sums": list(greedy)}}


FOUND = {"own batched": [result(0.2, 100, 1.0), result(0.4, 120, 0.5), result(0.3, 110, 0.9)],
         "peer batched": [result(0.8, 90, 0.8), result(2.0, 130, 0.7), result(0.9, 100, 0.6)]}
FOUND |= {"own alone": [result(0.6, 100, 1.0)], "peer alone": [result(0.5, 90, 0.8)]}


def test_a_row_has_medians_ratios_of_pairs_and_rates():
    name = bench.WANTED[0]
    assert bench.row(name, "batched", FOUND) == [
        f"{name}, batched", "0.300", "0.900", "3.0 [3.0, 5.0]", "<= 0.5 s", "yes", "110", "100",
        "367", "111", "0.80", "0.70"]
    assert bench.row(name, "alone", FOUND)[3:6] == ["0.8 [0.8, 0.8]", "<= 0.5 s", "no"]
    assert len(bench.row(name, "alone", FOUND)) == len(bench.COLUMNS)


def test_sides_whose_likeliest_answers_differ_are_not_compared():
    assert bench.alike(FOUND)
    assert not bench.alike({**FOUND, "peer alone": [result(0.5, 90, 0.8, ["b"])]})


def test_every_search_is_one_that_there_is():
    for method, settings in bench.SEARCHES.values():
        bench.test_time.load(method).Config(**settings)
