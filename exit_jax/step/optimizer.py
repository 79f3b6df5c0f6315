"""Optimisers and their learning rates, as a config has them."""

import optax

from exit_jax.config.schema import OptimizerConfig


def make_schedule(c: OptimizerConfig) -> optax.Schedule:
    """Return the learning rate by the number of optimiser steps done: linear warm-up and, if asked for, cosine decay."""
    if c.decay_steps:
        return optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, c.warmup_steps, c.decay_steps)
    if c.warmup_steps:
        return optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
    return optax.constant_schedule(c.learning_rate)


def make_optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """Return the optimiser after global-norm clipping, with the rate of ``make_schedule``."""
    # a constant rate is no schedule, which would count steps in the state: finished runs have none there
    rate = make_schedule(c) if c.decay_steps or c.warmup_steps else c.learning_rate
    optimizer = {
        "adamw": lambda: optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
        "lion": lambda: optax.lion(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
        "adafactor": lambda: optax.adafactor(rate, weight_decay_rate=c.weight_decay or None),
    }[c.kind]()
    return optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optimizer)
