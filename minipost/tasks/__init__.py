"""The tasks by name.  `file` is --data and is made from its path."""

from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.countdown import Countdown
from minipost.tasks.facts import Facts
from minipost.tasks.recall import Recall
from minipost.tasks.wording import Wording

TASKS = {task.name: task for task in (Arithmetic, Countdown, Facts, Recall, Wording)}
