"""The jobs of `python -m scripts.bench peers`: steps of the methods that TRL has beside GRPO.

    python -m scripts.bench_methods own dpo --model DIR --steps 15 --out RESULT.json

As in bench_peer.py, both sides do a job with the same weights, data and settings.  Pairs and labels
are rows of random digits, 64 tokens each, and come in the same order on both sides.  So the losses
of a job's steps can be compared, one by one.  PPO has no peer: TRL dropped it.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minipost.tasks.base import Problem, Task
from scripts.bench_peer import (
    GROUP,
    LR,
    PROMPT_DIGITS,
    PROMPTS,
    Digits,
    follow,
    letter_share,
    main,
    own,
    peer_grpo,
    rows_of,
    sampling,
    settings,
    to_sample,
    trained,
)

PAIRS, ANSWER_DIGITS = 32, 47  # of a step; BOS, 15 + 47 digits and EOS: 64 tokens
BETA, KL = 0.1, 0.04            # of DPO and KTO; of GRPO, RLOO and PPO
FAST = 1e-3                     # learning rate on pairs: the losses move within a few steps
ANSWERS = PROMPTS * GROUP


@dataclass
class Rows(Task):
    """Rows that are known from the start, like those of a file."""

    rows: list

    def training(self):
        return self.rows


def pairs(steps):
    """As many random pairs as the steps need."""
    digits = Digits(PROMPT_DIGITS, ANSWER_DIGITS)
    return [Problem(digits.draw(PROMPT_DIGITS),
                    {side: digits.draw(ANSWER_DIGITS) for side in ("chosen", "rejected")})
            for _ in range(PAIRS * steps)]


# ---- minipost

def own_pairs(args, learn):
    """The steps of learn(run), and the first row that it trains on."""
    def work(run):
        first = run.problems(PAIRS)[0]
        row = run.encode([first], [first.columns["chosen"]]).tokens[0].tolist()
        return {**follow(run, learn(run), args.steps), "row": row}

    return own(work, args, Rows(pairs(args.steps)), None)


def own_dpo(args, ask_again=True):
    """`ask_again`: ask the reference at each step, as when pairs are sampled; else once."""
    from minipost.datasets.preferences import StepPairs, by_reward
    from minipost.methods import dpo

    class Asking(StepPairs):
        def draw(self):
            drawn, _ = super().draw()
            return drawn, self.ask(drawn)[0]

    cfg = dpo.Config(steps=args.steps, pairs=PAIRS, beta=BETA, lr=FAST)
    return own_pairs(args, lambda run: dpo.learn(
        run, cfg, (Asking if ask_again else StepPairs)(run, cfg, by_reward),
        partial(dpo.loss, beta=cfg.beta)))


def own_kto(args):
    from minipost.methods import kto

    cfg = kto.Config(steps=args.steps, batch_size=2 * PAIRS, beta=BETA, lr=FAST)
    return own_pairs(args, lambda run: kto.train(run, cfg))


def own_reward(args):
    from minipost.methods import reward

    cfg = reward.Config(steps=args.steps, prompts=PAIRS, group_size=2, lr=FAST, warmup_steps=0)
    return own_pairs(args, lambda run: reward.train(run, cfg))


def own_sampled(args, method, cfg, digits=PROMPT_DIGITS):
    return own(lambda run: follow(run, method.train(run, cfg), args.steps), args, Digits(digits),
               letter_share)


def own_grpo_kl(args):
    from minipost.methods import grpo

    return own_sampled(args, grpo, grpo.Config(
        steps=args.steps, prompts=PROMPTS, group_size=GROUP, minibatch_size=ANSWERS, beta=KL,
        kl="k3", lr=LR))


def own_rloo(args):
    from minipost.methods import rloo

    return own_sampled(args, rloo, rloo.Config(steps=args.steps, prompts=PROMPTS, group_size=GROUP,
                                               beta=KL, lr=LR))


def own_distill(args):
    from minipost.methods import distill

    return own_sampled(args, distill, distill.Config(
        steps=args.steps, teacher=teacher(args), on_policy=1.0, mix=0.0, batch_size=ANSWERS,
        lr=LR, warmup_steps=0))


def own_ppo(args):
    from minipost.methods import ppo

    return own_sampled(args, ppo, ppo.Config(steps=args.steps, prompts=ANSWERS,
                                             minibatch_size=ANSWERS, epochs=1, beta=KL, lr=LR,
                                             critic_lr=LR))


def teacher(args):
    """The folder of the other random weights, which `prepare` made."""
    return str(Path(args.model).parent / "teacher")


def own_floor(args):
    """The products of a GRPO step and of PPO's update, timed in every rank at once.

    -> {part: seconds of the matrix products}, and of attention's batched ones: the ranks' means
    """
    import torch

    from minipost import parallel
    from scripts import floor

    def work(run):
        rollout = run.sample(run.task.sample(PROMPTS), GROUP, temperature=1.0)
        prompts = len(parallel.share(range(PROMPTS)))
        lengths = parallel.share(rollout.lengths.tolist())
        config, given = run.policy.module.config, (prompts, PROMPT_DIGITS + 1, lengths)
        steps = {**floor.passes(*given), "ppo": ppo_passes(lengths)}
        parallel.all_reduce(torch.zeros(1))                     # all ranks begin at once
        products = floor.seconds_of(config, steps)
        batched = floor.attention(config, *given)
        seconds = torch.tensor([*products.values(), *batched.values()], dtype=torch.float64)
        parallel.all_reduce(seconds)
        mean_of = iter((seconds / parallel.world()).tolist())
        return {"products": {part: next(mean_of) for part in products},
                "batched": {part: next(mean_of) for part in batched}}

    return own(work, args, Digits(PROMPT_DIGITS), None)


def ppo_passes(lengths):
    """The passes of PPO's update on answers of these lengths, one to a prompt: a Counter.

    Policy, reference and critic look at the rollout; then policy and critic learn from it.
    """
    from scripts.floor import Pass

    read, predicted = sum(lengths) + len(lengths) * PROMPT_DIGITS, sum(lengths)
    return Counter({Pass(read, predicted): 2, Pass(read, 0): 1,
                    Pass(read, predicted, True): 1, Pass(read, 0, True): 1})


# ---- TRL

def given(args):
    """The pairs in the order in which minipost takes them, as TRL's rows."""
    from minipost.run import shuffled

    rows = pairs(args.steps)
    return [rows[k] for k in shuffled(len(rows), f"{args.seed}/epoch 0")]


def in_order(args, **more):
    """The settings of the trainers on pairs."""
    return settings(args, **{"train_sampling_strategy": "sequential", "max_length": None,
                             "learning_rate": FAST, "per_device_train_batch_size": PAIRS, **more})


def peer_dpo(args, ask_again=True):
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**in_order(args, beta=BETA, precompute_ref_log_probs=not ask_again))
    return trained(DPOTrainer(model=args.model, args=config, train_dataset=rows_of(given(args))))


def peer_kto(args):
    """Each batch is turned round, because TRL pairs a prompt with the answer before its own."""
    from trl import KTOConfig, KTOTrainer

    rows = [Problem(pair.prompt, {"completion": pair.columns[side], "label": side == "chosen"})
            for pair in given(args) for side in ("chosen", "rejected")]
    turned = [row for k in range(0, len(rows), 2 * PAIRS) for row in rows[k : k + 2 * PAIRS][::-1]]
    config = KTOConfig(**in_order(args, beta=BETA, per_device_train_batch_size=2 * PAIRS))
    return trained(KTOTrainer(model=args.model, args=config, train_dataset=rows_of(turned)), -1)


def peer_reward(args):
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**in_order(args, lr_scheduler_type="cosine",
                                     center_rewards_coefficient=0.001))
    trainer = RewardTrainer(model=args.model, args=config, train_dataset=rows_of(given(args)))
    trainer.model.score.weight.data.zero_()  # as our head is at first
    return trained(trainer)


def peer_grpo_kl(args):
    return peer_grpo(args, beta=KL)


def peer_rloo(args):
    from trl import RLOOConfig, RLOOTrainer

    config = RLOOConfig(**sampling(args, num_generations=GROUP, beta=KL))
    problems = Digits(PROMPT_DIGITS).sample(PROMPTS * args.steps)
    return trained(RLOOTrainer(model=args.model, reward_funcs=letter_share, args=config,
                               train_dataset=to_sample(problems)))


def peer_distill(args):
    from trl import DistillationConfig, DistillationTrainer

    config = DistillationConfig(**sampling(
        args, lr_scheduler_type="cosine",
        teacher_model_init_kwargs={"dtype": "float32"}))
    problems = Digits(PROMPT_DIGITS).sample(ANSWERS * args.steps)
    return trained(DistillationTrainer(model=args.model, teacher_model=teacher(args), args=config,
                                       train_dataset=to_sample(problems)))


JOBS = {
    "own": {"dpo": own_dpo, "dpo-once": partial(own_dpo, ask_again=False), "kto": own_kto,
            "reward": own_reward, "rloo": own_rloo, "grpo-kl": own_grpo_kl,
            "distill": own_distill, "ppo": own_ppo, "floor": own_floor},
    "peer": {"dpo": peer_dpo, "dpo-once": partial(peer_dpo, ask_again=False), "kto": peer_kto,
             "reward": peer_reward, "rloo": peer_rloo, "grpo-kl": peer_grpo_kl,
             "distill": peer_distill},
}

if __name__ == "__main__":
    main(JOBS)
