"""Public functions, which read or write whole files.

``load``, ``save``, ``inspect``, ``load_model``, and ``load_optimizer`` from ``optimizer``.
``moments`` prepares the optimizer state that ``save`` writes.
"""
