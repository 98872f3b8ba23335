"""Bad arguments end in a ValueError or TypeError: never in another error, an
abort, or a call that does not end.
"""

import random

import pytest

from tests import fuzz, fuzz_calls


def test_every_call_of_the_table_is_valid_and_the_runner_separates_outcomes():
    rows = fuzz_calls.calls()
    assert len(rows) > 150
    function, arguments = rows["grids.uniform"]
    assert fuzz.outcome(function, arguments) == "returned"
    assert fuzz.outcome(function, arguments | {"steps": 2**40}) == "rejected"
    assert fuzz.outcome(lambda x: {}[x], {"x": 0}).startswith("KeyError")


@pytest.mark.slow
def test_no_size_aborts_hangs_or_exhausts_memory():
    """All sizes and shapes beyond any use, and a tenth of the other bad
    values: about 5 000 calls.
    """
    values = fuzz_calls.bad_values()
    large = {i for i, v in enumerate(values) if isinstance(v, int) and abs(v) >= 2**31}
    large |= {
        i
        for i, v in enumerate(values)
        if isinstance(v, tuple) and max(v, default=0) >= 2**20
    }
    chosen = random.Random(0)
    tasks = [case for case in fuzz.cases() if case[2] in large or chosen.random() < 0.1]
    bad = [
        (*task[:2], values[task[2]], result)
        for task, result in fuzz.run(tasks)
        if result not in fuzz.GOOD
    ]
    assert not bad, "\n".join(map(repr, bad))
