"""Which layers of a deeper model are new, and what may make them compute the identity.

In come two networks; out come insertions, one proposal after another, or the reason why there are
none. An evaluation decides. ``layers`` states the problem and describes solutions. ``identity``
reads the deeper program with open questions (what is this new array filled with?) and keeps the
answers that give the old network's results. ``terms`` gives equal numbers to equal results, and
says what primitives do with zeros and ones, as far as all is finite. ``one_layer`` says what an
equation that computes something for all layers at once computes for one of them.
``statistics`` gives inserted normalizations the statistics of a batch. ``repeated`` makes layers
that do not compute the identity, such as copies.

Where to add: what a primitive does with a zero or an identity is one entry in ``terms``. Without
it a new layer is not shown to do nothing, and is refused.
"""
