"""Checks of a set-up before any training: problems, answers and the reward function.

Each check is a function from texts and numbers to a Finding, see model.py.  Answers are `sampled`
(by the policy, `group_size` of them to each problem) or `reference` (training would imitate them).
"""

from collections import Counter

from minipost.checks.model import FAULT, NONE, OK, WARNING, Finding, of
from minipost.datasets.prompts import ANSWERS, NEARLY_ALL, alike, divided, repeats, repetition
from minipost.datasets.rewards import ask
from minipost.datasets.rows import shown
from minipost.datasets.trajectories import reward_of, stated
from minipost.errors import MinipostError

MEASURED = 10  # held-out problems; fewer can hardly tell a gain from chance
FEW = 0.1  # up to this share of the answers, cut or unreadable ones are no finding
MANY = 20  # with fewer pairs, the share of the longer answers means nothing
ENDS = ("<eos>", "</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")


def answers_of(problem):
    """The answers that a row of a file gives."""
    return [problem.columns[key] for key in ANSWERS if isinstance(problem.columns.get(key), str)]


def reference(task, problem, rng):
    """The answer that training would imitate, or None where a file has no good one."""
    if task.name != "file":
        return task.demonstrate(problem, rng)
    if stated(problem) and reward_of(problem) <= 0.5:
        return None
    return next(iter(answers_of(problem)), None)


def first(texts):
    """The first of some texts, for a sentence."""
    return f"the first is {texts[0][:40]!r}"


def exact(problems):
    """Whether each row of a file holds the one right answer, to compare others with."""
    return all(p.columns.get("completion") and not stated(p) for p in problems)


# ---- the reward function

def ask_often(reward, problems, texts, references, limit=0.0, tell=lambda texts: None):
    """({"once", "again", "backwards", "empty", "reference": values}, ""); ({}, error) on failure.

    Ask the reward function about the same rows twice, about them in the other order, about empty
    answers, and about reference answers: (problem, text).  limit: seconds, as in `ask`.
    tell(texts): what else it is told, `more` of `ask`.
    """
    def asking(problems, texts):
        return ask(reward, problems, texts, limit, tell(texts))

    found, back, nothing = {}, slice(None, None, -1), [""] * len(texts)
    try:
        found["once"] = asking(problems, texts)
        found["again"] = asking(problems, texts)
        found["backwards"] = asking(problems[back], texts[back])[back]
        found["empty"] = asking(problems, nothing)
        known, answers = map(list, zip(*references)) if references else ([], [])
        found["reference"] = asking(known, answers) if references else []
    except MinipostError as error:
        return {}, str(error)
    return found, ""


def reward_function(asked, error, changed=()):
    """The function gives every completion, even an empty one, one finite number.

    The number depends on that row alone.  changed: what it changed in the process, in words.
    """
    name, do = "reward function", ("let it return one finite number for every completion, even an "
                                   "empty one")
    if error:
        return Finding(name, FAULT, error, "a run would end when it asks", do)
    if not asked:
        return Finding(name, NONE, "there is none: --reward names none, and the rows state what "
                       "answers are worth or hold none to compare with")
    once, n = asked["once"], len(asked["once"])
    noisy = [abs(a - b) for a, b in zip(once, asked["again"]) if a != b]
    if noisy:
        return Finding(
            name, WARNING, f"asked twice about the same {n} answers it differs on {len(noisy)}, "
            f"by up to {max(noisy):.3g}", "gradients are noisier and no run can be repeated",
            "seed what is random in it, or average several of its values")
    moved = sum(a != b for a, b in zip(once, asked["backwards"]))
    if moved:
        return Finding(
            name, FAULT, f"asked about the same {n} answers in the other order it gives {moved} of "
            "them another value", "answers are paid for what others did",
            "let value i depend on prompts[i], completions[i] and the i-th entry of each column "
            "alone")
    if changed:
        return Finding(
            name, WARNING, f"it changes {', '.join(sorted(changed))}",
            "a run puts that back after each call",
            "let it leave that as it is, or let it count on nothing but its own file")
    return Finding(name, OK, f"the same for {n} answers asked again and in the other order")


def reward_spread(values, texts, group_size):
    """Answers to one prompt differ in reward.  A group in which all tie teaches nothing."""
    name = "reward spread"
    if group_size == 1:
        return Finding(name, NONE, "with a group of 1 no answer has siblings to differ from")
    cut = range(0, len(values), group_size)
    tied = [k for k in cut if len(set(values[k : k + group_size])) == 1]
    at = Counter(values[k] for k in tied)
    alike = sum(len(set(texts[k : k + group_size])) == 1 for k in tied)
    mean = sum(values) / len(values)
    if 2 * len(tied) <= len(cut):
        return Finding(name, OK, f"answers differ in {len(cut) - len(tied)} of {len(cut)} groups "
                       f"of {group_size}; the mean is {mean:.3f}")
    where = ", ".join(f"{n} at {value:g}" for value, n in at.most_common(3))
    if 2 * alike > len(tied):
        todo = "sample at a higher --temperature or ask harder problems"
    elif at.most_common(1)[0][0] <= mean:
        todo = ("fine-tune first (--algo sft), ask easier problems, or take a larger --group-size "
                "or --algo dapo")
    else:
        todo = "ask harder problems, or take --algo dapo, which draws further ones"
    return Finding(
        name, WARNING, f"in {of(len(tied), len(cut), f'groups of {group_size} answers')} all "
        f"rewards tie ({where}"
        + (f"; {alike} of them say the same words" if alike else "") + ")",
        "GRPO, RLOO and pairs learn nothing from them", todo)


def reference_rewards(references, sampled, empty):
    """Reference answers are worth more than the least, and more than an empty answer."""
    name = "reference answers"
    if not references:
        return Finding(name, NONE, "there are no answers that are known to be good")
    values, n = {*references, *sampled, *empty}, len(references)
    low, mean = min(values), sum(references) / n
    if len(values) == 1:
        return Finding(
            name, FAULT, f"the reward function gives {low:g} to every sampled, reference and empty "
            "answer", "nothing can be learnt from it",
            "print what it reads of a completion and compare that with a reference answer")
    worst = references.count(low)
    if 2 * worst > n or (worst and len(values) == 2):
        return Finding(
            name, FAULT if 2 * worst > n else WARNING, f"{of(worst, n, 'reference answers')} get "
            f"the least that any answer gets, {low:g}",
            "a policy that learns what they say is punished for it",
            "let the reward function find the answer in them as they are written, spaces and lines "
            "included")
    if mean < sum(sampled) / len(sampled):
        return Finding(
            name, WARNING, f"{n} reference answers earn {mean:.3f} on average, less than sampled "
            f"ones ({sum(sampled) / len(sampled):.3f})",
            "fine-tuning on them and the reward pull apart",
            "look whether the reward's sign or scale is as meant")
    return Finding(name, OK, f"{n} earn {mean:.3f} on average, sampled ones "
                   f"{sum(sampled) / len(sampled):.3f}, empty ones {sum(empty) / len(empty):.3f}")


def gaps(scores, values, group_size):
    """How far the better of two answers is ahead in score, for each prompt that has two such.

    They are the first answer of a group and the first answer that differs from it in value.
    """
    found = []
    for k in range(0, len(values), group_size):
        other = next((j for j in range(k, k + group_size) if values[j] != values[k]), None)
        if other is not None:
            found.append((scores[k] - scores[other]) * (1 if values[k] > values[other] else -1))
    return found


def stated_rewards(problems):
    """The rewards or labels in a file differ: it holds both good and bad answers."""
    name, values = "stated rewards", [reward_of(p) for p in problems if stated(p)]
    others = [p for p in problems if not stated(p)]
    if not values:
        odd = next((f" ({p.place} has {key!r}: {shown(p.columns[key])})" for p in others
                    for key in ("label", "reward") if key in p.columns), "")
        return Finding(name, NONE, "the rows state no label, true or false, and no reward within "
                       f"0..1{odd}")
    if others and len(values) >= len(others):
        return Finding(
            name, WARNING, f"{of(len(others), len(problems), 'rows')} state no label, true or "
            f"false, or reward within 0..1 as others do (the first is {others[0].place})",
            "KTO, OREO and RFT refuse to start", "mend them, or leave them out with --on-bad-row "
            "skip")
    if len(set(values)) == 1:
        return Finding(name, WARNING, f"all {len(values)} rows state {values[0]:g}",
                       "KTO and OREO have nothing to tell apart",
                       "add answers that are worth more or less, or use --algo sft on good ones")
    return Finding(name, OK, f"{len(values)} rows state {len(set(values))} different values of "
                   f"mean {sum(values) / len(values):.3f}" + (
                       "; kto, oreo and rft read labels, and without a --reward other methods stop "
                       "at one that is false" if any(p.columns.get("label") is False
                                                     for p in problems) else ""))


# ---- answers

def cut_answers(finished, references, max_new_tokens):
    """Answers end by themselves within `max_new_tokens` tokens.

    finished: one bool per sampled answer.
    references: lengths of reference answers in tokens, with EOS.
    """
    name, cut = "cut answers", sum(not done for done in finished)
    longer = [n for n in references if n > max_new_tokens]
    what = (f"{of(cut, len(finished), 'sampled answers')} are cut at --max-new-tokens "
            f"{max_new_tokens} before their EOS")
    if longer:
        return Finding(
            name, WARNING, f"{what}, and {of(len(longer), len(references), 'reference answers')} "
            "are longer", "the policy has no room for an answer that it should give",
            f"use --max-new-tokens {max(longer)}")
    if cut > FEW * len(finished):
        todo = "fine-tune first (--algo sft) so that the policy stops"
        return Finding(
            name, WARNING, what, "what they would have answered is never rewarded", todo + (
                f" as reference answers do, within {max(references)} tokens" if references else
                ", or raise --max-new-tokens"))
    return Finding(name, OK, f"{cut} of {len(finished)} at --max-new-tokens {max_new_tokens}" + (
        f"; the longest reference answer has {max(references)}" if references else ""))


def parsed_answers(task, texts, own):
    """The task can read the sampled answers.  own: whether something else rewards them."""
    name, lost = "parsed answers", [text for text in texts if task.parse(text) is None]
    if own or task.name == "file":
        return Finding(name, NONE, "only the tasks of minipost say what they read in an answer")
    if len(lost) > FEW * len(texts):
        return Finding(
            name, WARNING, f"{of(len(lost), len(texts), 'sampled answers')} state nothing that "
            f"{task.name} can read ({first(lost)})",
            "they get nothing whatever was worked out in them",
            "fine-tune first (--algo sft) so that the policy knows the form, or raise "
            "--max-new-tokens if they are cut")
    return Finding(name, OK, f"{task.name} can read "
                   f"{of(len(texts) - len(lost), len(texts), 'answers')}")


# ---- texts and tokens

def control_texts(texts, vocabulary, choice):
    """No text spells out a control token without its meaning being said.

    choice: --control-tokens.  A text also must not end in one of ENDS, the end tokens of other
    models.
    """
    name = "control tokens in texts"
    refused = [text for text in texts if vocabulary.complaint(text, choice)]
    spelt = [text for text in texts if vocabulary.spelt(text)]
    if refused:
        token = next(token for token in vocabulary.spelt(refused[0])
                     if vocabulary.complaint(token, choice))
        framing = bool(vocabulary.complaint(token, "tokens"))
        return Finding(
            name, FAULT, f"{of(len(refused), len(texts), 'texts')} spell out a control token, such "
            f"as {token!r}", "minipost.train stops where it meets them",
            "take it out of the texts: BOS before a prompt and EOS behind an answer are put there "
            "anyway" if framing else
            "use --control-tokens tokens if it is meant as that token, or --control-tokens plain "
            "if as its characters")
    ends = [token for text in texts for token in ENDS
            if text.rstrip().endswith(token) and token not in vocabulary.spelt(text)]
    if ends:
        return Finding(
            name, FAULT, f"{of(len(ends), len(texts), 'texts')} end in {ends[0]!r}, which ends the "
            "answers of other models", "the policy reads and learns its characters",
            "take it out of the texts: EOS behind an answer is put there anyway")
    return Finding(name, OK, f"spelt out in {of(len(spelt), len(texts), 'texts')}, and read as "
                   f"{'those tokens' if choice == 'tokens' else 'characters'}" if spelt else
                   f"spelt out in none of {len(texts)}")


def boundary(pairs, encode, behind=None):
    """A prompt and its answer have the same tokens together as apart.  pairs: (prompt, answer).

    behind: the ids of a text that goes on behind another; `encode` if None.
    """
    behind = behind or encode
    name = "prompt and answer"
    if not pairs:
        return Finding(name, NONE, "there are no answers to learn from")
    merged = [prompt[-12:] + answer[:12] for prompt, answer in pairs
              if encode(prompt + answer) != encode(prompt) + behind(answer)]
    if merged:
        return Finding(
            name, WARNING, f"{of(len(merged), len(pairs), 'answers')} have other tokens behind "
            f"their prompt than apart ({first(merged)})",
            "the policy learns to go on in tokens that it has seldom seen",
            "let a prompt end where a token ends, mostly before a space, and the answer begin with "
            "that")
    return Finding(name, OK, f"have the same tokens together as apart in {len(pairs)} rows")


def round_trip(answers, vocabulary):
    """An answer is the same text when decoded, which is the text that a reward function sees."""
    name = "answers as decoded"
    if not answers:
        return Finding(name, NONE, "there are no answers to learn from")
    changed = [text for text in answers
               if vocabulary.decode(vocabulary.response(text)[:-1]) != text]
    if changed:
        return Finding(
            name, WARNING, f"{of(len(changed), len(answers), 'answers')} come out of the tokenizer "
            f"as another text ({first(changed)})",
            "the reward function never sees them as they are written",
            "compare texts without outer spaces and in one Unicode form, in the data and in the "
            "reward")
    return Finding(name, OK, f"{len(answers)} come out of the tokenizer as they went in")


# ---- pairs

def pairs_of(problems):
    """(prompt, chosen, rejected) of the rows that are pairs."""
    return [(p.prompt, p.columns["chosen"], p.columns["rejected"]) for p in problems
            if "chosen" in p.columns]


def equal_pairs(pairs, encode):
    """Chosen and rejected differ, as tokens and in more than spaces."""
    name = "chosen and rejected"
    if not pairs:
        return Finding(name, NONE, "the data holds no pairs")
    same = [prompt for prompt, a, b in pairs if encode(a) == encode(b)]
    if same:
        return Finding(
            name, FAULT, f"{of(len(same), len(pairs), 'pairs')} have the same tokens on both sides "
            f"({first(same)})", "their margin is 0 whatever is learnt", "leave them out")
    same = [prompt for prompt, a, b in pairs if a.split() == b.split()]
    if same:
        return Finding(
            name, WARNING, f"{of(len(same), len(pairs), 'pairs')} differ in spaces alone "
            f"({first(same)})", "what is learnt from them is where spaces go",
            "leave them out unless that is meant")
    return Finding(name, OK, f"differ in more than spaces in {len(pairs)} pairs")


def contradictory_pairs(pairs):
    """No two pairs prefer the same answers in both orders."""
    name, known = "contradictions", set(pairs)
    if not pairs:
        return Finding(name, NONE, "the data holds no pairs")
    both = [prompt for prompt, a, b in pairs if (prompt, b, a) in known]
    if both:
        return Finding(
            name, WARNING, f"{of(len(both), len(pairs), 'pairs')} stand in the data in the other "
            f"order too ({first(both)})", "they cancel",
            "leave both out, or keep the order that more people chose")
    return Finding(name, OK, f"none of {len(pairs)} pairs stands there in the other order too")


def length_of_chosen(pairs, encode):
    """Neither longer nor shorter answers are nearly always the chosen ones."""
    name = "length of chosen"
    if len(pairs) < MANY:
        return Finding(name, NONE, f"the data holds fewer than {MANY} pairs")
    lengths = [(len(encode(a)), len(encode(b))) for _, a, b in pairs]
    longer, shorter = sum(a > b for a, b in lengths), sum(a < b for a, b in lengths)
    chosen, rejected = (sum(side) / len(pairs) for side in zip(*lengths))
    means = f"{chosen:.1f} tokens against {rejected:.1f} on average"
    if max(longer, shorter) > 0.9 * len(pairs):
        word = "longer" if longer > shorter else "shorter"
        return Finding(
            name, WARNING, f"the chosen answer is the {word} one in {max(longer, shorter)} of "
            f"{len(pairs)} pairs ({means})", "a policy or a reward model can win by length alone",
            "add pairs whose better answer is not, or use --algo simpo, which averages over length")
    return Finding(name, OK,
                   f"longer in {longer}, shorter in {shorter} of {len(pairs)} pairs ({means})")


# ---- training and held-out rows

def divided_prompts(rows):
    """The prompts of pairs are said, by a key or a mark, and not guessed.  rows: as read."""
    name, marked = "prompts of pairs", [row for row in rows if row.turn]
    if guess := divided(rows):
        return Finding(
            name, WARNING, guess, "what is learnt as the answer may begin too early or too late",
            "write the prompt under a key of its own, or end it with a mark such as 'Answer:'")
    if marked:
        first = marked[0]
        return Finding(name, OK, f"end at a mark such as 'Answer:' in {len(marked)} of {len(rows)} "
                       f"rows (line {first.line}: ...{first['prompt'][-24:]!r} + "
                       f"{first['chosen'][:16]!r})")
    return Finding(name, NONE, "each row says its prompt")


def repeated_prompts(path, rows):
    """Answers do not begin with their prompts.  rows: as read."""
    name, repeated = "answers with prompts", [row for row in rows if repeats(row)]
    if not repeated:
        return Finding(name, OK, f"none of {len(rows)} rows has an answer that begins with the "
                       "whole prompt")
    most = len(repeated) >= NEARLY_ALL * len(rows)
    return Finding(
        name, FAULT if most else WARNING, repetition(path, rows, repeated),
        "methods that learn from them refuse to start" if most else "the prompt is learnt twice",
        "take the prompt out of the answers")


def unusable_rows(complaints, rows, skip):
    """A run can use every row: it fits the context and has tokens.

    complaints: [(place, sentence)].  skip: whether --on-bad-row skip leaves such rows out.
    """
    name = "rows for this model"
    if not complaints:
        return Finding(name, OK, f"all of {rows} can be used")
    place, sentence = complaints[0]
    return Finding(
        name, WARNING if skip else FAULT, f"{of(len(complaints), rows, 'rows')} cannot be used "
        f"({place}: {sentence})", "nothing is learnt from those" if skip else
        "a method that reads them refuses to start", "mend them" if skip else
        "mend them, or leave them out with --on-bad-row skip")


def long_rows(over, rows, most, choice):
    """No row is longer than it may be.  over: tokens that are too many, of each row that is too
    long; most: tokens that a prompt may have with its answer; choice: --on-long-row.
    """
    name = "long rows"
    if not over:
        return Finding(name, OK, f"none of {rows} rows has more than {most} tokens")
    what = f"{of(len(over), rows, 'rows')} have more than {most} tokens, the longest " \
           f"{most + max(over)}"
    if choice == "truncate":
        return Finding(name, WARNING, f"{what}: the ends of their answers are cut",
                       "how those answers end is not learnt, EOS included",
                       "raise --max-length if the model's context has room")
    return Finding(name, WARNING, what, "they are left out" if choice == "skip" else
                   "a run stops at them", "raise --max-length if the model's context has room, or "
                   "say --on-long-row truncate" + ("" if choice == "skip" else " or skip"))


def held_out_prompts(training, heldout, dropped=0, unused=0, few=""):
    """No held-out prompt is trained on, not even in another spelling.

    dropped: rows left out of training because --eval-data holds their question out.
    unused: rows on neither side because a held-out question counts once.
    few: why there are none on one side.
    """
    name, known = "held-out prompts", {alike(p.prompt) for p in training}
    if few:
        return Finding(name, FAULT, few, "a run stops", "add rows")
    if not heldout:
        return Finding(name, FAULT, "there are none", "a run stops, since it has nothing to "
                       "measure", "let the task's heldout(n) return some, or train with --eval-n 0")
    leaked = [p.prompt for p in heldout if alike(p.prompt) in known]
    if leaked:
        return Finding(
            name, WARNING, f"{of(len(leaked), len(heldout), 'held-out prompts')} are trained on, "
            f"but for case or spaces ({first(leaked)})", "held-out results are too good",
            "leave them out of one of the two")
    if dropped > FEW * (dropped + len(training)):
        return Finding(
            name, WARNING, f"{dropped} of {dropped + len(training)} rows of --data have a prompt "
            "of --eval-data", "they are left out of training",
            "hold out other prompts if they should be learnt")
    if unused > FEW * (unused + len(training) + len(heldout)):
        return Finding(
            name, WARNING, f"{unused} of {unused + len(training) + len(heldout)} rows are neither "
            "trained on nor held out: they ask a held-out question again", "nothing is learnt from "
            "those", "name other held-out rows by --eval-data")
    if len(heldout) < MEASURED:
        return Finding(name, WARNING, f"there are {len(heldout)}", "so few can hardly tell whether "
                       "a model got better", "hold out a hundred or more")
    return Finding(name, OK, f"none of {len(heldout)} among {len(training)} to train on" + (
        f"; {dropped} rows of --data, which ask one of them, are left out" if dropped else "") + (
        f"; {unused} rows, which ask one of them again, are on neither side" if unused else ""))


def skipped_rows(sentences):
    """No row of a file was left out as malformed."""
    name = "rows"
    if sentences:
        return Finding(name, WARNING, " and ".join(sentences), "nothing is learnt from those",
                       "mend them")
    return Finding(name, OK, "all of them are as they should be")


def repeated_rows(problems):
    """No row of a file occurs twice."""
    name = "repeated rows"
    given = [(p.prompt, [p.columns.get(key) for key in (*ANSWERS, "reward", "label")])
             for p in problems]
    seen = Counter((prompt, *(value if isinstance(value, str) else shown(value)
                              for value in values)) for prompt, values in given)
    extra = len(problems) - len(seen)
    if extra > 0.01 * len(problems):
        return Finding(
            name, WARNING, f"{extra} of {len(problems)} rows repeat an earlier one",
            "they count more than others", "leave them out unless that is meant")
    return Finding(name, OK, f"{extra} of {len(problems)} rows repeat an earlier one")
