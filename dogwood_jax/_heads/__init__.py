"""Heads of keys and values that are copied, while query heads stay.

The larger model's program says how many heads it has. Nothing in the core imports this room.

| file | what it does |
|---|---|
| ``family`` | copied heads, for ``plan`` |
| ``groups`` | which heads are copied, and which query heads each copy serves |
"""
