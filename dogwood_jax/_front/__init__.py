"""Functions for users that are no stage: tasks made of several stages, and questions on networks.

``plan`` and ``grow`` are stages as users call them, with all rare families; ``_plan`` and
``_arrays`` do the work. ``larger`` makes the module of the larger network. ``deepen`` and ``widen``
plan and grow in one call, and ``several`` grows several networks into one. ``renew`` makes new
units of old ones. ``compare`` and ``verify`` run two networks and say how far their outputs are
apart; ``entries``, ``inputs``, ``mirrored`` and ``rounding`` serve ``verify``. ``stages`` plans the
growths of a training, for ``training`` and ``_figures``.
"""
