"""Networks with fewer units: which units may go, and what becomes of a network without them.

In come variables and widths, or a function with inputs. Out come smaller variables, or what is
known of each unit. ``plan`` and ``grow`` do the work. Nothing in the core imports this room.

| file | what it does |
|---|---|
| ``narrow`` | ``narrow`` keeps some units, ``merge_symmetric`` makes one of units that are alike |
| ``shrink`` | ``shrink`` narrows to a budget of parameters or FLOPs, or removes layers |
| ``average`` | ``average`` makes fewer units by means, such as heads of keys |
| ``saliency`` | ``saliency`` says how much would be lost with each unit |
| ``layer_scores`` | how much would be lost with each layer |
| ``symmetry`` | ``find_symmetric`` and ``activity``: which units are alike, and how active |
| ``dormant`` | ``dormant`` and ``utility``: units that are hardly active, or worth least |
| ``recycling`` | an optimizer that renews units which learn nothing |
| ``readings`` | what products with weights read of each unit |
| ``dead`` | ``find_dead``: units that outputs do not depend on |
| ``constant_units`` | what constant units add to their readers goes into biases |
| ``removal`` | the network without some units, and by how much outputs move |
"""
