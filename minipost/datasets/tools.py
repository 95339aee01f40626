"""Answers in which a tool has a say: calls, observations, and a mask that leaves these out.

A task with a tool says which text ends a call (`call_end`) and what the tool writes behind it
(`tool`), the observation.  The policy samples up to a call's end, the observation stands behind it,
and the policy goes on from there.

    tokens   [BOS prompt | a call | observation | a call | observation | the answer EOS]
    mask            0        1          0           1          0              1

An observation is context, as a prompt is: no loss learns it, and its logp is zero.  What was
sampled keeps its ids; no text is encoded anew.
"""

from dataclasses import dataclass
from itertools import count

import torch

from minipost.errors import MinipostError
from minipost.rollout import Rollout, pack


@dataclass
class Answer:
    """An answer as far as it is written: its ids, each one's log-prob, who chose it."""

    problem: int            # the place of its problem
    ids: list
    logp: list
    chosen: list            # True where the policy chose the id, False where the tool wrote it

    def add(self, ids, logp, chosen):
        self.ids += ids
        self.logp += logp
        self.chosen += [chosen] * len(ids)


def observation(task, problem, text):
    """What the tool writes behind a call.  A tool that fails says so; it never raises."""
    try:
        return task.tool(problem, text)
    except Exception as error:  # whatever a task's tool may raise: the answer has to go on
        return f" error: {type(error).__name__}\n"


def with_tool(complete, vocabulary, task, problems, prompts, group_size, room, stop):
    """`group_size` answers to each problem in which the task's tool answers calls.  -> Rollout

    complete(prompts, group_size, round, room) -> the Rollout of responses of at most `room` tokens
    that end with EOS or with an id in `stop`, the ids that end a call.  prompts: lists of ids.
    An answer has at most `room` tokens with its observations.  Where an observation would leave no
    room to go on, the answer ends with its call, unfinished.
    """
    answers = [Answer(k, [], [], []) for k in range(len(prompts)) for _ in range(group_size)]
    going, rollout = answers, complete(prompts, group_size, 0, room)
    device, dtype = rollout.tokens.device, rollout.logp.dtype
    for turn in count(1):
        called = []
        for answer, targets, mask, logp in zip(going, rollout.targets, rollout.mask, rollout.logp,
                                               strict=True):
            left = room - len(answer.ids)
            answer.add(targets[mask][:left].tolist(), logp[mask][:left].tolist(), True)
            if answer.ids[-1] in stop:
                called.append(answer)
        going = []
        for answer in called:
            text = observation(task, problems[answer.problem], vocabulary.decode(answer.ids))
            said = vocabulary.response(text)[:-1]                           # without EOS
            if len(answer.ids) + len(said) < room:
                answer.add(said, [0.0] * len(said), False)
                going.append(answer)
        if not going:
            break
        rollout = complete([prompts[answer.problem] + answer.ids for answer in going], 1, turn,
                           room - min(len(answer.ids) for answer in going))
    seqs = pack([prompts[answer.problem] for answer in answers],
                [answer.ids for answer in answers], vocabulary.pad,
                [answer.chosen for answer in answers])
    logp = torch.zeros(seqs.mask.shape, dtype=dtype)
    for row, answer in enumerate(answers):
        first = len(prompts[answer.problem]) - 1
        logp[row, first : first + len(answer.ids)] = torch.tensor(answer.logp, dtype=dtype)
    finished = torch.tensor([answer.ids[-1] in vocabulary.eos for answer in answers])
    place = torch.tensor([answer.problem for answer in answers])
    return Rollout(seqs.tokens, seqs.mask, logp, place, finished).to(device)


def observations(seqs):
    """How many observations stand in each answer.  (B,)"""
    return (seqs.mask[:, :-1] & ~seqs.mask[:, 1:]).sum(1) + seqs.mask[:, -1] - 1


LEARNS = "learns every token of an answer, and"
GOES_ON = "goes on from the middle of answers, where no tool is asked, and"


def refuse(run, method, why=LEARNS):
    """MinipostError where the task's answers hold observations, for which `method` is not made."""
    if run.task.acts:
        raise MinipostError(f"{method} {why} in those of the task {run.task.name} a tool has a "
                            "say; choose tool-use, or another method that learns from its own "
                            "rollouts, such as grpo")
