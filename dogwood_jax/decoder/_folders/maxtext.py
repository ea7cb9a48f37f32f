"""Grow a MaxText step to larger values of its config: ``grow``. MaxText must be installed."""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax import checkpoint
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path, struct
from dogwood_jax._front.plan import plan
from dogwood_jax._widths.trace import trace
from dogwood_jax.checkpoint.draft import expect_free
from dogwood_jax.decoder._folders.models import expect_new, key_of

# Paths of MaxText's parameters. PRNG keys are left out: there is one per layer, and MaxText makes
# new ones.
_NAMES = {"params/params/{*rest}": "{*rest}", "nnx_aux/{*rest}": None}
# The network is traced with int32[batch, time] for tokens, positions and segments.
_TOKENS = [struct((2, 16), jnp.int32)] * 3
# Settings for the number of devices along each mesh axis.
_AXIS = re.compile(r"(ici|dcn)_.*_parallelism")
# Settings for tracing on one device, without Google Cloud, and with attention that can be traced.
_HERE = {
    "attention": "dot_product",
    "enable_goodput_recording": False,
    "hardware": "cpu",
    "log_config": False,
    "run_name": "grow",
    "skip_jax_distributed_system": True,
}


def grow(
    step: Path, out: Path, config: Path, new: Path, texts: Iterable[str], *, seed: int | None
) -> str:
    """Writes a larger step with which MaxText continues training; returns a report.

    Args:
        step: the step of the smaller model.
        out: the step to write.
        config: the config of the smaller model.
        new: the config to write for the larger model; it names ``config`` as base, and overrides
            its values.
        texts: the new values, ``"NAME=VALUE"``.
        seed: seed of random weights.

    Raises:
        ValueError: if MaxText is not installed, if its config has no such settings, or if the model
            cannot grow to these values.
        CheckpointError: if the step's arrays do not match the config.
        OSError: if a file cannot be read or written, or if ``out`` exists and is not empty.
    """
    numbers, problems = dict[str, str](), list[str]()
    for text in texts:
        name, sign, numbers[name] = text.partition("=")
        if not sign or name not in _numbers_of_maxtext():
            problems.append(f"--set {text}: expected NAME=VALUE with a setting of MaxText's config")
    if not numbers:
        problems.append("--set NAME=VALUE: needed, such as --set base_mlp_dim=4096")
    if problems:
        raise ValueError(listed(f"{step} cannot grow to these values", problems))
    expect_new(out)
    expect_free(new.resolve(), is_folder=False)
    apply, shapes, tx = _network(config, {})
    target_apply, target, _ = _network(config, numbers)
    found = checkpoint.shapes(step, names=_NAMES)
    if _shapes_of(shapes) != _shapes_of(found):
        raise checkpoint.CheckpointError(f"{step}: the arrays do not match {config}")
    growth = plan(
        trace(apply, found, *_TOKENS),
        target=target,
        target_apply=target_apply,
        interface="vocab_size" in numbers,
    )
    has_state = "opt_state" in checkpoint.shapes(step)
    checkpoint.grow(
        step,
        growth,
        out,
        key=key_of(seed, growth),
        tx=tx if has_state else None,
        names=_NAMES,
    )
    base = os.path.relpath(config, new.parent)  # MaxText first searches next to the new config
    lines = [f"{name}: {number}" for name, number in {"base_config": base, **numbers}.items()]
    new.write_text("\n".join([*lines, ""]))
    return f"{growth}\n{out}, and {new} to continue training with MaxText"


def _network(config: Path, numbers: Mapping[str, str]) -> tuple[Callable[..., Any], PyTree, Any]:
    """Returns MaxText's network as a function, the shapes of its parameters, and its optimizer."""
    axes = filter(_AXIS.fullmatch, _numbers_of_maxtext())
    from flax import nnx
    from maxtext.configs import pyconfig
    from maxtext.optimizers import optimizers
    from maxtext.utils import maxtext_utils, model_creation_utils

    with tempfile.TemporaryDirectory() as folder:
        given = {**_HERE, "base_output_directory": folder, **dict.fromkeys(axes, 1), **numbers}
        try:
            made = pyconfig.initialize(["", str(config), *(f"{k}={v}" for k, v in given.items())])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{config}: expected a config of MaxText: {error}") from error
    if made.model_name != "default":
        raise ValueError(
            f"{config}: expected settings of the model without model_name, because those of "
            f"model_name {made.model_name} override a yml; copy them from MaxText's "
            f"configs/models/{made.model_name}.yml, and leave out model_name"
        )

    def model() -> Any:
        return model_creation_utils.from_config(made, rngs=nnx.Rngs(0))

    graph, params, *_ = nnx.split(nnx.eval_shape(model), nnx.Param, ...)
    rest = jax.jit(lambda: nnx.split(model(), nnx.Param, ...)[-1])()  # PRNG keys

    def apply(arrays: PyTree, *inputs: Any) -> Any:
        return nnx.merge(graph, nnx.State(arrays), rest, copy=True)(*inputs)

    tx = optimizers.get_optimizer(made, maxtext_utils.create_learning_rate_schedule(made))
    return apply, jax.tree.map(lambda a: struct(a.shape, a.dtype), params.to_pure_dict()), tx


def _numbers_of_maxtext() -> Iterable[str]:
    """Returns the names of all settings of a MaxText config.

    Raises:
        ValueError: if MaxText is not installed.
    """
    os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")
    try:
        from maxtext.configs.types import MaxTextConfig
    except ImportError as error:
        needed = "--maxtext: needs MaxText, pip install 'dogwood_jax[maxtext]' on Python 3.12"
        raise ValueError(f"{needed}: {error}") from error
    return [*MaxTextConfig.model_fields]


def _shapes_of(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in leaves_by_path(tree).items()}
