"""Keras's models as Flax modules that compute the same.

In comes a config; out comes a module. ``support`` says what of a model is not supported. ``module``
calls the layers of a whole model as ``graph`` reads it off the config, and ``masks`` hands on which
steps of a sequence count. ``model`` puts both together. ``shapes`` says what a model takes and what
shapes its arrays have.

``resize`` says what a config becomes when weights have other sizes, ``sizes`` the same for each
layer, ``channels`` and ``groups`` the sizes that no array has. ``vocabularies`` finds layers that
are left out. ``frozen`` makes configs that can be hashed.

Where to add: a layer is one entry in ``_kinds``; here is what takes all layers of a model together.
"""
