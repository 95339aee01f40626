"""Every check on a set-up, in the order in which the doctor reports them."""

from functools import partial

import torch

from minipost import checkpoint
from minipost.chat import Messages, Turns
from minipost.checks import chats, constant, data, model
from minipost.datasets.fitting import TooLong, looked_at
from minipost.datasets.preferences import file_pairs
from minipost.opening import open_run
from minipost.ops import policy_gradient
from minipost.rollout import fits
from minipost.tokenizer import written

SMALL = 50_000_000  # one thread runs a model of fewer parameters as fast as several do


def examine(options, task, device):
    """The Findings of all checks: on files and texts, on samples, on a reward model."""
    run = open_run(options, task, device)
    few = getattr(run.task, "few", "")
    if few:
        run.task = run.task.undivided()  # to look at the rows in any case
    if run.control_tokens == "stop":
        run.control_tokens = "plain"  # `control_texts` speaks of the rows at which a run stops
    if device == "cpu" and sum(p.numel() for p in run.policy.module.parameters()) < SMALL:
        torch.set_num_threads(1)  # on a busy machine each small operation waits for all threads
    tokenizer, scorer = run.vocabulary.tokenizer, None
    if options.reward_model:
        scorer = checkpoint.load_reward_model(
            options.reward_model, run.vocabulary, device, options.dtype)
    found = look_at_texts(run, model.stated_ids(options.model, tokenizer), options, few)
    found += [model.before_prompts(options.model, run.vocabulary),
              model.shown_tokens(run.vocabulary), model.unused_ids(run.policy.module),
              model.weights_as_written(options.model)]
    problems = [p for p in run.problems(options.prompts) if not usable(run, p, ())[0]]
    if problems:
        found += look_at_samples(run, problems, options, scorer)
    else:
        found.append(model.Finding("samples", model.NONE, "no prompt leaves room for an answer"))
    if scorer:
        found.append(model.reward_model_ids(model.stated_ids(options.reward_model, tokenizer)))
    return found


def usable(run, problem, reads=data.ANSWERS):
    """(why a run cannot use a problem, or None; tokens that it has too many, 0 if it fits).

    reads: the answers that it would learn; the longest counts.
    """
    return looked_at(problem, run.policy.module, run.vocabulary, run.max_new_tokens, reads,
                     run.control_tokens if run.task.name == "file" else "plain", run.task)


def reading(run):
    """How `Vocabulary` reads the texts of this run, as options."""
    return {"control": True} if run.task.name == "file" and run.control_tokens == "tokens" else {}


def prompt_length(run, prompt):
    """Tokens of a prompt."""
    return len(run.vocabulary.prompt(prompt, **reading(run)))


def length(run, prompt, answer):
    """Tokens of a prompt with its answer and EOS."""
    before, after, _ = written(run.vocabulary, prompt, answer, **reading(run))
    return len(before) + len(after)


def demonstrations(run, problems):
    """(problem, text): the answers to these problems that training would imitate."""
    rng = run.rng("demonstrations")
    found = [(problem, data.reference(run.task, problem, rng)) for problem in problems]
    return [(problem, text) for problem, text in found if text is not None]


def look_at_texts(run, stated, options, few=""):
    """The findings that need no model: on the problems, on a file's first `options.rows` rows.

    few: why a run would have nothing to learn or to measure.
    """
    task, vocabulary, encode = run.task, run.vocabulary, run.vocabulary.tokenizer.encode
    file, heldout = task.name == "file", task.heldout(400)
    training = task.training() if file else task.sample(400, run.rng("problems"))
    problems = [*training, *task.sides[1]] if file else []
    seen = [(p.place, *usable(run, p)) for p in problems]  # a chat takes a while to be read
    odd = [(place, said) for place, said, _ in seen if said]
    over, limit = [more for _, _, more in seen if more], run.policy.module.context
    if run.max_new_tokens >= limit:
        odd = []  # no row is to blame; the finding on the context says what is
    if file:
        limit = task.longest(limit)
        left = [place for place, said in odd if task.on_bad_row == "skip" or (
            task.on_long_row != "stop" and isinstance(said, TooLong))]
        odd = [(place, said) for place, said in odd if not isinstance(said, TooLong)
               or task.on_long_row == "stop"]
    if file and left:
        places = set(left)  # where nothing is left, the rest looks at all
        training, heldout = ([p for p in side if p.place not in places] or side
                             for side in (training, heldout))
    rows = training[: options.rows]
    given = [(row.prompt, text) for row in rows for text in data.answers_of(row)] or [
        (row.prompt, text) for row, text in demonstrations(run, rows)]
    answers, pairs = [text for _, text in given], data.pairs_of(rows)
    prompts = {row.prompt: prompt_length(run, row.prompt) for row in [*rows, *heldout]}
    answered = [written(vocabulary, *pair, **reading(run)) for pair in given]
    turns = [each for each, pair in zip(answered, given) if isinstance(pair[1], Messages)]
    given_plain = [pair for pair in given if not isinstance(pair[0], Messages)]
    found = [
        model.control_ids(vocabulary, stated), model.eos_in_files(vocabulary, stated),
        model.empty_prompts(prompts.values()),
        model.context(list(prompts.values()), [
            min(n, limit) if file and task.on_long_row == "truncate" else n
            for n in (len(before) + len(after) for before, after, _ in answered)],
                      run.max_new_tokens, run.policy.module.context),
        data.control_texts([*prompts, *answers], vocabulary,
                           options.control_tokens if file else "plain"),
        chats.template_used(vocabulary, list(prompts)),
        chats.assistant_turns(vocabulary, turns),
        data.boundary(given_plain, encode, partial(encode, inside=True)),
        data.round_trip(answers, vocabulary),
    ]
    if not file:
        return [*found, data.held_out_prompts(training, heldout)]
    whole = task.rows
    return [
        *found, data.held_out_prompts(training, heldout,
                                      len(whole) - len(task.training()) if task.eval_data else 0,
                                      task.unused, few),
        data.skipped_rows(task.bad),
        data.long_rows(over, len(problems), limit, task.on_long_row),
        data.unusable_rows(odd, len(problems), task.on_bad_row == "skip"),
        data.divided_prompts(whole), data.repeated_prompts(task.data, whole),
        data.repeated_rows(rows), data.stated_rewards(rows),
        data.equal_pairs(pairs, encode), data.contradictory_pairs(pairs),
        data.length_of_chosen(pairs, encode),
    ]


def look_at_samples(run, problems, options, scorer):
    """The findings on the model, the sampler and the rewards, from answers to some problems."""
    temperature = options.temperature
    rollout = run.sample(problems, options.group_size, temperature=temperature)
    texts, asked = run.texts(rollout), [problems[i] for i in rollout.prompt.tolist()]
    shown = [(problem, text) for problem, text in demonstrations(run, problems)
             if fits(run.policy.module, 0, length(run, problem.prompt, text))]
    logp = model.trainers(run, rollout, temperature)  # read once for both checks
    imitated = run.encode(*zip(*((p.prompt, text) for p, text in shown))) if shown else None
    found = [
        # Where a tool or a user has a say, the policy's parts before the last end as they do.
        model.eos_in_loss(imitated, rollout, run.vocabulary.eos,
                          not any(isinstance(text, Turns) for _, text in shown)),
        model.ratio_at_start(run, rollout, temperature, logp),
        model.sampler_and_trainer(run, rollout, logp),
        model.padding(run.policy.module, rollout, run.vocabulary.pad, temperature),
        model.micro_batches(run.policy, rollout, policy_gradient, temperature),
        data.cut_answers(rollout.finished.tolist(),
                         [len(written(run.vocabulary, p.prompt, text)[1]) for p, text in shown],
                         run.max_new_tokens),
        chats.empty_answers(texts, rollout.finished.tolist()),
        data.parsed_answers(run.task, texts, bool(options.reward)),
    ]
    judged = run.task.name != "file" or options.reward or data.exact(asked)
    values, error = data.ask_often(
        run.reward, asked, texts, shown, run.reward_timeout,
        run.told if options.reward else lambda texts: None) if judged else ({}, "")
    found.append(data.reward_function(values, error, getattr(run.reward, "changed", ())))
    if values:
        found += [data.reward_spread(values["once"], texts, options.group_size),
                  data.reference_rewards(values["reference"], values["once"], values["empty"]),
                  constant.one_answer_to_all(values, *try_constants(run, options))]
    if scorer:
        found += look_at_scorer(run, scorer, rollout, problems, values.get("once"))
    return found


def try_constants(run, options):
    """What the answers that many problems have earn on all: ({answer: rewards}, error)."""
    rng, task = run.rng("constants"), run.task
    rows = task.training() if task.training else task.sample(400, rng)
    rows = rng.sample(rows, min(len(rows), options.rows))
    return constant.try_all(
        constant.common(task, rows, rng), rows[: constant.ROWS], run.reward, run.reward_timeout,
        run.told if options.reward else lambda texts: None)


def look_at_scorer(run, scorer, rollout, problems, values):
    """The findings on a reward model: on the file's pairs, else on sampled answers and rewards."""
    pairs = [p for p in problems if "chosen" in p.columns and all(
        fits(run.policy.module, 0, length(run, p.prompt, text)) for text in data.answers_of(p))]
    ahead, better = [], "was chosen"
    if pairs:
        sides = file_pairs(run, pairs)
        ahead = (run.final_scores(scorer, sides.chosen)
                 - run.final_scores(scorer, sides.rejected)).tolist()
    elif values:
        better, scores = "earns more", run.final_scores(scorer, rollout).tolist()
        ahead = data.gaps(scores, values, len(rollout) // len(problems))
    return [model.reward_model(run, scorer, rollout), model.reward_model_ranks(ahead, better)]
