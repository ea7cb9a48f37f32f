"""A learning rate schedule for networks that grow: ``constant_then_decay``."""

import operator

import optax

from dogwood_jax._base.arguments import NUMBER, expect_given, is_count


def constant_then_decay(
    rate: float, steps: int, *, warmup: int | None = None, decay: float = 0.2
) -> optax.Schedule:
    """Returns a schedule whose learning rate stays high until the network has grown.

    The rate rises, is constant, and falls to zero over the last share of the steps. New weights
    that begin at a small rate learn little, so let the network grow while the rate is constant,
    with some steps left before the rate falls.

    Args:
        rate: the constant learning rate after the warm-up, positive.
        steps: number of steps of the whole run, over all stages.
        warmup: number of these steps in which the rate rises from zero; by default steps // 40.
        decay: the share of the steps over which the rate falls, between 0 and 1.

    Returns:
        An Optax schedule: a function that maps the number of a step to the rate.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if arguments do not fit together, with all problems in one message.

    Example:
        >>> import optax
        >>> from dogwood_jax.training import constant_then_decay
        >>> rates = constant_then_decay(1e-3, 1000)
        >>> [round(float(rates(step)), 5) for step in (0, 25, 800, 900, 1000)]
        [0.0, 0.001, 0.001, 0.0005, 0.0]
        >>> tx = optax.adam(rates)

    Reference:
        Hu et al., 2024, MiniCPM (the schedule); arXiv 2511.04981, 2025 (growing within its constant
        part).
    """
    expect_given("training.constant_then_decay", rate=(NUMBER, rate), decay=(NUMBER, decay))
    problems = []
    if not rate > 0:
        problems.append(f"rate: expected a positive number, got {rate!r}")
    if not is_count(steps, at_least=1):
        problems.append(f"steps: expected an integer, 1 or more, got {steps!r}")
    if warmup is not None and not is_count(warmup, at_least=0):
        problems.append(f"warmup: expected an integer, 0 or more, got {warmup!r}")
    if not 0 <= decay <= 1:
        problems.append(f"decay: expected a share between 0 and 1, got {decay!r}")
    if not problems:
        rises = operator.index(steps) // 40 if warmup is None else operator.index(warmup)
        falls = round(decay * steps)
        if rises + falls > steps:
            problems.append(
                f"warmup: the rate rises in {rises} steps and falls in {falls}, more than {steps}"
            )
    if problems:
        raise ValueError("\n  ".join(["training.constant_then_decay cannot be made:", *problems]))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, rises),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, 0.0, falls),
        ],
        [rises, steps - falls],
    )
