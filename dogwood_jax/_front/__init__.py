"""Functions as users call them: stages, tasks made of several stages, and questions on networks.

| file | holds |
|---|---|
| ``plan``, ``grow`` | the stages as users call them; ``_plan`` and ``_growth`` do the work |
| ``larger`` | the module of the larger network |
| ``deepen``, ``widen`` | tasks: they plan and grow in one call |
| ``several`` | several networks that become one |
| ``renew`` | units that begin anew |
| ``compare``, ``verify`` | how far the outputs of two networks are apart |
| ``moved_entries``, ``inputs``, ``mirrored``, ``rounding`` | what ``verify`` needs |
| ``stages`` | the growths of a training, for ``training`` and ``staged`` |
| ``cost``, ``counts`` | parameters and FLOPs before and after a growth, in any sizes |
| ``staged`` | what a training in stages costs |
| ``smaller/`` | a room of its own: networks with fewer units |
| ``gain`` | which new unit or layer would lower the loss most at first |
"""
