"""The layers of Keras, class by class: their weights, and what computes the same in Flax.

``weight`` says what the arrays of a layer are in Flax. ``modules``, ``recurrent``, ``attention``
and ``local`` have layers with weights, ``functions``, ``images`` and ``operations`` those without,
``activations`` what stands between them.
"""
