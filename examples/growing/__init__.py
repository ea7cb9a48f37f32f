"""The parts of ``growbench.py``.

A task has data and several ways to train a network: from scratch, a small network that never grows,
and networks that grow. Each way is a run. Each run has an end for each budget. The ends are rows of
a file, from which an interrupted benchmark continues.

| file | content |
|---|---|
| ``data`` | data sets, drawn again for each step |
| ``networks`` | the networks |
| ``runs`` | training in one way, and the results for each budget |
| ``tasks`` | the tasks with their ways |
| ``results`` | the file of results, ratios, tables and plots |
| ``law`` | a law of loss, fitted to short runs |
"""
