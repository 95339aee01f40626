"""Beam search over steps, guided by a value (survey sec. 5.2; OREO, arxiv.org/abs/2412.16145, sec. 4.5).

Each of the `width` (B) best beginnings of an answer is continued by one step in `copies` (K) sampled
ways; of the up to B K continuations the B of the highest value are kept, until none of those goes on
or `depth` steps are made.  The answer is the finished one of the highest value.

With B = K = 1 this is sampling; with B and K without bound and every continuation sampled, exhaustive
search for the highest value.
"""


def beam(prompts, sample, value, *, mark, width, copies, depth):
    """One answer to each prompt.

    sample(texts, n) -> for each text n continuations by one step; one without `mark` ends the answer.
    value(texts) -> a number for each, the prompt included, finished or not.
    """
    beams = [[("", 0.0, True)] for _ in prompts]            # (answer so far, its value, goes on)
    for _ in range(depth):
        live = [(row, text) for row, kept in enumerate(beams) for text, _, on in kept if on]
        if not live:
            break
        found = {}                                          # (row, longer answer): goes on, in order
        for (row, text), nexts in zip(live, sample([prompts[row] + text for row, text in live],
                                                   copies), strict=True):
            for more in nexts:
                found[row, text + more] = mark in more
        values = value([prompts[row] + text for row, text in found])
        beams = [[b for b in kept if not b[2]] for kept in beams]
        for ((row, text), on), worth in zip(found.items(), values, strict=True):
            beams[row].append((text, worth, on))
        beams = [sorted(kept, key=lambda b: -b[1])[:width] for kept in beams]
    return [max(kept, key=lambda b: (not b[2], b[1]))[0] for kept in beams]
