"""Strict numerics for every test: float64 enabled, no implicit rank promotion, fixed seeds."""

import hypothesis
import jax

# Tests state their dtypes; with float64 disabled, asking for it would silently give float32.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")
