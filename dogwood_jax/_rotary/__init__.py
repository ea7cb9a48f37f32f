"""Old units at multiples of their places, as rotary embeddings of a larger head want them.

Nothing in the core imports this room.

| file | what it does |
|---|---|
| ``between`` | new units between old ones, for ``plan`` |
"""
