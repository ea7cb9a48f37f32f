"""Experts: more of them, or the first ones, in the place of an MLP.

In come widths and a number of experts, or a larger model. Out comes a growth, which the judge
checks as any other. Nothing in the core imports this room.

| file | what it does |
|---|---|
| ``upcycle`` | ``upcycle``: more experts, or the first ones, whether or not outputs stay |
| ``family`` | experts where outputs stay, for ``plan`` |
| ``experts`` | how the widths of experts grow, and whether outputs stay |
| ``more_experts`` | which axes count experts in a larger model, and what new experts copy |
| ``mixture`` | arrays of experts in place of an MLP, or beside it |
| ``gates`` | what the gates of a router become if every expert is copied |
| ``divided_outputs`` | which arrays of experts divide their outputs |
| ``chosen`` | how many experts are chosen once they are copied, and where programs hold that |
"""
