"""What makes the network of gpt.py fast.

    functions     its pieces
    rotary        rotary positions of a longer context
    block         a layer with its derivative by hand
    packed        where tokens stand: in padded rows, or packed, what rows share once
    lora          low-rank matrices that learn beside fixed ones
    adalora       a budget of ranks, shared out while adapters learn
    prefix        keys and values that learn before those of the text
    bottleneck    adapters of their own behind each sublayer
    coded         fixed weights in 8 or 4 bits
    head          log-probs, entropy and KL without all logits at once
    vllm          answers of a server in place of our sampler
    decode        a new token per row at a time, with a cache, in few operations
    tree          the same, where samples share a row as long as they are equal
    decode_cuda   the same on a GPU, a step as one CUDA graph

gpt.py says what is computed; nothing here computes anything else, and tests hold it to that.
"""
