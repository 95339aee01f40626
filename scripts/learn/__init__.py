"""docs/learn.md, the page to learn from: its code, its exercises, and what checks an answer.

    page.py         fills the page's blocks of code from the files that they name
    exercises.py    the exercises: what is asked, the oracle of each, arguments to try it on
    differences.py  says in a sentence what a function does otherwise than its oracle
    __main__.py     the command line
"""
