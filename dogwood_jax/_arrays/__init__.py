"""``grow``: from variables and a ``Growth`` to the arrays of the larger network.

| file | what it does |
|---|---|
| ``grow`` | the stage itself: checks, rounds, one compiled function for each kind of array |
| ``apply_map`` | the map of one array carried out: old units to new places, and fills |
| ``draws`` | random entries |
| ``pieces`` | an array that is too large for memory, some places along one axis at a time |
| ``edited`` | the edit of one array carried out: its map, then what new layers and experts add |
| ``renew`` | units that stay where they are and begin anew |
| ``rounds`` | arrays that grow alike share a compiled function |
| ``moves`` | moves of entries along axes that may be divided among devices |
| ``explicit_axes`` | the same on meshes with explicit axes |
| ``unshared`` | copies of the arrays that two trees share |
| ``finite``, ``dead`` | whether arrays are finite, and whether new units can learn |

Where to add: how new entries are filled is said by a strategy and read into a ``LeafMap``;
``apply_map`` carries it out.
"""
