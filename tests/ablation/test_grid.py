"""Which cells an ablation has, what they share, and what is refused."""

from typing import Any

import pytest

from calrec_lite.ablation.grid import described, plan, stage_keys, to_train
from calrec_lite.errors import InputError
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe

STAGES = [
    {"name": "joint", "domains": ["books", "films"], "max_steps": 30},
    {"name": "target", "domains": ["films"], "max_steps": 10},
]


def recipe(ablate: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    domains = {name: {"interactions": f"{name}.csv"} for name in ("books", "films")}
    return check_recipe(
        {"name": "r", "base": {"model": "m"}, "domains": domains, "stages": STAGES, "ablate": ablate or {}, **sections}
    )


def test_the_grid_of_the_paper() -> None:
    names = [cell.name for cell in plan(recipe())]
    assert names[:2] == ["untouched", "full.joint.target.seed0"]
    crossed = [
        f"{variant}.{stages}.seed0"
        for variant in ("full", "no_tt", "no_ut", "no_contrast")
        for stages in ("joint", "target", "joint.target")
    ]
    others = [
        f"{variant}.joint.target.seed0" for variant in ("targets_last", "softmax_vocabulary", "handover_continue")
    ]
    assert sorted(names) == sorted(["untouched", *crossed, *others])  # targets_all is what the recipe says already


def test_a_cell_is_the_recipe_with_its_change_and_nothing_else() -> None:
    cells = {cell.name: cell.recipe for cell in plan(recipe())}
    full = cells["full.joint.target.seed0"]
    one = cells["handover_continue.joint.target.seed0"]
    assert [s.handover for s in one.stages] == ["continue", "continue"]
    restored = [s.model_copy(update={"handover": "merge"}) for s in one.stages]
    assert one.model_copy(update={"stages": restored, "name": full.name}) == full
    no_tt = cells["no_tt.joint.seed0"]
    assert (no_tt.loss.alpha, no_tt.loss.beta) == (0, full.loss.beta)
    assert [s.name for s in no_tt.stages] == ["joint"]
    assert {cell.target for cell in cells.values()} == {"films"}
    assert not full.evaluate.baselines
    assert cells["untouched"].evaluate.baselines


def test_equal_keys_for_equal_weights() -> None:
    cells = {cell.name: cell for cell in plan(recipe())}
    joint, target = cells["full.joint.seed0"].keys, cells["full.target.seed0"].keys
    both, carried = cells["full.joint.target.seed0"].keys, cells["handover_continue.joint.target.seed0"].keys
    assert joint == both[:1] == carried[:1]
    assert len({both[1], carried[1], *target}) == 3
    assert cells["no_tt.joint.seed0"].keys != joint
    # 12 x 3 stages for the crossed ones, of which each I is shared with its I + II; two of two stages; one more II
    assert len({key for cell in cells.values() for key in cell.keys}) == 4 * 3 + 2 * 2 + 1


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1}, False),
        ({"optim": {"seed": 1}}, False),
        ({"optim": {"learning_rate": 1e-5}}, False),
        ({"loss": {"tau": 0.1}}, False),
        ({"text": {"max_items": 5}}, False),
        ({"domains": {"books": {"interactions": "b.csv"}, "films": {"interactions": "films.csv"}}}, False),
        ({"stages": [{**STAGES[0], "max_steps": 31}, STAGES[1]]}, False),
        ({"optim": {"seed": 0}}, True),
        ({"optim": {"micro_batch_size": 1, "log_every": 3}}, True),
        ({"name": "other", "evaluate": {"users": 5}, "recommend": {"k": 3}}, True),
        ({"stages": [{**STAGES[0], "name": "first", "handover": "continue"}, STAGES[1]]}, True),
    ],
    ids=str,
)
def test_what_decides_the_weights(change: dict[str, Any], same: bool) -> None:
    assert (stage_keys(recipe(**change)) == stage_keys(recipe())) == same


@pytest.mark.parametrize(
    ("ablate", "lengths"),
    [
        ({"steps": 21}, {"joint": [21], "target": [21], "joint.target": [16, 5]}),
        ({"minutes": 8}, {"joint": [8.0], "target": [8.0], "joint.target": [6.0, 2.0]}),
        ({}, {"joint": [30], "target": [10], "joint.target": [30, 10]}),
    ],
    ids=str,
)
def test_the_budget_is_equal_for_all_cells(ablate: dict[str, Any], lengths: dict[str, list[float]]) -> None:
    cells = {cell.name: cell.recipe for cell in plan(recipe(ablate))}
    for stages, expected in lengths.items():
        assert [s.max_steps or s.minutes for s in cells[f"full.{stages}.seed0"].stages] == expected


def test_epochs_are_divided_evenly() -> None:
    stages = [{**STAGES[0], "max_steps": None, "epochs": 3}, STAGES[1]]
    cells = {cell.name: cell.recipe for cell in plan(recipe({"steps": 20}, stages=stages))}
    assert [s.max_steps for s in cells["full.joint.target.seed0"].stages] == [10, 10]


@pytest.mark.parametrize("grid", [{}, {"stages": [[], ["joint"]]}], ids=["default", "named"])
def test_the_untouched_base_is_left_out_where_the_recipe_does(grid: dict[str, Any]) -> None:
    cells = plan(recipe(grid, evaluate={"base": False, "baselines": ["popularity"]}))
    assert all(cell.stages for cell in cells)
    assert not any(cell.recipe.evaluate.base for cell in cells)
    assert [cell.recipe.evaluate.baselines for cell in cells if cell.recipe.evaluate.baselines] == [["popularity"]]
    assert cells[0].recipe.evaluate.baselines
    cells = plan(recipe(grid, evaluate={"baselines": ["popularity"]}))
    assert [cell.name for cell in cells if cell.recipe.evaluate.baselines] == ["untouched"]


def test_each_cell_says_what_it_changes_and_costs() -> None:
    made = recipe({"variants": {"cool": {"loss.tau": 0.1}}, "crossed": [], "stages": [[], ["joint"], ["target"]]})
    cells = plan(made)
    assert described(cells, made) == [
        "untouched: trains nothing",
        "full.joint.target.seed0: joint 30 steps, target 10 steps",
        "full.joint.seed0: joint as before",
        "full.target.seed0: target 10 steps",
        "cool.joint.target.seed0: joint 30 steps, target 10 steps; loss.tau = 0.1",
    ]
    assert to_train(cells) == "90 steps"
    stages = [{**STAGES[0], "max_steps": None, "epochs": 1.5}, {**STAGES[1], "max_steps": None, "minutes": 2}]
    made = recipe({"variants": {}, "crossed": []}, stages=stages)
    assert "joint 1.5 passes, target 2 minutes" in "\n".join(described(plan(made), made))
    assert to_train(plan(made)) == "1.5 passes and 4 minutes"


def test_seeds_are_of_training_alone() -> None:
    cells = plan(recipe({"seeds": [3, 4], "variants": {}, "crossed": [], "stages": [[], ["target"]]}, seed=7))
    assert [cell.name for cell in cells] == [
        "untouched",
        *(f"full.{s}.seed{n}" for n in (3, 4) for s in ("joint.target", "target")),
    ]
    assert {cell.recipe.seed for cell in cells} == {7}
    assert [cell.recipe.training_seed for cell in cells[1:]] == [3, 3, 4, 4]


@pytest.mark.parametrize(
    ("ablate", "said"),
    [
        ({"stages": [["joint", "nowhere"]]}, "ablate.stages.0.1: no stage `nowhere`; there are: joint, target"),
        ({"steps": 5, "minutes": 5}, "set steps or minutes"),
        ({"crossed": ["nothing"]}, "crossed names no variant: nothing"),
        ({"variants": {"full": {}}, "crossed": []}, "may be called `full`"),
        ({"variants": {"a": {"loss.alfa": 1}}, "crossed": []}, "ablate.variants.a: loss.alfa: there is no such key"),
        ({"variants": {"a": {"stages.7.handover": "merge"}}, "crossed": []}, "stages.7.handover: there is no such key"),
        ({"variants": {"a": {"loss.alpha": 7}}, "crossed": []}, "ablate.variants.a: loss.alpha: input should be less"),
        ({"variants": {"a": {"seed": 7}}, "crossed": []}, "may change keys of base, text, stages, loss, optim only"),
        ({"variants": {"a": {"evaluate.users": 7}}, "crossed": []}, "may change keys of base, text"),
    ],
    ids=str,
)
def test_a_grid_that_cannot_be(ablate: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r".") as caught:
        plan(recipe(ablate))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
