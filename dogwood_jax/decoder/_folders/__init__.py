"""The command line's work on Hugging Face folders, without a line of Python.

Input: a folder with a model that ``decoder`` computes, and new values for its ``config.json``.
Output: a folder that transformers loads, and a text that reports the changes.

| file | content |
|---|---|
| ``numbers`` | the settings that ``--set`` accepts, and the settings that follow from them |
| ``models`` | the model of a folder, traced, and the shapes of the new model |
| ``grow`` | more units, heads, layers and tokens |
| ``upcycle`` | experts in place of an MLP, or more experts |
| ``shrink`` | fewer hidden units and layers |
| ``scores`` | scores that select the units and layers to keep |
| ``maxtext`` | grows a MaxText step, and writes the config of the larger model |
"""
