"""Which layers of a deeper model are new, and how they can compute the identity.

The input is two networks. The output is proposals, one tuple of edits after another, or the reason
why there are none. ``layers`` pairs arrays by names and shapes. ``trial`` fills the new arrays,
evaluates both networks on a few samples, and keeps fillings that leave outputs as they were. The
check decides among these, on many samples. ``departures`` explains why no filling works.
``fillings`` combines these files. ``statistics`` gives inserted normalizations the statistics of a
batch. ``repeated`` makes layers that do not compute the identity, such as copies. ``removed`` does
the reverse: it removes layers with numbers in their names.

Where to add: a new kind of filling is one more start in ``trial``.
"""
