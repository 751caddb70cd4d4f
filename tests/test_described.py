"""A recipe as a person reads it, and the page of all keys."""

from pathlib import Path
from typing import Any, get_args

import pytest

from calrec_lite.recipe import Recipe, Section
from calrec_lite.recipe.described import differing, explained, page
from calrec_lite.recipe.file import builtin_folder, check_recipe, load_recipe

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
SMALL = {
    "name": "mine",
    "base": {"model": "tiny"},
    "domains": {"shop": {"interactions": "events.csv"}},
    "stages": [{"name": "target", "domains": ["shop"], "max_steps": 2}],
}


def test_the_page_is_made_of_the_descriptions() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m calrec_lite.recipe.described > docs/recipe.md"


def sections(section: type[Section]) -> dict[str, type[Section]]:
    found = {section.__name__: section}
    for field in section.model_fields.values():
        annotations: list[Any] = [field.annotation]
        while annotations:
            part = annotations.pop()
            annotations += get_args(part)
            if isinstance(part, type) and issubclass(part, Section):
                found |= sections(part)
    return found


def test_every_key_says_what_it_is() -> None:
    shown = page()
    for section in sections(Recipe).values():
        assert section.__doc__
        for key, field in section.model_fields.items():
            inner = sections_in(field.annotation)
            assert inner or field.description, f"{section.__name__}.{key} has no description"
            assert f"`{key}`" in shown or inner


def sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


@pytest.mark.parametrize("shown", [differing, explained])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": "1e5", "text": {"missing": "08", "separator": "1:30", "next": "yes"}},
        {
            "text": {"missing": None, "first": "# ': {x}"},
            "domains": {"a-b": {"interactions": "é", "fields": {"T": "t"}}},
        },
        {"ablate": {"stages": [[], ["target"]], "variants": {}, "seeds": [1, 2]}, "loss": {"tau": 1e-4}},
        {"domains": {"shop": {"interactions": "e", "holdout": {"by": "time", "valid_from": "2018-01-31"}}}},
        {"domains": {"shop": {"interactions": "e"}, "more": {"interactions": "e2", "min_user_events": 7}}},
    ],
    ids=["small", "numbers", "odd", "lists", "dates", "two"],
)
def test_what_is_shown_is_the_recipe(shown: Any, change: dict[str, Any], tmp_path: Path) -> None:
    values = {**SMALL, **change}
    if "shop" not in values["domains"]:
        values["stages"] = [{"name": "target", "domains": [next(iter(values["domains"]))], "max_steps": 2}]
    if "holdout" in values["domains"].get("shop", {}):
        values["domains"]["shop"]["holdout"]["test_from"] = "2018-02-28"
    recipe = check_recipe(values)
    (tmp_path / "shown.yaml").write_text(shown(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "shown.yaml") == recipe


@pytest.mark.parametrize("shown", [differing, explained])
@pytest.mark.parametrize("extended", sorted(p.name for p in (builtin_folder() / "base").glob("*.yaml"))[:3])
def test_built_in_recipes_too(shown: Any, extended: str, tmp_path: Path) -> None:
    own = "name: x\nstages: [{name: a, domains: [movies], epochs: 1}]\n"
    (tmp_path / "own.yaml").write_text(f"extends: [calrec.yaml, base/{extended}, data/ml-100k.yaml]\n{own}")
    for source in (tmp_path / "own.yaml", "demo"):
        (tmp_path / "shown.yaml").write_text(shown(load_recipe(source)), encoding="utf-8")
        assert load_recipe(tmp_path / "shown.yaml") == load_recipe(source)


def test_what_is_as_by_default_is_left_out() -> None:
    shown = differing(check_recipe({**SMALL, "optim": {"batch_size": 16, "warmup": 0.1}}))
    assert "warmup: 0.1" in shown
    assert "batch_size" not in shown
    assert "loss" not in shown


def test_descriptions_stand_beside_their_keys() -> None:
    lines = explained(check_recipe(SMALL)).splitlines()
    assert "  batch_size: 16  # rows of one optimiser step; all of them are negatives" in lines
    assert max(len(line) for line in lines if line.lstrip().startswith("#")) < 120
