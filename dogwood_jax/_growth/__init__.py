"""``Growth``: what becomes of each array when widths change, as plain data.

| file | holds |
|---|---|
| ``growth`` | ``Change`` of one width; ``Growth``, all changes of a network, as a table |
| ``leaf_map`` | ``LeafMap``: what becomes of one array, without names; and its adjoint |
| ``resampling`` | how entries along an axis are interpolated, as a matrix |
| ``by_layer`` | other units in each layer of a stack |
| ``evidence`` | ``Evidence``: what an evaluation has shown of a growth |
| ``grown_sizes`` | the size of every dimension of the program once widths have grown |
| ``edit`` | ``Edit``: what one array of the larger model is made of, an old array or new values |
| ``shardings`` | on which devices grown arrays lie |
| ``new_entries`` | which entries of arrays are new |
| ``rates`` | how the best learning rate of each array moves as the network widens |
| ``pairing`` | which layers of a network are which of a deeper one, by names and shapes |
| ``as_json`` | ``Widths`` and ``Growth`` as JSON |

Growths are made by ``plan`` and read by ``grow`` and ``grow_opt_state``.
"""
