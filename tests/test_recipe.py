"""Recipes: strict, every mistake at once with its line, and files that extend one another."""

from datetime import date
from pathlib import Path

import pytest

from calrec_lite.errors import InputError
from calrec_lite.recipe import require_domain
from calrec_lite.recipe.bases import unknown_base
from calrec_lite.recipe.file import builtin_folder, load_recipe, load_resolved, save_resolved

GOOD = """\
name: small
base: {model: some/model}
domains:
  films: {interactions: ratings.csv, fields: {Title: name}}
stages:
  - {name: one, domains: [films], epochs: 1}
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def failure(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def test_defaults_fill_what_is_not_said(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.seed, recipe.loss.alpha, recipe.domains["films"].min_user_events) == (0, 0.125, 3)
    assert recipe.target == "films"
    with pytest.raises(InputError, match="no domain `books`; it has: films"):
        require_domain(recipe, "books")


def test_every_mistake_is_reported_with_its_line_and_a_suggestion(tmp_path: Path) -> None:
    text = GOOD + "loss:\n  alfa: 0.1\n  tau: -1\noptim:\n  batch_size: many\n"
    path = write(tmp_path, text)
    lines = failure(path)
    assert len(lines) == 3
    assert any(line == f"{path}:8: loss.alfa: unknown key; did you mean `alpha`?" for line in lines)
    assert any(line.startswith(f"{path}:9: loss.tau: ") and "-1" in line for line in lines)
    assert any(line.startswith(f"{path}:11: optim.batch_size: ") and "'many'" in line for line in lines)


@pytest.mark.parametrize("number", ["010", "08", "-017", "0b11", "0o17", "1:30", "190:20:30.15", "00", "0_8", "01.5"])
def test_numbers_that_look_like_others_are_refused(tmp_path: Path, number: str) -> None:
    path = write(tmp_path, GOOD + f"seed: {number}\n")
    remedy = f"`{number}` is another number to YAML; write it in decimal, or quote a text"
    assert failure(path) == [f"{path}:7: {remedy}"]
    assert failure(write(tmp_path, GOOD), f"seed={number}")[0].endswith(remedy)
    quoted = GOOD.replace("name: small", f'name: "n{number.replace(":", "")}"').replace("ratings.csv", f'"{number}"')
    assert load_recipe(write(tmp_path, quoted)).domains["films"].interactions == number


@pytest.mark.parametrize(("number", "value"), [("0", 0), ("10", 10), ("1_000", 1000), ("0x10", 16), ("+7", 7)])
def test_numbers_that_look_like_themselves(tmp_path: Path, number: str, value: int) -> None:
    assert load_recipe(write(tmp_path, GOOD), [f"seed={number}"]).seed == value
    decimals = ["loss.tau=0.5", "loss.alpha=.25", "loss.beta=0.025", "optim.learning_rate=1e-3"]
    loss = load_recipe(write(tmp_path, GOOD), decimals).loss
    assert (loss.tau, loss.alpha, loss.beta) == (0.5, 0.25, 0.025)


def test_yes_and_no_are_texts_where_texts_are_asked_for(tmp_path: Path) -> None:
    text = GOOD.replace("{Title: name}", "{On: no, Yes: yes}")
    recipe = load_recipe(write(tmp_path, text), ["text.missing=no", "optim.compile=yes", "export.catalogue=off"])
    assert recipe.domains["films"].fields == {"On": "no", "Yes": "yes"}
    assert (recipe.text.missing, recipe.optim.compile, recipe.export.catalogue) == ("no", True, False)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("base: {model: some/model}\n", "base: {}\n"))
    assert failure(path) == [f"{path}:2: base.model: is missing"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("domains: [films]", "domains: [filmz]", "stages.0.domains.0: no domain `filmz`; there are: films"),
        ("epochs: 1", "epochs: 1, max_steps: 2", "set exactly one of epochs, max_steps and minutes"),
        ("model: some/model", "model: m, load_in_8bit: true", "load_in_4bit and load_in_8bit exclude each other"),
    ],
)
def test_keys_that_contradict_each_other(tmp_path: Path, old: str, new: str, said: str) -> None:
    (line,) = failure(write(tmp_path, GOOD.replace(old, new)))
    assert said in line


def test_extends_puts_the_own_values_above(tmp_path: Path) -> None:
    write(tmp_path, "seed: 7\nloss: {tau: 0.1, beta: 0.2}\n", "below.yaml")
    recipe = load_recipe(write(tmp_path, "extends: below.yaml\nloss: {tau: 0.3}\n" + GOOD))
    assert (recipe.seed, recipe.loss.tau, recipe.loss.beta) == (7, 0.3, 0.2)


def test_a_mistake_in_an_extended_file_names_that_file(tmp_path: Path) -> None:
    below = write(tmp_path, "seed: 7\nloss:\n  tauu: 0.1\n", "below.yaml")
    assert failure(write(tmp_path, "extends: [below.yaml]\n" + GOOD)) == [
        f"{below}:3: loss.tauu: unknown key; did you mean `tau`?"
    ]


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    (line,) = failure(write(tmp_path, "extends: b.yaml\n" + GOOD, "a.yaml"))
    assert "extends itself" in line


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["stages.0.epochs=2", "loss.direction=both", "optim.learning_rate=1e-3", "seed=3"])
    assert (recipe.stages[0].epochs, recipe.loss.direction, recipe.seed) == (2, "both", 3)
    assert recipe.optim.learning_rate == 0.001
    assert failure(path, "loss.tua=1") == ["--set loss.tua=1: loss.tua: unknown key; did you mean `tau`?"]
    assert "write it as key.sub=value" in failure(path, "seed")[0]
    assert "not a position in a list of 1" in failure(path, "stages.5=x")[0]
    assert "single value" in failure(path, "name.x=1")[0]


def test_the_resolved_file_is_a_recipe_that_says_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["text.missing=null"])
    save_resolved(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nseed: 1\nname: b\n", ":3: key `name` appears twice"),
        ("name: [a\n", "not valid YAML"),
        ("- a\n", "a recipe is a mapping"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    (line,) = failure(write(tmp_path, text))
    assert said in line
    assert str(tmp_path / "r.yaml") in line


def test_a_file_that_is_not_there() -> None:
    assert "did you mean `demo`?" in failure(Path("dem"))[0]


@pytest.mark.parametrize("name", ["base/qwen3-06b.yaml", "qwen3-0.6b.yaml", "Qwen3-0.6B"])
def test_an_unknown_base_lists_near_ones_and_all(name: str, tmp_path: Path) -> None:
    (said,) = failure(write(tmp_path, f"extends: {name}\n{GOOD}"))
    assert "did you mean `base/qwen3-0.6b.yaml`" in said
    assert "The bases are base/*.yaml: smollm2-135m, " in said
    (said,) = failure(write(tmp_path, f"extends: base/gpt.yaml\n{GOOD}"))
    assert "did you mean" not in said
    assert "mistral-7b" in said


def test_a_model_called_as_a_base_file() -> None:
    assert "extends: base/qwen3-0.6b.yaml" in unknown_base("qwen3-0.6b")
    assert unknown_base("HuggingFaceTB/SmolLM2-135M") == unknown_base("openai/gpt-oss") == ""


@pytest.mark.parametrize("name", ["demo"])
def test_every_whole_recipe_that_comes_with_the_package_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_paper_settings_are_valid_under_a_recipe_that_extends_them(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f"extends: {builtin_folder() / 'calrec.yaml'}\n" + GOOD))
    assert (recipe.loss.targets, recipe.recommend.strategy) == ("last", "sample")


def test_an_override_that_cannot_be_is_blamed_on_itself(tmp_path: Path) -> None:
    (line,) = failure(write(tmp_path, GOOD), "seed.x=1")
    assert line.startswith("--set seed.x=1: seed")


def held_out(domains: str, more: str = "") -> str:
    return (
        f"name: r\nbase: {{model: m}}\ndomains:\n{domains}stages: [{{name: s, domains: [a, b], epochs: 1}}]\n"
        f"evaluate: {{domain: b}}\n{more}"
    )


BY_DATE = "{by: time, valid_from: 2018-01-01, test_from: 2018-06-30}"


def test_dates_of_a_time_split_are_read_and_written_back(tmp_path: Path) -> None:
    text = held_out("".join(f"  {name}: {{interactions: x.csv, holdout: {BY_DATE}}}\n" for name in "ab"))
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.domains["a"].holdout.valid_from == date(2018, 1, 1)
    save_resolved(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("{valid_from: 2018-01-01, test_from: 2018-06-30}", "{}", "valid_from and test_from need `by: time`"),
        ("{by: leave_one_out}", BY_DATE, "domains.a.holdout: must be as that of `b`, which is held out by time"),
        ("{by: time}", "{by: time}", "domains.b.holdout: give dates where several domains are trained on"),
        ("{}", "{by: time, valid_from: 0.9, test_from: 0.8}", "valid_from (0.9) must be earlier than test_from (0.8)"),
        ("{}", "{by: time, valid_from: 1.5}", "give a date such as 2018-06-30, or a share of the events"),
        ("{}", "{by: time, valid_from: 20180630}", "give a date such as 2018-06-30, or a share of the events"),
        ("{}", "{by: time, valid_from: soon}", "give a date such as 2018-06-30, or a share of the events"),
        ("{}", "{by: time, valid_from: '86400'}", "give a date such as 2018-06-30, or a share of the events"),
    ],
)
def test_a_time_split_that_cannot_be(tmp_path: Path, a: str, b: str, said: str) -> None:
    text = held_out(f"  a: {{interactions: x.csv, holdout: {a}}}\n  b: {{interactions: x.csv, holdout: {b}}}\n")
    assert any(said in line for line in failure(write(tmp_path, text))), failure(write(tmp_path, text))


def test_leave_one_out_elsewhere_is_no_concern_of_a_target_held_out_so(tmp_path: Path) -> None:
    text = held_out(f"  a: {{interactions: x.csv, holdout: {BY_DATE}}}\n  b: {{interactions: x.csv}}\n")
    assert load_recipe(write(tmp_path, text)).target == "b"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{f'*{b}, ' * 9}]\n" for b, c in zip("abcdef", "bcdefg")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('seed: !!int ""', ":1: a value that cannot be read as int"),
        ("seed: !!int x", ":1: a value that cannot be read as int"),
        ("seed: !!bool x", ":1: a value that cannot be read as bool"),
        ("seed: !!timestamp x", ":1: a value that cannot be read as timestamp"),
        ("seed: !!float x", ":1: a value that cannot be read as float"),
        ("!!bool x: 1", ":1: a value that cannot be read as bool"),
        (f"seed: {'9' * 5000}", ":1: a value that cannot be read as int"),
        (f"seed: 0x{'f' * 5000}", ":1: a number beyond all use"),
        (f"ablate: {{variants: {{x: {{seed: 0x{'f' * 5000}}}}}}}", "a number beyond all use"),
        (f"seed: {'x' * 5000}", "xxx..."),
        ("seed: 2020-13-45", "cannot be read as timestamp"),
        ("a: &a [*a]", "more than 30 lists or sections"),
        (f"a: {'[' * 3000}{']' * 3000}", "more than 30 lists or sections"),
        ("- " * 3000, "more than 30 lists or sections"),
        (BOMB, "more than 20,000 values"),
        (f"name: {'x' * 300_000}", "more than 262,144 bytes"),
        ('name: "a\\0b"', "control character"),
        ('"\\uD800": 1', "surrogate"),
        ("name: a\0b", "not valid YAML"),
        ("name: é".encode("latin-1"), "not UTF-8"),
        (f"name: {'x' * 200}", "name: string should have at most 100 characters"),
        (f"extends: {'x' * 300}", "cannot be read: File name too long"),
        ("".join(f"key{i}: 1\n" for i in range(500)), "and 484 more"),
    ],
)
def test_what_no_recipe_needs_is_refused_in_a_few_lines(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    for lines in (failure(path), failure(write(tmp_path, GOOD, "good.yaml"), f"loss.tau={text}")) if text else ():
        assert len(lines) <= 21
        assert all(len(line) < 600 + len(str(tmp_path)) for line in lines)
    assert any(said in line for line in failure(path)), failure(path)


@pytest.mark.parametrize(
    "override",
    [
        "stages.².epochs=1",
        f"stages.{'9' * 5000}.epochs=1",
        "stages.-1.epochs=1",
        f"{'x.' * 3000}y=1",
        "loss.tau=.nan",
        "loss.tau=.inf",
        "loss.tau=1e-300",
        "loss.logit_scale=1e300",
        "optim.learning_rate=1e300",
        "optim.batch_size=1000000000000000000",
        "recommend.samples=1000000000",
        "recommend.beams=1e9",
        "evaluate.bootstrap=1000000000",
        "text.max_item_tokens=1000000000",
        "base.lora.r=1000000000",
        "stages.0.max_steps=1000000000000000000000000000000",
        "base.lora.targets='(['",
        "base.lora.targets='a{99999999999999999999}'",
        "text.field='{value:>99999999999}'",
        "text.field='{value!r}'",
        "text.field='{value.__class__}'",
        "text.field='{value} {0}'",
        "text.field='{value'",
    ],
)
def test_values_beyond_all_use_are_refused(tmp_path: Path, override: str) -> None:
    for line in failure(write(tmp_path, GOOD), override):  # where a key may be of two kinds, one of each
        assert line.startswith("--set ")
        assert len(line) < 1000


def test_braces_may_stand_around_names_and_values(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD), ["text.field='{{{value}}} {name}'"]).text.field == "{{{value}}} {name}"


PRIVATE = ["password: hunter2", "user: &u hunter2\n  - x", "domains: {api_key: hunter2}", "loss: hunter2", "hunter2"]


@pytest.mark.parametrize(
    "content", [*PRIVATE, "seed: hunter2", "seed: 1\nhunter2: 1", "name: [hunter2", "name: *hunter2"]
)
def test_nothing_of_an_extended_file_is_shown(tmp_path: Path, content: str) -> None:
    private = write(tmp_path, content, "private")
    said = "\n".join(failure(write(tmp_path, f"extends: private\n{GOOD}")))
    assert "hunter2" not in said
    assert str(private) in said


def test_values_of_keys_that_look_like_secrets_are_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "export: {api_key: hunter2}\nloss: {password: hunter2}\n")
    lines = failure(path, "base.hf_token=hunter2", "domains.secret=hunter2")
    assert len(lines) == 4
    assert "--set base.hf_token=...: base.hf_token: unknown key" in lines[0]
    assert "hunter2" not in "\n".join(lines)


def test_files_that_extend_more_and_more_files(tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path, f"extends: [{f'{i + 1}.yaml, ' * 9}]\n", f"{i}.yaml")
    write(tmp_path, "seed: 1\n", "9.yaml")
    (line,) = failure(write(tmp_path, "extends: 0.yaml\n" + GOOD))
    assert "more than 30 files" in line


@pytest.mark.parametrize("content", ["a: &a [*a]", BOMB, "name: [", 'seed: !!int ""', "? [a]\n: b"])
def test_a_damaged_resolved_recipe_is_an_input_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match="recipe.yaml"):
        load_resolved(write(tmp_path, content, "recipe.yaml"))


def test_a_stage_is_as_long_as_set_says_whatever_unit_its_file_counts_in(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    stage = load_recipe(path, ["stages.0.max_steps=6"]).stages[0]
    assert (stage.epochs, stage.max_steps, stage.minutes) == (None, 6, None)
    assert load_recipe(path, ["stages.0.minutes=2", "stages.0.learning_rate=0.1"]).stages[0].minutes == 2
    assert load_recipe(path, ["stages.0.max_steps=6", "stages.0.max_steps=7"]).stages[0].max_steps == 7
    assert "set exactly one" in failure(path, "stages.0.max_steps=6", "stages.0.minutes=2")[0]
    assert "set exactly one" in failure(path, "stages.0.epochs=null")[0]
