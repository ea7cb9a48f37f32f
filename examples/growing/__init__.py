"""What ``growbench.py`` is made of.

A task says what is learned and in which ways: from scratch, by a small network that never grows,
and by networks that grow. Each way makes a run, each run has an end for each budget, and the ends
are rows of a file, by which an interrupted bench goes on.

| file | what it does |
|---|---|
| ``data`` | what is learned, drawn anew for each step |
| ``networks`` | the networks |
| ``runs`` | trains in a way, and tells what each budget comes to |
| ``tasks`` | the tasks with their ways |
| ``results`` | the file of results, ratios, tables and pictures |
| ``law`` | a law of loss, fitted to short runs |
"""
