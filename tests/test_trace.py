"""What tracing finds: the table of networks, overrides, unknown primitives, kinds of trees."""


import pytest
from networks import NETWORKS, load, places_of

import dogwood_jax as dw

load()


@pytest.mark.parametrize("name", NETWORKS)
def test_widths(name: str) -> None:
    network = NETWORKS[name]
    model = network.build()
    widths = dw.trace(model.apply, model.shapes, *model.inputs)

    found = {
        width.name: {" ".join(str(o).split()[:2]).replace("params/", "") for o in width.occurrences}
        for width in widths.values()
    }
    assert found == {name: places_of(width.places) for name, width in network.widths.items()}
    for name, expected in network.widths.items():
        width = widths[name]
        assert width.size == expected.size
        assert bool(width.fixed) == bool(expected.fixed), width
        assert expected.fixed in (width.fixed or "")
        if not width.fixed:
            assert width.interface == expected.interface, width
            assert_named(width.hazards, expected.hazard)
        if expected.copies:
            assert expected.copies in "; ".join(width.copy_hazards)


def assert_named(reasons: tuple[str, ...], expected: str) -> None:
    """Checks that there are reasons if any are expected, and that they have the words in them."""
    assert bool(reasons) == bool(expected), reasons
    for words in expected.split("; "):
        assert words in "; ".join(reasons)
