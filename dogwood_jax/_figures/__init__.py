"""What growing costs and what it may gain, in numbers. Nothing in the core imports this room.

| file | what it does |
|---|---|
| ``cost`` | ``cost`` counts parameters and FLOPs before and after a growth |
| ``staged`` | what a training in stages costs |
| ``counts`` | what a network costs in any sizes, with the keys and values that attention keeps |
| ``gain`` | ``gain`` says which new unit or layer would lower the loss most at first |
"""
