"""A short slice of the campaign, without a trained model; the whole of it is tests/campaign/run.py."""

from collections.abc import Iterator

import pytest

from tests.campaign.equal import common, difference
from tests.campaign.kills import COMMANDS, kill_round, undisturbed
from tests.campaign.mutation import FAULTS, summary
from tests.campaign.outcome import Outcome, attempt
from tests.campaign.world import World, build

KINDS = ("recipe", "set", "table")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALREC_LITE_CACHE", "")  # `build` sets it
        yield build(tmp_path_factory.mktemp("campaign"), trained=False)


def test_mutated_recipes_and_tables_are_read_or_refused_in_a_few_lines(world: World) -> None:
    outcomes = [attempt(world, seed=1, number=n, kinds=KINDS) for n in range(50)]
    assert [o for o in outcomes if o.result in FAULTS] == []
    assert {"ok", "clear"} == {o.result for o in outcomes}
    assert {o.kind for o in outcomes} == set(KINDS)
    assert not list(world.folder.glob("input-*"))
    assert attempt(world, seed=1, number=7, kinds=KINDS) == outcomes[7]


def test_causes_are_counted_once_each_with_an_input_that_shows_them() -> None:
    results = summary(
        [Outcome(n, "set", "", *o) for n, o in enumerate([("ok",), ("traceback", "a"), ("traceback", "a")])]
    )
    assert (results["inputs"], results["ok"], results["tracebacks"]) == (3, 1, 2)
    assert results["causes"] == [{"result": "traceback", "cause": "a", "count": 2, "kind": "set", "input": 1}]


def test_a_disturbed_prepare_ends_as_if_nobody_had_disturbed_it(world: World) -> None:
    assert "prepare" in COMMANDS
    known = {"prepare": undisturbed(world, "prepare")}
    rounds = [kill_round(world, 0, n, known, {"SIGKILL": 0.7, "SIGTERM": 0.3}) for n in range(6)]
    assert [r for r in rounds if r.difference] == []
    assert sum(r.struck for r in rounds) > 0
    assert len({r.how for r in rounds}) > 1


def test_the_size_of_a_file_that_differs_by_chance_is_not_compared() -> None:
    one, other = ({"size": 9, "sha256": digest} for digest in "ab")
    assert difference(common(one, other), {"size": 10, "sha256": "c"}) == ""
    assert difference(common(one, one), {"size": 10, "sha256": "a"}) == "/size: another value"
