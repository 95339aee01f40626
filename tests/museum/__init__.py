"""The bug museum: historic bugs of other libraries, each in a function of our own.

    exhibits.py     the bugs: what went wrong where, as code, and the tests that see it
    gallery.py      runs the suite's tests with a bug in the place of our function
    test_museum.py  every function exists, and every test that it names fails on it
    __main__.py     `make museum`: the same as a table
"""
