"""What every room stands on: trees, text, meshes, random bits. Of growing it knows only names.

| file | holds |
|---|---|
| ``trees`` | pytrees by path; the one place that says how a leaf is named |
| ``arguments`` | refusals of arguments of the wrong kind: ``expect`` |
| ``failed_calls`` | why a network's function fails with wrong variables or inputs |
| ``command`` | how commands on a terminal end |
| ``deferred`` | arrays that are made when they are needed |
| ``described`` | what a value is, in the words of an error |
| ``places`` | where a file may be written |
| ``printable`` | text that a terminal can show |
| ``problems`` | how an error lists all that is wrong: ``listed`` |
| ``bits`` | whether JAX has 64 bits for a number |
| ``tables`` | tables that people read |
| ``meshes`` | where arrays lie on a mesh of devices |
| ``draw`` | random numbers for new weights, as fast as they can be written |

Where to add: a kind of argument is one ``ArgumentKind`` in ``arguments``. What goes here knows
nothing of programs or widths.
"""
