"""Functions for users that are no stage: tasks made of several stages, and questions on networks.

``plan`` is the stage as users call it, with all rare families; ``decide`` in ``_plan`` does the
work. ``deepen`` and ``widen`` plan and grow in one call. ``compare`` and ``verify`` run two
networks and say how far their outputs are apart; ``entries``, ``inputs``, ``mirrored`` and
``rounding`` serve ``verify``.
"""
