"""``decide``: from ``Widths`` and new sizes to a ``Growth``, or every reason why not.

In come widths with sizes, with a larger model's variables, or with units to keep or merge. Out
comes a growth.

| file | what it does |
|---|---|
| ``propose`` | the growths that programs propose |
| ``decide`` | which growth an evaluation accepts |
| ``asked`` | what the caller asks for |
| ``sizes`` | the sizes and strategies of widths that follow from it |
| ``placements`` | where old units may go in place of the first places |
| ``resampled`` | positions and patches of images of another size |
| ``removals`` | how widths lose units |
| ``obstacles`` | what keeps a width from a new size before anything is evaluated |
| ``silence`` | which weights have to be zero for new units to be silent |
| ``notes`` | what a caller has to mind of a change |
| ``target`` | the sizes of widths, from the shapes of a larger model's arrays |
| ``sized_names`` | names of arrays that carry sizes, which look like new layers |
| ``larger_model`` | the larger network's own program, where there is one |
| ``shown`` | whether an evaluation shows that outputs stay, and of which larger program |
| ``own_function`` | the network's own function in other sizes, or why it does not take them |
| ``fewer_layers`` | a deep network with fewer layers, to ask its own function at less cost |
| ``programs`` | the larger programs that growths are compared with |
| ``numbers_of_sizes`` | the numbers of one program that may follow from a size |
| ``searching`` | growths in which arrays make up for sizes and numbers |
| ``search/`` | the search itself: factors and starts, found by evaluation |
| ``depth/`` | which layers of a deeper model are new, and what makes them do nothing |
| ``heads`` | heads of keys and values that are copied |
| ``experts/`` | more experts, and experts in place of an MLP: ``upcycle`` |

Where to add: what a network computes is never a reason here, because the check evaluates it.
"""
