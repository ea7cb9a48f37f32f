"""Weights of new units that the gradient of a loss chooses: ``gradmax`` and ``firefly``.

In come grown arrays and a batch. Out come the same arrays with other weights in new units. Nothing
in the core imports this room.

| file | what it does |
|---|---|
| ``choose`` | the weights of one width's new units |
| ``rows`` | all weights on one side of new units, as rows |
"""
