"""Keras's models as Flax modules that compute the same.

In comes a config; out comes a module. ``model`` makes the module of a whole model from the calls
that ``graph`` reads off its config. ``masks`` hands on which steps of a sequence count. ``sizes``
says what a config becomes when weights have other sizes, ``channels`` the sizes that no array has.
``vocabularies`` finds layers that are left out. ``versions`` says what later versions of Keras read
in another way.

Where to add: a layer is one entry in ``_kinds``; here is what takes all layers of a model together.
"""
