"""``decide``: from ``Widths`` and new sizes to a ``Growth``, or an error with all reasons.

The input is widths, with new sizes, a larger model's variables, or units to keep or merge. The
output is a growth.

| file | what it does |
|---|---|
| ``propose`` | proposes growths, from what the programs show |
| ``decide`` | evaluates proposed growths and returns the first accepted one |
| ``asked`` | the arguments of ``plan``, and the sizes that they stand for |
| ``sizes`` | the new sizes and strategies of all widths, from these arguments |
| ``placements`` | growths that put new units between old ones |
| ``resampled`` | position embeddings and patch kernels for images of another size |
| ``removals`` | how widths lose units |
| ``obstacles`` | reasons against a new size that need no evaluation |
| ``silence`` | which weights must be zero so that new units do not change outputs |
| ``notes`` | notes for the caller on a change |
| ``target`` | the sizes of widths, from the shapes of a larger model's arrays |
| ``sized_names`` | array names that contain sizes, which look like new layers |
| ``larger_model`` | the larger network's own program, if one is given |
| ``shown`` | whether an evaluation shows that outputs stay |
| ``trained`` | whether outputs also stay in training mode, with the statistics of a batch |
| ``own_function`` | the network's own function in other sizes, or why it rejects them |
| ``fewer_layers`` | a deep network with fewer layers, to evaluate its function at less cost |
| ``programs`` | the larger programs that growths are compared with |
| ``numbers_of_sizes`` | constants of a program that may depend on a size |
| ``searching`` | growths with rescaled arrays that compensate for sizes and constants |
| ``search/`` | the search itself: finds factors and new entries by evaluation |
| ``depth/`` | which layers of a deeper model are new, and how they compute the identity |
| ``heads`` | copied heads of keys and values |
| ``experts/`` | more experts, and experts in place of an MLP: ``upcycle`` |

Where to add: nothing here rejects a growth because of the operations of a network; the check
evaluates the network instead.
"""
