"""Helpers that every other room uses: trees, text, meshes, random bits. Nothing here grows models.

| file | holds |
|---|---|
| ``trees`` | pytrees by path; the only place that defines the names of leaves |
| ``arguments`` | refusals of arguments of the wrong kind: ``expect`` |
| ``failed_calls`` | explanations of a network's function that fails: ``explaining`` |
| ``command`` | options, output and exit codes of terminal commands |
| ``deferred`` | arrays that are made when they are needed |
| ``described`` | short descriptions of values for error messages |
| ``places`` | where a file may be written |
| ``printable`` | text that a terminal can show |
| ``problems`` | errors that list all problems together: ``listed`` |
| ``progress`` | a line on stderr about a call that takes long: ``say`` |
| ``bits`` | 64-bit mode of JAX |
| ``tables`` | tables that people read |
| ``meshes`` | placement of arrays on a mesh of devices |
| ``draw`` | random values for new weights, at the speed of writing them |

Where to add: a kind of argument is one ``ArgumentKind`` in ``arguments``. Code in this room depends
on neither programs nor widths.
"""
