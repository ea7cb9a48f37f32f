"""``Growth``: what becomes of each array when widths and layers change; and ``grow``.

The rooms above give it variables, and what is asked of widths and layers; it returns the larger
network's arrays.

| file | holds |
|---|---|
| ``growth`` | ``Change`` of one width; ``Growth``, all of a network, with its ``Evidence`` |
| ``edit`` | ``Edit``: what one array of the larger model is made of, an old array or new values |
| ``leaf_map`` | ``LeafMap``: what becomes of the units of one array, and its adjoint |
| ``by_layer`` | other units in each layer of a stack |
| ``grown_sizes`` | the size of every dimension of the program once widths have grown |
| ``shardings`` | on which devices grown arrays lie |
| ``new_entries`` | which entries of arrays are new |
| ``pairing`` | which layers of a network are which of a deeper one, by names and shapes |
| ``as_json`` | ``Widths`` and ``Growth`` as JSON |

Growths are made by ``plan`` and read by ``grow`` and ``grow_opt_state``. What carries them out:

| file | what it does |
|---|---|
| ``grown`` | the stage itself: checks, one compiled function for each kind of array |
| ``edited`` | the edit of one array carried out: its map, then what new layers and experts add |
| ``apply_map`` | the map of one array carried out: old units to new places, and fills |
| ``draws`` | random entries |
| ``pieces`` | an array that is too large for memory, some places along one axis at a time |
| ``renewed`` | units that stay where they are and begin anew |
| ``rounds`` | arrays that are made alike share a compiled function; copies of shared arrays |
| ``moves`` | moves of entries along axes that may be divided among devices |
| ``explicit_axes`` | the same on meshes with explicit axes |
| ``finite`` | whether arrays are finite |
| ``by_gradient``, ``rows`` | weights of new units that a gradient chooses, as for ``gradmax`` |

``modules/`` makes modules larger that say sizes beside their arrays.

Where to add: how new entries are filled is said by a strategy and read into a ``LeafMap``, and what
new layers are filled with is a ``Fill``; ``apply_map`` and ``edited`` carry them out.
"""
