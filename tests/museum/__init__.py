"""The bug museum: historic one-line bugs of other libraries, each as a patch of our own code.

    exhibits.py     the bugs: what went wrong where, as `ours` and `theirs`, and the tests that see it
    gallery.py      runs the suite's tests on patched code
    test_museum.py  every exhibit applies, and every test that it names fails on it
    __main__.py     `make museum`: the same as a table
"""
