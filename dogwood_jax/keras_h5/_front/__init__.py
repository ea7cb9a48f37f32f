"""What users call; each reads or writes whole files.

``load``, ``save``, ``inspect``, ``load_model``, and ``load_optimizer`` from ``optimizer``.
``moments`` has what ``save`` writes of an optimizer's state.
"""
