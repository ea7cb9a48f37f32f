"""Experts: more of them, or the first ones, in the place of an MLP.

In come widths and a number of experts, or a larger model. Out comes a growth, which is checked
as any other.

| file | what it does |
|---|---|
| ``upcycle`` | ``upcycle``: more experts, or the first ones, whether or not outputs stay |
| ``planned`` | experts in growths by ``plan``, and how many are chosen once they are copied |
| ``mixtures`` | the experts in a network, by routers, and which of them a token does not use |
| ``copied`` | how experts are copied, and in which ways that is tried |
| ``more_experts`` | which axes count experts in a larger model, and what new experts copy |
| ``mixture`` | arrays of experts in place of an MLP, or beside it |
| ``routers`` | the routers of a program, and the arrays that their choices find |
"""
