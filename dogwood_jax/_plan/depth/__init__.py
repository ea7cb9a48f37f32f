"""Which layers of a deeper model are new, and what may make them compute the identity.

In come two networks; out come edits, one proposal after another, or the reason why there are
none. ``layers`` pairs arrays by names and shapes. ``trial`` fills the new ones, evaluates both
networks on a few samples, and keeps what leaves outputs as they were. The check decides among
these, on many samples. ``departures`` says why nothing does. ``fillings`` puts this together.
``statistics`` gives inserted normalizations the statistics of a batch. ``repeated`` makes layers
that do not compute the identity, such as copies.

The way back is ``removed``: layers with numbers in their names go.

Where to add: a filling that is worth a try is one more start in ``trial``.
"""
