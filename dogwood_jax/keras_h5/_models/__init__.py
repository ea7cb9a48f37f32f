"""Keras models as Flax modules that compute the same.

The input is a config, the output a module. ``support`` lists what is not supported. ``graph`` reads
the calls of layers from the config, ``module`` makes them, and ``masks`` passes on which steps of a
sequence count. ``model`` builds and checks the whole module. ``shapes`` computes the shapes of a
model's inputs and variables.

``resize`` adapts a config to weights of other sizes, ``sizes`` does so for each layer, and
``channels`` and ``groups`` find sizes that no array has. ``vocabularies`` finds layers that are
left out. ``frozen`` makes configs hashable.

Where to add: a layer is one entry in ``_kinds``; this folder treats the layers of a model together.
"""
