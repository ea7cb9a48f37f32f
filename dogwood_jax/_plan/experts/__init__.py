"""Experts: more of them, or the first ones, in place of an MLP.

The input is widths and a number of experts, or a larger model. The output is a growth, which is
checked like any other.

| file | what it does |
|---|---|
| ``upcycle`` | ``upcycle``: more experts, or the first ones, whether or not outputs stay |
| ``planned`` | experts in growths by ``plan``, and how many are chosen after copying |
| ``found_mixtures`` | experts of each router in a network, and the share that a token leaves out |
| ``copied`` | ways to copy experts, to be tried in turn |
| ``more_experts`` | axes that count experts in a larger model, and sources of new experts |
| ``new_mixture`` | arrays of experts that replace an MLP, or are added to it |
| ``routers`` | the routers of a program, and the arrays that their choices index |
"""
