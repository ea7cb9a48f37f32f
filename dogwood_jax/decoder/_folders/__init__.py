"""A folder of Hugging Face in, a folder out: what the command line does without a line of Python.

Comes in: a folder whose model ``decoder`` computes, and new numbers for its ``config.json``.
Goes out: a folder that transformers loads, and a text that says what was done.

| file | what it does |
|---|---|
| ``numbers`` | which numbers may be set, and what follows from them |
| ``models`` | the model of a folder, traced, and a larger one's shapes |
| ``grow`` | more units, heads, layers and tokens |
| ``upcycle`` | experts in place of an MLP, or more of them |
| ``shrink`` | fewer hidden units and layers |
| ``scores`` | which of them the model misses least |
| ``maxtext`` | a step of MaxText in, a step out, and the numbers for its config |
"""
