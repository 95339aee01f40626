"""What TRL and transformers call an option, beside what it is here.

A name of theirs that is typed here is answered by ours, or by what to do instead.
"""

from collections.abc import Mapping
from dataclasses import fields

from minipost.errors import MinipostError

# TRL's or transformers' argument: our settings, of which the first that a command has is named.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "num_generations": ("group_size",),
    "max_completion_length": ("max_new_tokens",),
    "response_length": ("max_new_tokens",),
    "max_length": ("max_length",),
    "max_seq_length": ("max_length",),
    "max_steps": ("steps",),
    "num_iterations": ("epochs",),
    "num_ppo_epochs": ("epochs",),
    "kl_coef": ("beta",),
    "init_kl_coef": ("beta",),
    "target_kl": ("kl_target",),
    "cliprange": ("clip",),
    "epsilon": ("clip", "clip_low"),
    "epsilon_high": ("clip_high",),
    "sapo_temperature_pos": ("tau_pos",),
    "sapo_temperature_neg": ("tau_neg",),
    "cliprange_value": ("value_clip",),
    "missing_eos_penalty": ("missing_eos",),
    "lora_r": ("lora",),
    "lora_target_modules": ("lora_targets",),
    "lr_scheduler_type": ("schedule",),
    "output_dir": ("out",),
    "model_name_or_path": ("model",),
    "reward_model_path": ("reward_model",),
    "reward_funcs": ("reward",),
    "dataset_name": ("data",),
    "train_file": ("data",),
    "validation_file": ("eval_data",),
    "report_to": ("log",),
    "save_steps": ("save_every",),
    "eval_steps": ("eval_every",),
    "optim": ("optimizer",),
    "torch_dtype": ("dtype",),
    "vllm_server_base_url": ("sampler_url",),
    "chat_template_path": ("chat_template",),
    "resume_from_checkpoint": ("resume",),
    "overwrite_output_dir": ("overwrite",),
}

# What has no single flag here: what to do.  A flag of ours stands between backticks.
INSTEAD: Mapping[str, str] = {
    "num_train_epochs": "use `--data-epochs` for passes over --data, `--steps` for steps",
    "per_device_train_batch_size":
        "use `--minibatch-size` or `--batch-size` for the answers or rows of a gradient step, "
        "`--prompts` for those of a rollout; `--micro-batch-size` says how many a pass holds",
    "per_device_eval_batch_size": "leave it out; `--eval-n` says how many problems are measured",
    "gradient_accumulation_steps":
        "leave it out: passes of `--micro-batch-size` make up a step, which changes no gradient",
    "max_prompt_length":
        "leave it out: no prompt is cut; with --data, `--max-length` and `--on-long-row` say what "
        "becomes of long rows",
    "warmup_ratio": "use `--warmup-steps`, a number of steps",
    "logging_steps": "leave it out: each step is in metrics.jsonl; `--log` names trackers",
    "save_total_limit": "leave it out: two states are kept, of every `--save-every` steps",
    "eval_strategy": "use `--eval-every`, a number of steps",
    "bf16": "use `--dtype` bfloat16",
    "fp16": "use `--dtype` bfloat16; float16 is not supported",
    "use_peft": "use `--lora` 16, or another rank",
    "lora_dropout": "leave it out: adapters have no dropout; `--lora` is their rank",
    "load_in_4bit": "use `--base-bits` 4 with `--lora`",
    "load_in_8bit": "use `--base-bits` 8 with `--lora`",
    "use_vllm": "use `--sampler` vllm",
    "vllm_mode": "use `--sampler` vllm, with a server at `--sampler-url`",
    "reward_weights": "put it behind the function: `--reward` FILE.py:FUNCTION=WEIGHT",
    "scale_rewards": "choose `--algo` dr-grpo, which does not divide by the group's deviation",
    "importance_sampling_level": "choose `--algo` gspo for a ratio of whole answers",
    "loss_type": "choose a method by `--algo`: each loss is one of them",
    "top_p": "leave it out: what is learnt from is sampled from the whole distribution",
    "top_k": "leave it out: what is learnt from is sampled from the whole distribution",
    "min_p": "leave it out: what is learnt from is sampled from the whole distribution",
    "push_to_hub": "leave it out: the model is saved in the folder model of `--out`",
    "trust_remote_code": "leave it out: no code of a model's directory is run",
    "deepspeed": "use `--shard`, under torchrun or with `--workers`",
    "fsdp": "use `--shard`, under torchrun or with `--workers`",
    "num_processes": "use `--workers` on a CPU, torchrun on GPUs",
    "ref_model": "leave it out: the reference is the model as it was before the first step",
    "dataset_text_field": "use `--columns` TEXT:prompt, which renames columns of --data",
    "run_name": "use `--out`: a run is called as its directory",
}


def answer(flag, parts, others=()):
    """A sentence on a flag that is an argument of TRL or transformers and none of ours; else "".

    parts: the dataclasses of this command.  others: further settings that it has.
    """
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    known = {f.name for part in parts for f in fields(part)} | set(others)
    if name in known:
        return ""
    if name in INSTEAD:
        return f"--{name.replace('_', '-')} is a name of TRL's; {INSTEAD[name].replace('`', '')}"
    if name not in ARGUMENTS:
        return ""
    ours = next((new for new in ARGUMENTS[name] if new in known), "")
    shown = "--" + (ours or ARGUMENTS[name][0]).replace("_", "-")
    return (f"--{name.replace('_', '-')} is a name of TRL's; " + (
        f"use {shown}" if ours else f"here it is {shown}, which this command does not have"))


def refuse(arguments, parts, others=()):
    """MinipostError where an argument is TRL's or transformers' name of something."""
    for argument in arguments:
        if argument.startswith("--") and (sentence := answer(argument, parts, others)):
            raise MinipostError(sentence)
