"""Open a run: its model, its task and its reward, as a command line or a notebook asks for them."""

from pathlib import Path

from minipost import checkpoint
from minipost.chat import Messages
from minipost.datasets.chats import in_chat
from minipost.datasets.named import load_reward
from minipost.datasets.rows import File, is_chat
from minipost.engine import bottleneck, prefix
from minipost.engine.block import recompute
from minipost.engine.coded import code
from minipost.engine.lora import adapt, adapters
from minipost.engine.vllm import Server
from minipost.errors import MinipostError
from minipost.parts import learner
from minipost.run import Run


def as_asked(task, vocabulary, chat):
    """The task, in chats if `chat`, or if it is a file of messages.

    Answers then end as the model's template ends them.  MinipostError where there is no template.
    """
    if isinstance(task, File):
        task = task.chatting() if chat else task
        chat = is_chat(task.rows)
    elif chat:
        task = in_chat(task)
    if chat:
        vocabulary.begin_chat()
    return task


def without_template(run):
    """The sentence on a model's chat template that the prompts do without, or ""."""
    if run.vocabulary.template is None or isinstance(next(iter(run.problems(1))).prompt, Messages):
        return ""
    return ("the model has a chat template, and prompts that are strings are used as they are, "
            "without it; --chat makes each the message of a user")


def open_run(options, task, device):
    """The Run of a command line's settings: its model, task and reward."""
    shard = device if getattr(options, "shard", False) else ""
    model, vocabulary = checkpoint.load(options.model, "cpu" if shard else device, options.dtype,
                                        options.chat_template)
    if options.gradient_checkpointing:
        recompute(model)  # and what is copied from it, such as a critic
    for part, size, there in ((prefix, options.prefix, prefix.length_of(model)),
                              (bottleneck, options.bottleneck, bottleneck.width_of(model))):
        if there and (options.lora or options.prefix + options.bottleneck > size):
            raise MinipostError(f"{options.model}: has a prefix or bottlenecks, which learn alone; "
                                "leave out --lora, --prefix and --bottleneck to train those on, or "
                                "begin from the model beneath")
        for name, given in (("--merge", options.merge), ("--shard", shard),
                            ("--sampler vllm", options.sampler == "vllm")):
            if there and given:
                raise MinipostError(f"{options.model}: has a prefix or bottlenecks, with which "
                                    f"{name} is not supported; leave out {name}, or begin from "
                                    "the model beneath")
        if size or there:
            part.attach(model, size, options.seed)
    if options.lora:
        if not options.merge and checkpoint.base_of(options.model) != Path(options.model):
            raise MinipostError(f"{options.model}: is an adapter itself; with --lora add --merge, "
                                "which saves the whole model, or begin from a whole one")
        if options.base_bits:
            code(model, options.base_bits)
        adapt(model, options.lora, options.lora_alpha, options.lora_targets, options.seed,
              options.lora_numbers, options.lora_budget)
    if options.merge and not adapters(model):
        raise MinipostError("--merge adds adapters to the weights that are saved, and there are "
                            f"none: {options.model} is a whole model; leave out --merge, or add "
                            "--lora")
    if isinstance(task, File) and not task.eval_data and getattr(options, "eval_n", None) == 0:
        task = task.undivided()  # nothing is measured
    task = as_asked(task, vocabulary, options.chat)
    return Run(learner(model, shard, optimizer=options.optimizer), vocabulary, task,
               load_reward(options.reward, task), optimizer=options.optimizer, shard=shard,
               hidden=task.hidden and not options.reward,
               reward_timeout=options.reward_timeout, seed=options.seed,
               micro_batch_size=options.micro_batch_size, max_new_tokens=options.max_new_tokens,
               recompute=options.dtype != "float32", control_tokens=options.control_tokens,
               origin=options.model, dtype=options.dtype, merge=options.merge,
               keep_rollouts=getattr(options, "keep_rollouts", 0),
               server=Server(options.sampler_url) if options.sampler == "vllm" else None)
