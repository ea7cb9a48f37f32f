"""The name by which pickles of version 0.1.0 ask for layouts."""

from dogwood_jax._widths.layout import Concat, Product, Units

__all__ = ["Concat", "Product", "Units"]
