"""Heads of keys and values that are copied, while query heads stay.

The larger model's program says how many heads it has. Nothing in the core imports this room.

| file | what it does |
|---|---|
| ``groups`` | copied heads, for ``plan``: which ones, and which query heads each serves |
"""
