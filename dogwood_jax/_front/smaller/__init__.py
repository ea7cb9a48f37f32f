"""Networks with fewer units: finds units that can be removed, and removes them.

Functions take variables and widths, or a function with inputs. They return smaller variables, or
scores and masks of units. ``plan`` and ``grow`` do the work. The core does not import this package.

| file | what it does |
|---|---|
| ``narrow`` | ``narrow`` removes units, ``merge_symmetric`` merges units that are equal |
| ``shrink`` | ``shrink`` narrows to a budget of parameters or FLOPs, or removes layers |
| ``average`` | ``average`` replaces groups of units by their means, such as heads of keys |
| ``saliency`` | ``saliency`` scores how much would be lost without each unit |
| ``layer_scores`` | scores how much would be lost without each layer |
| ``symmetry`` | ``find_symmetric`` finds equal units, ``activity`` measures contributions |
| ``dormant`` | ``dormant`` and ``utility`` find units that are hardly active, or least useful |
| ``recycling`` | ``recycling`` wraps an optimizer so that it renews units that learn nothing |
| ``readings`` | measures the activations that weights read of each unit |
| ``dead`` | ``find_dead`` finds units that outputs do not depend on |
| ``constant_units`` | moves the effect of constant units into biases |
| ``removal`` | evaluates the network without some units |
"""
