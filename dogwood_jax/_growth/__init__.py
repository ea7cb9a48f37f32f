"""``Growth``, the change of each array when widths and layers change; and ``grow``.

The input is variables, with the changes of widths and layers. The output is the larger network's
arrays.

| file | holds |
|---|---|
| ``growth`` | ``Change`` of one width; ``Growth`` of a whole network, with its ``Evidence`` |
| ``edit`` | ``Edit``: makes one array of the larger model from an old array, new values or both |
| ``leaf_map`` | ``LeafMap``: the change of units along the axes of one array, and its adjoint |
| ``by_layer`` | changes of different units in each layer of a stack |
| ``grown_sizes`` | the size of every dimension of the program after widths have grown |
| ``shardings`` | placement of grown arrays on devices |
| ``new_entries`` | which entries of arrays are new |
| ``pairing`` | pairs of layers in a network and a deeper one, by names and shapes |
| ``as_json`` | ``Widths`` and ``Growth`` as JSON |

``plan`` makes growths; ``grow`` and ``grow_opt_state`` apply them. These files carry them out:

| file | what it does |
|---|---|
| ``grown`` | checks arguments, runs one compiled function for each kind of array |
| ``edited`` | applies the edit of one array: its map, then new layers and experts |
| ``apply_map`` | applies the map of one array: moves old units, fills new places |
| ``draws`` | draws random entries |
| ``pieces`` | makes an array that is too large for memory, some places along one axis at a time |
| ``renewed`` | reinitializes units in place |
| ``rounds`` | groups arrays that can share a compiled function; copies shared arrays |
| ``moves`` | moves entries along axes that may be divided among devices |
| ``explicit_axes`` | enters and leaves meshes with explicit axes |
| ``finite`` | checks whether arrays are finite |
| ``by_gradient``, ``rows`` | choose weights of new units by a gradient, for ``gradmax`` |

``modules/`` enlarges modules that store sizes besides their arrays.

Where to add: a strategy defines how new entries are filled, and becomes part of a ``LeafMap``; a
``Fill`` defines the values of new layers. ``apply_map`` and ``edited`` carry them out.
"""
