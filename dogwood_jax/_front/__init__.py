"""Functions for users that are no stage: tasks made of several stages, and questions on networks.

``deepen``, ``narrow``, ``widen`` and ``merge_symmetric`` plan and grow in one call. ``compare`` and
``verify`` run two networks and say how far their outputs are apart; ``entries``, ``inputs``,
``mirrored`` and ``rounding`` serve ``verify``. ``symmetry`` has the questions about units,
``find_symmetric`` and ``activity``, and ``dead`` has ``find_dead``. ``constant_units`` moves what
constant units add to their readers into biases, before ``narrow`` removes them, and ``removal``
says by how much outputs move. ``cost`` counts parameters and FLOPs before and after growing.
``gain`` says where a new unit or layer would lower the loss most, ``saliency`` what would be lost
with each unit, and ``shrink`` narrows to a budget by it.

Nothing else imports this room, but ``nnx`` and the front of the package.
"""
