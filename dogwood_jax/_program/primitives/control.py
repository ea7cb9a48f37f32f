"""What runs programs, and what draws random bits: the table ``CONTROL``."""

from dogwood_jax._program.primitives.record import Primitive

CONTROL: dict[str, Primitive] = {
    "cond": Primitive(runs=True),
    "scan": Primitive(runs=True),
    "while": Primitive(runs=True),
    "random_bits": Primitive(draws=True),
    "rng_bit_generator": Primitive(draws=True),
    "rng_uniform": Primitive(draws=True),
}
