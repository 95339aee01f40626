"""A run: what a method may ask for while it trains.

    the policy, and other modules by name      run.policy, learner, frozen, reference
    problems, samples and what they are worth  problems, sample, grade, score
    random streams                             rng, at, aside
    the same work in every rank                for_all, micro_batches

Every random stream follows from (seed, step, purpose).  So the state of a run is its modules and
the number of steps made, and a resumed run repeats the uninterrupted one bit for bit.
"""

import copy
import math
import os
import random
import weakref
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from minipost import checkpoint, files, parallel
from minipost.chat import Messages
from minipost.datasets.chats import turns_of
from minipost.datasets.rewards import Said, Told, TrainerState, ask
from minipost.datasets.rows import File
from minipost.datasets.tools import with_tool
from minipost.engine.head import COPIES, WHOLE
from minipost.engine.lora import off
from minipost.engine.packed import alike
from minipost.engine.shares import by_prompt, share_out
from minipost.errors import MinipostError, expected
from minipost.optim import Learner, Optimizer
from minipost.parts import Frozen, Past, learner, likeliest, rounded, sharding
from minipost.rollout import (
    NO_TOKENS,
    Rollout,
    check_context,
    check_prompts,
    concat,
    final_score,
    generate,
    logprobs,
    pack,
    received,
    repeats,
)
from minipost.tasks.base import Problem, Task
from minipost.tokenizer import written

ROWS = 1024  # most sequences that a rank samples at once
CPU_BYTES = 2**30          # most that a training pass keeps, or the caches of sampling
GPU_SHARE = 0.35           # the same, of the memory of a GPU
REWARD_MODEL = "reward model"  # the name of the part that learns, or gives, the score


@lru_cache(maxsize=8)
def shuffled(n, name):
    """The numbers 0 .. n - 1 in the order of this name."""
    order = list(range(n))
    random.Random(name).shuffle(order)
    return order


@dataclass
class Run:
    """One training run.  `step` is the number of the current step, from 0 on."""

    policy: Learner
    vocabulary: Any
    task: Any
    reward: Any                 # f(prompts, completions, **columns) -> list of float
    hidden: bool = False        # `reward` only measures and labels; no learner may score by it
    reward_timeout: float = 0.0  # seconds that a call of the reward function may take; 0: no limit
    seed: int = 0
    step: int = 0
    max_new_tokens: int = 48    # longest response, in tokens
    micro_batch_size: int = 16  # sequences in one forward and backward pass
    tokens: int = 0             # response tokens sampled or trained on so far
    carried: dict = field(default_factory=dict)  # numbers that a method carries from step to step
    reward_model: Any = None    # what `score` asks instead of `reward`
    lag: int = 0                # `rollout` is by the policy of so many steps ago
    sampler_bits: int = 0       # and with weights rounded to so many bits; 0: as they are
    sampler_top_k: int = 0      # and of so many likeliest tokens; 0: of all
    recompute: bool = False     # let training's own log-probs replace those of the sampler
    control_tokens: str = "plain"  # how control tokens in the rows of a file are read
    origin: str = ""            # the model directory that it began with
    dtype: str = "float32"      # of the weights that are saved
    merge: bool = False         # save adapters added to the weights, instead of alone
    total: int = 0              # steps that the run will have made; 0 where it trains nothing
    keep_rollouts: int = 0      # steps between the rollouts that `keep` holds; 0: none
    optimizer: Optimizer = "adamw"  # of the learners that a method asks for
    server: Any = None          # a vLLM server that answers in the policy's place
    shard: str = ""             # the device on which ranks hold a part of each weight; "": whole

    def __post_init__(self):
        self.said, self.kept = Said(), []       # by reward functions; rows of a table, see `keep`
        self.watches: list[Any] = []            # what `keep` tells of every step (measure/watch.py)
        self.training: Any = None               # which training of the API has begun last
        self.temperature = 1.0                  # of the last rollout
        self.epoch = 0.0                        # how often `deal` has gone through its rows
        self.sampled_at, self.difference = None, -1.0  # updates at the last rollout; see `compare`
        # By key, "learner/NAME" or "frozen/NAME".  `saved` is for parts that are asked for later.
        self.parts: dict[str, Any] = {"learner/policy": self.policy}
        self.counted(self.policy)
        self.holders: dict[str, set] = {}       # of each mark, see `holding`
        self.saved: dict[str, tuple] = {}

    # ---- the parts that a step depends on

    def part(self, key, make):
        """The part of this name.  The first call makes it, or restores it as it was saved."""
        if key not in self.parts:
            self.parts[key] = made = make()
            if key in self.saved:
                made.restore(*self.saved.pop(key))
        return self.parts[key]

    def learner(self, name, make, **options):
        """The learner of this name; make() gives the module that it trains."""
        options = {"optimizer": self.optimizer, **options}
        made = self.part(f"learner/{name}", lambda: learner(make(), self.shard, **options))
        return self.counted(made)

    def counted(self, made):
        """A learner, which is told how far it is where its ranks have a budget."""
        if allocator := getattr(made, "allocator", None):
            me = weakref.proxy(self)    # no circle, which would keep a run's memory after its end
            made.gone = lambda: me.gone(allocator.since(me.step))
        return made

    def gone(self, since):
        """The share of the run's steps from `since` on that are made when this one is.

        0 where the run has no end.
        """
        return (self.step + 1 - since) / max(1, self.total - since) if self.total else 0.0

    def frozen(self, name, make):
        """The frozen module of this name; make() gives it."""
        return self.part(f"frozen/{name}", lambda: Frozen(make(), self.shard)).module

    def reference(self):
        """A frozen copy of the policy as it was when a reference was first asked for.

        With LoRA it is the same weights, and the adapters of that time, or none if they had not
        learnt yet.
        """
        return self.frozen("reference", lambda: off(copy.deepcopy(self.policy.module)))

    def knows(self, key):
        """Whether there is a part of this name, be it in a saved state that nobody asked yet."""
        return key in self.parts or key in self.saved

    def forget(self, key):
        """Drop a part, so that the next call that asks for it makes it anew."""
        self.parts.pop(key, None)
        self.saved.pop(key, None)

    @property
    def learners(self):
        """{name: Learner} of those that have been asked for."""
        return {key.removeprefix("learner/"): part for key, part in self.parts.items()
                if key.startswith("learner/")}

    def state(self):
        """(tensors, facts) for tensor_file.save_state: what `restore` takes."""
        tensors, learners = {}, {}
        held = self.saved | {key: part.state() for key, part in self.parts.items()}
        for key, (found, numbers) in held.items():
            tensors |= {f"{key}/{name}": tensor for name, tensor in found.items()}
            if numbers:
                learners[key.removeprefix("learner/")] = numbers
        return tensors, {"step": self.step, "tokens": self.tokens, "carried": self.carried,
                         "learners": learners}

    def restore(self, tensors, facts):
        """Continue from what `state` gave.  A part that is asked for later is restored then."""
        self.step, self.tokens = facts["step"], facts["tokens"]
        self.carried = dict(facts["carried"])
        numbers = {f"learner/{name}": found for name, found in facts["learners"].items()}
        for name, tensor in tensors.items():
            kind, part, rest = name.split("/", 2)
            key = f"{kind}/{part}"
            self.saved.setdefault(key, ({}, numbers.get(key, [])))[0][rest] = tensor
        self.policy.restore(*self.saved.pop("learner/policy"))

    def save(self, directory, part="policy", merge=None):
        """Write a model directory: of the policy, or of another learner, such as "reward model".

        merge: add adapters to the weights instead of writing them alone; the run's own if None.
        MinipostError where a run of the command line is in the directory.
        """
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            raise MinipostError(f"directory is {directory!r:.40}; expected the name of a folder to "
                                "save the model in")
        if files.is_run(directory):
            raise MinipostError(f"{directory}: holds a run of minipost.train, whose config.json "
                                "would be lost; choose another folder")
        if part not in self.learners:
            raise MinipostError(f"the run has trained no {part!r:.40}; it has "
                                f"{', '.join(self.learners)}")
        checkpoint.save(directory, self.learners[part].module, self.origin, self.dtype,
                        self.vocabulary.end, self.vocabulary.given,
                        self.merge if merge is None else merge)

    # ---- random streams

    def rng(self, purpose):
        """A fresh random.Random for this purpose at this step of this seed."""
        return random.Random(f"{self.seed}/{self.step}/{purpose}")

    @contextmanager
    def at(self, step):
        """Inside the block every random stream is that of another step."""
        now, self.step = self.step, step
        try:
            yield
        finally:
            self.step = now

    @contextmanager
    def once(self, step):
        """Inside the block is the work of one step, which a run that is resumed later does again.

        Then its tokens are not counted again, and what reward functions log is no part of the step.
        """
        tokens, said, again = self.tokens, self.said, self.step != step
        if again:
            self.said = Said()
        try:
            with self.at(step):
                yield
        finally:
            if again:
                self.tokens, self.said = tokens, said

    @contextmanager
    def aside(self):
        """Inside the block answers are measured and not learnt from: their tokens are not counted.

        The random streams are those of step 0.  So two models, or one at two times, answer the
        same problems with the same random numbers.
        """
        tokens = self.tokens
        try:
            with self.at(0):
                yield
        finally:
            self.tokens = tokens

    @contextmanager
    def on(self, task):
        """Inside the block the run is about another task and that task's own reward."""
        before = self.task, self.reward, self.hidden
        self.task, self.reward, self.hidden = task, task.reward, task.hidden
        try:
            yield
        finally:
            self.task, self.reward, self.hidden = before

    # ---- problems and samples

    def problems(self, n, again=0):
        """The step's n training problems, the same in every rank; `again` counts further draws.

        A finite list is used in epochs, each in an order of its own.  Other tasks sample, and so
        do further draws in the same step.
        """
        if again or self.task.training is None:
            return self.task.sample(n, self.rng(f"problems {again}"))
        return self.deal(self.task.training(), n)

    def deal(self, rows, n, since=0):
        """The step's n of these rows.

        From step `since` on the rows are used in epochs, each in an order of its own.
        """
        first = (self.step - since) * n
        self.epoch = first / len(rows)
        places = (divmod(place, len(rows)) for place in range(first, first + n))
        return [rows[shuffled(len(rows), f"{self.seed}/epoch {epoch}")[k]] for epoch, k in places]

    def sample(self, problems, group_size, begun=None, **options):
        """`group_size` responses to each problem: a Rollout.  Options as in `complete`.

        begun: the ids that the answers to each problem begin with; the Rollout's mask has the rest.
        Where the task acts, its tool answers calls (datasets/tools.py).
        """
        begun = begun or [[]] * len(problems)
        prompts = [self.prompt_ids(p.prompt) + ids for p, ids in zip(problems, begun)]
        if not self.task.acts:
            return self.complete(prompts, group_size, **options)
        stop, before = self.holding(self.task.call_end), self.tokens
        purpose = options.pop("purpose", "rollout")

        def complete(prompts, group_size, turn, room):
            return self.complete(prompts, group_size, stop=stop, max_new_tokens=room,
                                 purpose=f"{purpose} {turn}" if turn else purpose, **options)

        rollout = with_tool(complete, self.vocabulary, self.task, problems, prompts, group_size,
                            options.pop("max_new_tokens", None) or self.max_new_tokens, stop)
        self.tokens = before + int(rollout.mask.sum())  # of the tool nothing counts
        return rollout

    def holding(self, mark):
        """The ids whose text holds a mark.  A set."""
        if mark not in self.holders:
            size, decode = self.policy.module.config.vocab_size, self.vocabulary.decode
            self.holders[mark] = {i for i in range(size) if mark in decode([i])}
        return self.holders[mark]

    def rollout(self, problems, group_size, *, temperature, purpose="rollout", corrected=False):
        """`sample` by the policy, to learn; `lag`, `sampler_bits` and `sampler_top_k` change it.

        The sampler decodes with other kernels than training, so its log-probs differ by rounding:
        in float32 by some 1e-5 nats, in bfloat16 by up to 0.5.  With `recompute`, and where a
        server samples, logp is what training computes, so that the first ratios are 1.
        corrected: the method weighs tokens by what the sampler's log-probs differ, so those of a
        server stay.
        """
        module, self.temperature = self.policy.module, temperature
        if self.lag:
            module = self.part("frozen/past", lambda: Past(self.policy, self.lag)).at(
                self.step, self.policy)
        if self.sampler_bits:
            module = rounded(module, self.sampler_bits)
        if self.sampler_top_k:
            module = likeliest(module, self.sampler_top_k)
        rollout = self.sample(problems, group_size, temperature=temperature, purpose=purpose,
                              module=None if module is self.policy.module else module)
        self.sampled_at = self.policy.updates
        if self.recompute if self.server is None else not corrected:
            logp = self.logprobs(module, rollout, temperature).to(rollout.logp)
            self.compare(logp, rollout)
            self.sampled_at, rollout = -1, replace(rollout, logp=logp)
        return rollout

    def compare(self, logp, batch):
        """Note the largest difference of log-probs (b, T) from those of the sampler.

        To be called in every pass.  Once the policy has moved, nothing is noted.
        """
        if self.policy.updates == self.sampled_at and len(batch):
            most = float((logp.detach() - batch.logp).abs().max())
            self.difference = max(self.difference, most)

    def differences(self):
        """What `compare` noted in any rank since the last call, as a metric; {} if nothing."""
        if self.sampled_at is None:
            return {}
        most = parallel.largest(self.difference)
        self.sampled_at, self.difference = None, -1.0
        return {"sampling_logp_difference/max": most} if most >= 0 else {}

    def complete(self, prompts, group_size, *, temperature, module=None, purpose="rollout",
                 stop=frozenset(), max_new_tokens=None):
        """`group_size` responses to each prompt, given as ids: a Rollout, gathered in every rank.

        `stop`: ids that end a response besides EOS.  `max_new_tokens`: self.max_new_tokens if None.
        `module`: who answers, the policy if None.
        """
        module, max_new_tokens = module or self.policy.module, max_new_tokens or self.max_new_tokens
        if self.shard:
            module = sharding().gathered(module)
        earlier = repeats(prompts)
        mine = parallel.share(range(len(prompts) * group_size))
        seed = (self.seed, self.step, zlib.crc32(purpose.encode()))
        size, part = rows_at_once(module, max(map(len, prompts)) + max_new_tokens), None
        if self.server is not None and module is self.policy.module:
            check_prompts(prompts)
            check_context(module, max(map(len, prompts)), max_new_tokens)
            mine = range(len(prompts) * group_size if parallel.rank() == 0 else 0)
            part = self.served(prompts, group_size, temperature, seed, earlier, max_new_tokens,
                               {*self.vocabulary.eos, *stop}) if len(mine) else None
        elif len(mine):
            part = concat([generate(
                module, [prompts[row // group_size] for row in piece],
                max_new_tokens=max_new_tokens, eos={*self.vocabulary.eos, *stop},
                pad=self.vocabulary.pad, temperature=temperature, seed=seed,
                repeat=[earlier[row // group_size] * group_size + row % group_size
                        for row in piece],
            ) for piece in (mine[k : k + size] for k in range(0, len(mine), size))],
                self.vocabulary.pad)
        rollout = gather(part, mine.start, len(prompts) * group_size, prompts,
                         max_new_tokens, self.vocabulary, module.device)
        self.tokens += int(rollout.mask.sum())
        return rollout

    def served(self, prompts, group_size, temperature, seed, earlier, max_new_tokens, ends):
        """What `complete` gives, by the server, once it has the policy's weights as they are."""
        module = self.policy.module
        self.server.follow(self.policy.flat._version, lambda to: self.save(to, merge=True))
        answers = self.server.complete(
            prompts, group_size, max_new_tokens=max_new_tokens, ends=ends,
            unused=[] if module.unused is None else module.unused.nonzero()[:, 0].tolist(),
            vocab_size=module.config.vocab_size, temperature=temperature, seed=seed,
            repeat=earlier)
        return received([ids for ids in prompts for _ in range(group_size)], answers, ends,
                        self.vocabulary.pad)

    def encode(self, problems, answers):
        """Problems, or the texts of prompts, with an answer each, as Sequences.

        Of an answer in Messages the assistant's turns are learnt.

        With --on-long-row truncate the end of an answer is cut that is too long.  MinipostError
        where a prompt has no tokens, or passes the context with its answer; it names the place of a
        row.
        """
        policy, words = self.policy.module, self.vocabulary
        problems = [Problem(each) if isinstance(each, str) else each for each in problems]
        rows = []
        for problem, text in zip(problems, answers, strict=True):
            try:
                how = self.reading(text) | self.reading(problem.prompt)
                before, after, learnt = written(words, problem.prompt, text, **how)
                if not before:
                    raise MinipostError(NO_TOKENS)
                if isinstance(self.task, File) and self.task.on_long_row == "truncate":
                    room = max(0, self.longest - len(before))
                    after, learnt = after[:room], learnt[:room]
                check_context(policy, len(before), len(after), problem.prompt, text)
            except MinipostError as error:
                place = problem.place and f"{problem.place}: "
                raise MinipostError(f"{place}{error}") from None
            rows.append((before, after, learnt))
        ids, ends, masks = zip(*rows)
        return pack(ids, ends, words.pad, masks).to(policy.device)

    @property
    def longest(self):
        """Tokens that a prompt with an answer to learn may have."""
        context = self.policy.module.context
        return self.task.longest(context) if isinstance(self.task, File) else context

    def prompt_ids(self, text):
        """Ids of a problem's prompt.  MinipostError where there are none.

        Text that a model wrote is encoded by the vocabulary instead, as plain characters.
        """
        ids = self.vocabulary.prompt(text, **self.reading(text))
        if not ids:
            raise MinipostError(NO_TOKENS)
        return ids

    def reading(self, text):
        """How `Vocabulary` reads a text of a problem, as options; control tokens or characters.

        MinipostError where a row spells out a control token and nobody said what it means.
        """
        if self.control_tokens == "plain" or self.task.name != "file":
            return {}
        if said := self.vocabulary.complaint(text, self.control_tokens):
            raise MinipostError(f"{self.task.data}: the text {text[:40]!r} {said}")
        return {"control": self.control_tokens == "tokens"}

    def texts(self, rollout):
        """The completions as text."""
        return [self.vocabulary.decode(ids) for ids in rollout.responses()]

    def answer(self, prompts, temperature=0.0):
        """The policy's answer to each prompt, a text each.  Temperature 0 is greedy.

        prompts: a list of texts, or of lists of messages {"role": ..., "content": ...}.
        MinipostError where it is a single one, or something else.
        """
        single = isinstance(prompts, str | dict) or not isinstance(prompts, Iterable)
        prompts = prompts if single else list(prompts)
        if single or any(isinstance(one, dict) for one in prompts):
            raise MinipostError(f"prompts is {prompts!r:.40}; expected a list of texts, or of "
                                "lists of messages; a single prompt stands in a list too")
        if expected(temperature, float) or not 0 <= temperature < math.inf:
            raise MinipostError(f"temperature is {temperature!r:.40}; expected a number of at "
                                "least 0")
        asked = [as_prompt(k, prompt) for k, prompt in enumerate(prompts, 1)]
        if not asked:
            return []
        if any(isinstance(text, Messages) for text in asked):
            self.vocabulary.begin_chat()
        with self.aside():
            rollout = self.sample([Problem(text) for text in asked], 1, temperature=temperature)
        return self.texts(rollout)

    # ---- rewards and scores

    def grade(self, problems, rollout, none=False):
        """The reward function's value for every row.  (B,)  none: as in `ask`."""
        rows = [problems[i] for i in rollout.prompt.tolist()]
        return self.grade_texts(rows, self.texts(rollout), rollout=rollout, none=none).to(
            rollout.logp)

    def gold(self, problems, rollout):
        """`grade` for what is only logged: NaN too where nothing says what is right.  (B,)"""
        if isinstance(getattr(self.reward, "__self__", None), File) and not all(
                p.columns.get("completion") for p in problems):
            return rollout.logp.new_full((len(rollout),), math.nan)
        return self.grade(problems, rollout, none=True)

    def grade_texts(self, problems, texts, rule=None, rollout=None, none=False):
        """The reward of one text to each problem.  (B,)  Rank 0 asks and tells the others.

        rule: another function of the reward's form.  rollout: of which these are the texts.  none:
        as in `ask`.
        """
        reward = torch.zeros(len(texts), dtype=torch.float64)
        if parallel.rank() == 0:
            function = rule or self.reward
            own = Task in type(getattr(function, "__self__", None)).__mro__  # it needs no more
            more = None if own or function is not self.reward else self.told(texts, rollout)
            values = ask(function, problems, texts, self.reward_timeout, more, none)
            reward = torch.tensor(values, dtype=torch.float64)
        parallel.all_reduce(reward)
        return reward

    def told(self, texts, rollout=None):
        """What the reward function is told beside the rows, of these texts (of this rollout)."""
        return Told(lambda: self.completion_ids(texts, rollout),
                    TrainerState(self.step, self.total, self.epoch), self.said)

    def completion_ids(self, texts, rollout=None):
        """The ids of each text as they were sampled, EOS included, or as they are encoded."""
        if rollout is None:
            return [self.vocabulary.response(text) for text in texts]
        return rollout.written()

    def keep(self, problems, rollout, reward, adv, value=None):
        """Hold the answers that a step learns from, if this is a step of those to keep.

        problems: those that `rollout.prompt` counts.  reward (B,); adv (B,) or (B, T), the mean
        over an answer's tokens is kept; value (B, T) of a critic, for the report.
        """
        for watch in self.watches:
            watch(problems, rollout, reward, adv, value)
        if not self.keep_rollouts or (self.step + 1) % self.keep_rollouts or parallel.rank():
            return
        each = rollout.per_answer(adv).tolist()
        rows = zip(rollout.prompt.tolist(), self.texts(rollout), reward.tolist(), each,
                   rollout.logp.sum(1).tolist(), rollout.lengths.tolist(),
                   rollout.finished.tolist())
        for number, text, worth, gain, logp, tokens, finished in rows:
            problem = problems[number]
            self.kept.append({
                "step": self.step + 1, "place": problem.place, "prompt": problem.prompt,
                "completion": text, "reward": worth, "advantage": gain, "logp": logp,
                "tokens": tokens, "finished": finished, **self.said.of(problem.prompt, text)})

    def score(self, problems, rollout, none=False):
        """The score that learners get for every row.  (B,)

        It is the reward model's score if there is one, else the reward.  none: whether a row may
        have none, which is NaN.  MinipostError where the task hides its reward, or a reward model's
        score is not finite.
        """
        if self.reward_model is None:
            if self.hidden:
                raise MinipostError(
                    f"the reward of {self.task.name} is hidden from learners; train a reward model "
                    f"(--algo reward --task {self.task.name}) and name it with --reward-model, or "
                    "give a function with --reward"
                )
            return self.grade(problems, rollout, none)
        return self.finite_scores(rollout)

    def finite_scores(self, rollout):
        """The reward model's score of every row.  (B,)  MinipostError where one is not finite.

        Equal answers have equal scores.  Micro-batches of other widths would round them otherwise,
        and a group of equal answers would not tie.
        """
        which, first = alike(rollout.tokens, rollout.spans()[1] + 1)
        score = self.final_scores(self.reward_model, rollout)[first][which]
        if not score.isfinite().all():
            row = int((~score.isfinite()).nonzero()[0])
            raise MinipostError(f"the reward model's score is {float(score[row])} for the "
                                f"completion {self.texts(rollout)[row][:40]!r}")
        return score

    def score_by(self, model, module=None):
        """Let `score` ask this reward model, normalised on samples of the policy as it is now.

        module: who gives these samples in the policy's place.

        Preferences determine a score only up to a shift, and nothing fixes its scale.  So it is
        shifted and scaled to mean 0 and deviation 1 (Ziegler et al. 2019, arxiv.org/abs/1909.08593,
        sec. 2.1).
        """
        known = self.knows(f"frozen/{REWARD_MODEL}")     # normalised before it was saved
        self.reward_model = self.frozen(REWARD_MODEL, lambda: copy.deepcopy(model))
        if not known:
            rollout = self.sample(self.problems(128, again=1), 2, temperature=1.0,
                                  purpose="normalise", module=module)
            scores = self.finite_scores(rollout)
            if not scores.std() > 0:
                raise MinipostError(f"the reward model scores {len(scores)} answers of the policy "
                                    f"all alike ({float(scores[0]):g}); nothing can be learnt from "
                                    "it")
            self.reward_model.normalise(scores)

    def final_scores(self, model, seqs):
        """A value head's output at every row's last real token.  (B,)"""
        found, = self.for_all(lambda batch: [final_score(model, batch)[:, None]], seqs)
        return found[:, 0]

    def logprobs(self, model, seqs, temperature=1.0):
        """Log-prob of every response token under a model, without a gradient.  (B, T)"""
        return self.for_all(lambda batch: [logprobs(model, batch, temperature)], seqs)[0]

    def log_ratio(self, rollout, reference, temperature):
        """log pi/ref of each sampled token, 0 where no reference is kept.  (B, T)"""
        if reference is None:
            return torch.zeros_like(rollout.logp)
        return rollout.logp - self.logprobs(reference, rollout, temperature)

    # ---- the same work in every rank

    @torch.no_grad()
    def for_all(self, f, seqs, outputs=1, whole=False):
        """What f(batch) gives for all rows, computed in shares and gathered in every rank.

        f returns a list of `outputs` tensors (b, t) for a micro-batch of b rows.  The result is as
        many tensors (B, T), zero in columns beyond a micro-batch's t.  whole: as `micro_batches`.
        """
        found = [torch.zeros(seqs.mask.shape, dtype=self.policy.dtype,
                             device=seqs.mask.device) for _ in range(outputs)]
        for i in self.micro_batches(range(len(seqs)), seqs, whole=whole):
            for every, part in zip(found, f(seqs[i]), strict=True):
                every[i, : part.shape[1]] = part.to(every.dtype)
        parallel.all_reduce(*found)
        return found

    def micro_batches(self, rows, *seqs, whole=False):
        """This rank's part of these rows, cut into micro-batches.

        seqs: the Sequences that have the rows, several where a row stands in each of them.  Rows
        that share a prompt come together, since it is then computed once.  Else they come in order
        of length, so that little of a micro-batch is padding.  Each rank has about the same work.
        A micro-batch has at most `micro_batch_size` rows, and less where they would take too much
        memory.  whole: the pass keeps the logits of all its tokens, see GPT.tokens_within.
        With sharding, a pass needs all ranks.  One that has fewer passes than another ends with
        micro-batches of no rows.
        """
        mine = share_out(by_prompt(list(rows), seqs), parallel.world(), parallel.rank())
        passes = -(-len(mine) // self.micro_batch_size)
        size = -(-len(mine) // max(1, passes))
        model = self.policy.module
        most = model.tokens_within(memory(model.device), whole)
        cut, room, last = [], 0, None
        for row in mine:
            cost = row.own + row.shared * (row.group != last)
            if cost > room or len(cut[-1]) == size:
                cut.append([])
                room, cost = most, row.own + row.shared
            cut[-1].append(row.index)
            room, last = room - cost, row.group
        if self.shard:
            cut += [[]] * (int(parallel.largest(len(cut))) - len(cut))
        return cut


def as_prompt(number, prompt):
    """A prompt of `answer` as a text or as Messages.  MinipostError names its number."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list | tuple) or not prompt:
        raise MinipostError(f"prompt {number} is {prompt!r:.40}; expected a text or a list of "
                            "messages")
    try:
        return Messages(turns_of(prompt, "prompt"))
    except ValueError as error:
        raise MinipostError(f"prompt {number}: {error}") from None


def rows_at_once(model, tokens):
    """How many sequences of so many tokens a rank samples at once."""
    config = model.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    size = cache * tokens * model.embed_tokens.weight.element_size()
    if ROWS * config.vocab_size > WHOLE:
        size += 4 * COPIES * config.vocab_size  # the logits of a step
    return max(1, min(ROWS, memory(model.device) // size))


def memory(device):
    """Bytes that one pass may take.  On CPUs the same everywhere, so that runs are the same."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return CPU_BYTES


def gather(part, start, rows, prompts, max_new_tokens, vocabulary, device):
    """The whole Rollout in every rank, from each rank's part.

    Each rank fills its rows of zeros, and the ranks sum up.  (All ranks know every prompt.)
    """
    width = max(map(len, prompts)) + max_new_tokens
    # In one sum, since each takes its time; a float64 holds ids, 0 and 1, and float32 exactly.
    whole = torch.zeros(rows, 3 * width - 1, dtype=torch.float64)
    tokens, mask, logp, finished = whole.split([width, width - 1, width - 1, 1], 1)
    if part is not None:
        mine = slice(start, start + len(part))
        tokens[mine] = vocabulary.pad
        tokens[mine, : part.tokens.shape[1]] = part.tokens.to(whole)
        mask[mine, : part.mask.shape[1]] = part.mask.to(whole)
        logp[mine, : part.logp.shape[1]] = part.logp.to(whole)
        finished[mine, 0] = part.finished.to(whole)
    parallel.all_reduce(whole)
    prompt = torch.arange(len(prompts)).repeat_interleave(rows // len(prompts))
    return Rollout(tokens.long(), mask.bool(), logp.float(), prompt,
                   finished[:, 0].bool())[torch.arange(rows)].to(device)
