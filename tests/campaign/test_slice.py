"""A short slice of the campaign: the whole of it is `python tests/campaign/run.py` (see there)."""

from pathlib import Path

import pytest

from tests.campaign.mutation import FAULTS
from tests.campaign.outcome import attempt
from tests.campaign.world import World, build


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALREC_LITE_CACHE", "")  # put back afterwards
        yield build(tmp_path_factory.mktemp("campaign"), trained=False)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_mutated_recipes_and_tables_are_read_or_refused_in_a_few_lines(world: World, first: int) -> None:
    outcomes = [attempt(world, seed=1, number=n, light=True) for n in range(first, first + 20)]
    assert [o for o in outcomes if o.result in FAULTS] == []
    assert {"ok", "clear"} <= {o.result for o in outcomes}
    assert not list(Path(world.folder).glob("input-*"))
