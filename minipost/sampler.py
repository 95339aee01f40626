"""A policy as a function from texts to texts, for searches.

    sampler(texts, n)   n continuations of each text, whole answers or single steps
    ends                where the steps of a response end, in tokens
    together            which beginnings are continued in one batch
"""


def ends(vocabulary, ids, mark):
    """Index of the token in which each `mark` of a response ends.

    A token may hold half a character, two marks, or half of one.  So what follows the last whole
    character that was looked at is decoded together, behind the token before it, since some
    tokenizers drop a space at the beginning.  A token whose own text cannot end a mark is passed.
    """
    decode, found = vocabulary.decode, []
    seen, counted, rest = 0, 0, ""      # tokens looked at, marks found since, text before that
    for k, token in enumerate(ids):
        if not {mark[-1], "\ufffd"} & set(decode([token])):
            continue
        first = max(0, seen - 1)
        text = decode(ids[first : k + 1])[len(decode(ids[first:seen])) :]
        *marks, after = (rest + text).split(mark)
        found += [k] * (len(marks) - counted)
        counted = len(marks)
        if not text.endswith("\ufffd"):
            seen, counted, rest = k + 1, 0, after[max(0, len(after) - len(mark) + 1) :]
    return found


def together(prompts, left, context):
    """{max_new_tokens: indices of the prompts that are continued in one batch}.

    prompts: lists of ids, what was answered so far included.  left: tokens that each may go on for.
    All go on for as long as any of them may, and are to be cut to their own length afterwards.  One
    goes in another batch only where the context is too short for that, and in none where nothing
    is left.
    """
    groups, longest = {}, max(left)
    for k, ids in enumerate(prompts):
        max_new_tokens = min(longest, context - len(ids))
        if left[k] > 0 and max_new_tokens > 0:
            groups.setdefault(max_new_tokens, []).append(k)
    return groups


class Sampler:
    """sampler(texts, n) -> for each text a list of n continuations by the policy.

    With `mark` a continuation ends with the token in which the first mark ends, else with the end
    of the answer.  An answer has at most `max_new_tokens` tokens in all; None takes the run's
    number.  A text that was made here goes on with the tokens that its beginning left.  If none are
    left, or the context is full, the continuation is empty.  Every call draws new samples.  The
    same calls in another run of this seed draw the same.  `tokens` counts the sampled tokens, EOS
    included.

    made: {text: how many tokens of it are an answer}, one dict for samplers that go on with each
    other's texts.
    """

    def __init__(self, run, mark="", temperature=1.0, purpose="search", max_new_tokens=None,
                 made=None):
        self.run, self.mark, self.temperature, self.purpose = run, mark, temperature, purpose
        self.max_new_tokens = max_new_tokens or run.max_new_tokens
        self.stop = run.holding(mark) if mark else set()
        self.made = {} if made is None else made
        self.calls = self.tokens = 0

    def __call__(self, texts, n):
        if not texts:
            return []
        self.calls += 1
        found = [[""] * n for _ in texts]
        prompts = [self.run.vocabulary.prompt(text) for text in texts]
        left = [self.max_new_tokens - self.made.get(text, 0) for text in texts]
        for max_new_tokens, rows in together(prompts, left,
                                             self.run.policy.module.context).items():
            with self.run.aside():
                rollout = self.run.complete(
                    [prompts[k] for k in rows], n, temperature=self.temperature,
                    purpose=f"{self.purpose} {self.calls}", stop=self.stop,
                    max_new_tokens=max_new_tokens)
            read = {}                                       # ids: how many of them count, and text
            for place, (tokens, length) in enumerate(zip(rollout.tokens.tolist(),
                                                         rollout.lengths.tolist())):
                k = rows[place // n]
                first = len(prompts[k])
                ids = tuple(tokens[first : first + min(length, left[k])])
                if ids not in read:
                    cut = self.cut(ids)
                    ended = bool(cut) and cut[-1] in self.run.vocabulary.eos    # which is no text
                    read[ids] = len(cut), self.run.vocabulary.decode(cut[: len(cut) - ended])
                made, more = read[ids]
                self.tokens += made
                found[k][place % n] = more
                if more:                                    # else the text is the same, and ended
                    self.made[texts[k] + more] = self.max_new_tokens - left[k] + made
        return found

    def heard(self, text, more, over=""):
        """Whether `more`, which somebody else wrote, fits behind a text with room to go on.

        If so, it counts towards the length of the answer.  It stands over the text's end `over`.
        """
        kept, response = text.removesuffix(over), self.run.vocabulary.response
        made = self.made.get(text, 0) - len(response(text[len(kept) :])) + len(response(more))
        if made < self.max_new_tokens:
            self.made[kept + more] = made
        return made < self.max_new_tokens

    def cut(self, ids):
        """The ids up to the end of the first step if single steps are sampled, else all."""
        first = ends(self.run.vocabulary, ids, self.mark) if self.mark else []
        return ids[: first[0] + 1] if first else ids
