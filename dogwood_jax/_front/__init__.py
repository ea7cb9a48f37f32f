"""The functions that users call.

| file | holds |
|---|---|
| ``plan``, ``grow`` | the two steps of a growth; ``_plan`` and ``_growth`` do the work |
| ``larger`` | the module of the larger network |
| ``deepen``, ``widen`` | planning and growing in one call |
| ``several`` | several networks merged into one |
| ``renew`` | units replaced by new ones during training |
| ``compare``, ``verify`` | how far the outputs of two networks differ |
| ``moved_entries``, ``inputs``, ``mirrored``, ``rounding`` | parts of ``verify`` |
| ``stages`` | the growths of a training run, for ``training`` and ``staged`` |
| ``cost``, ``counts`` | parameters and FLOPs before and after a growth, in any sizes |
| ``staged`` | the cost of a training run in stages |
| ``smaller/`` | networks with fewer units or layers |
| ``gain`` | which new unit or layer would lower the loss most at first |
| ``loss_first`` | the order of a loss, variables and widths |
"""
