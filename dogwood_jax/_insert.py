"""The name by which pickles of version 0.1.0 ask for insertions."""

from dogwood_jax._growth.insertion import Insertion

__all__ = ["Insertion"]
