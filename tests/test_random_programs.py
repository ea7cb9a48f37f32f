"""Random programs grow exactly or are refused: see ``random_programs``."""

import pytest
from random_programs import FAILURES, cases, failure, judge
from tiers import long


@pytest.mark.parametrize(("first", "is_large"), [(0, False), long(6, False), long(0, True)])
def test_random_programs_grow_exactly_or_are_refused(first: int, is_large: bool) -> None:
    for seed in range(first, first + 6):
        for program, old, request in cases(seed, most=3, is_large=is_large):
            verdict = judge(program, request, seed, old)
            if verdict.status in FAILURES:
                pytest.fail(str(failure(seed, program, request, verdict)))
