"""Random programs that look for growths that change outputs: see ``random_programs``."""

import pytest
from random_programs import FAILURES, cases, failure, judge
from tiers import long


@pytest.mark.parametrize("first", [0, long(10)])
def test_random_programs_grow_exactly_or_are_refused(first: int) -> None:
    for seed in range(first, first + 10):
        for program, old, request in cases(seed, most=3):
            verdict = judge(program, request, seed, old)
            if verdict.status in FAILURES:
                pytest.fail(str(failure(seed, program, request, verdict)))
