"""The command line as a user meets it: exit codes, one clear line, nothing half-written."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from calrec_lite.recipe.file import load_recipe
from calrec_lite.run import Run
from tests.conftest import run

RECIPE = """
name: mine
base: {model: nowhere/at-all, load_in_4bit: false}
domains:
  shop: {interactions: events.csv, fields: {Title: title}}
stages:
  - {name: target, domains: [shop], max_steps: 2}
"""
COMMANDS = [
    "init",
    "doctor",
    "bases",
    "demo",
    "prepare",
    "baselines",
    "train",
    "evaluate",
    "tune",
    "compare",
    "ablate",
    "report",
    "recommend",
    "merge",
    "export",
    "push",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"], monkeypatch) == 0
    assert "Usage:" in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['x','--help']; from calrec_lite.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'torch','transformers','duckdb','pyarrow','pandas'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "no.yaml"], "no.yaml: no such recipe file"),
        (["train", "recipe.yaml", "--set", "optim.batchsize=3"], "did you mean `batch_size`"),
        (["train", "recipe.yaml", "--set", "nonsense"], "write it as key.sub=value"),
        (["train", "recipe.yaml", "--set", "optim.report_to=[a"], "not valid YAML"),
        (["train", "recipe.yaml", "--set", "text.field='{title}: {value}'"], "no braces but"),
        (["train", "recipe.yaml", "--set", "text.field={title}: {value}"], "a key must be a single word"),
        (["train", "recipe.yaml", "--set", "seed=-1"], "seed"),
        (["train", "recipe.yaml", "--set", "optim.report_to=[abacus]"], "optim.report_to: abacus is not supported"),
        (["prepare", "recipe.yaml"], "events.csv"),
        (["evaluate", "nowhere"], "no run here"),
        (["report", "nowhere"], "no run here"),
        (["export", "nowhere"], "no run here"),
        (["recommend", "nowhere/at-all", "a title"], "nowhere/at-all"),
        (["recommend", "nowhere"], "give titles"),
        (["recommend", "nowhere", "--users", "u.jsonl"], "--out"),
        (["recommend", "nowhere", "a title", "--allow", "none.txt"], "--allow none.txt: cannot be read"),
        (["recommend", "nowhere", "a title", "--deny", "recipe.yaml", "--engine", "vllm", "--4bit"], "not together"),
        (["index", "nowhere", "--to", "x.parquet", "--engine", "vllm", "--4bit"], "not together"),
        (["index", "nowhere", "--to", "x.parquet", "--parts", "3"], "are for --engine ray"),
        (["merge", "here", "there", "to"], "no config.json"),
        (["compare", "a", "b"], "a: no run here"),
        (["ablate", "recipe.yaml", "--set", "ablate.steps=5", "--set", "ablate.minutes=5"], "steps or minutes"),
        (["ablate", "recipe.yaml", "--cell", "typo", "--dry-run"], "no cell typo; there are: untouched, full."),
        (["ablate", "recipe.yaml", "--set", "ablate.variants={a: {loss.alfa: 1}}"], "there is no such key"),
        (["train"], "Missing argument"),
        (["fly"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_got_wrong_is_one_line_and_exit_2(
    arguments: list[str],
    says: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {p.name for p in elsewhere.iterdir()}
    assert run(arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert {p.name for p in elsewhere.iterdir()} <= before | {"runs"}
    assert not list(elsewhere.rglob("*.tmp"))


def test_a_runs_recipe_that_was_damaged(elsewhere: Path, monkeypatch, capsys) -> None:
    for damage in (b"name: [", b"\xff\xfe"):
        Path("runs/x").mkdir(parents=True, exist_ok=True)
        Path("runs/x/recipe.yaml").write_bytes(damage)
        assert run(["report", "runs/x"], monkeypatch) == 2
        said = capsys.readouterr().err
        assert "recipe.yaml:" in said
        assert "not valid YAML" in said


@pytest.mark.parametrize("name", ["1e5", "12e3456", "on"])
def test_a_name_that_yaml_could_take_for_a_number_is_read_back(name: str, elsewhere: Path) -> None:
    recipe = load_recipe("recipe.yaml", [f"name='{name}'"])
    run = Run.start(recipe, Path("runs"))
    assert Run.open(run.folder).recipe == recipe


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["differing", "full"])
def test_dry_run_prints_a_plan_and_a_recipe_that_is_one(full: list[str], elsewhere: Path, monkeypatch, capsys) -> None:
    (elsewhere / "events.csv").write_text("user,item,title\n" + "".join(f"u{n % 2},{n},t{n}\n" for n in range(8)))
    assert run(["train", "recipe.yaml", "--set", "seed=7", "--dry-run", *full], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "# data     shop: 2 users, 8 items, 8 events" in said
    assert "# base     nowhere/at-all is not here yet" in said
    assert ("batch_size" in said) == bool(full)
    (elsewhere / "resolved.yaml").write_text(said)
    assert load_recipe("resolved.yaml") == load_recipe("recipe.yaml", ["seed=7"])
    assert not (elsewhere / "runs").exists()


def test_dry_run_says_what_is_wrong_after_the_recipe(elsewhere: Path, monkeypatch, capsys) -> None:
    assert run(["train", "recipe.yaml", "--dry-run"], monkeypatch) == 2
    said = capsys.readouterr()
    (elsewhere / "resolved.yaml").write_text(said.out)
    assert load_recipe("resolved.yaml") == load_recipe("recipe.yaml")
    assert said.err == "calrec-lite: events.csv: no such file\n"
    assert run(["train", "recipe.yaml", "--probe"], monkeypatch) == 2
    assert "--probe: together with --dry-run" in capsys.readouterr().err


def test_the_cells_of_an_ablation_are_listed(elsewhere: Path, monkeypatch, capsys) -> None:
    assert run(["ablate", "recipe.yaml", "--dry-run"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "7 cells, 6 different stages" in said
    assert "  no_contrast.target.seed0" in said
    assert not (elsewhere / "runs").exists()


def test_the_whole_line_by_commands(elsewhere: Path, tiny_folder: Path, monkeypatch, capsys) -> None:
    """prepare, train, evaluate, export, recommend, compare, each by its command."""
    lines = ["user,item,time,title"]
    names = [f"{a} {b}" for a in ("red", "blue", "green", "small") for b in ("cup", "pen", "box", "lamp")]
    for user in range(60):
        lines += [f"u{user},{(user + t) % 16},{t},{names[(user + t) % 16]}" for t in range(4 + user % 5)]
    (elsewhere / "events.csv").write_text("\n".join(lines) + "\n")
    small = [f"base.model={tiny_folder}", "base.dtype=float32", "optim.batch_size=4", "evaluate.bootstrap=100"]
    small += ["fused.tower.dim=16", "fused.tower.epochs=2", "fused.likelihood_users=20", "recommend.rerank=12"]
    settings = [part for pair in small for part in ("--set", pair)]
    assert run(["prepare", "recipe.yaml", *settings], monkeypatch) == 0
    assert "16 items" in capsys.readouterr().out
    for name in ("mine", "yours"):
        assert run(["train", "recipe.yaml", *settings, "--set", f"name={name}"], monkeypatch) == 0
        said = capsys.readouterr().out.partition("training `")[2]
        told = [
            "loading PyTorch",
            "device: ",
            "shop: 60 users",
            "\nloading ",
            "training: 2 steps of 4 rows",
            "stage 1-target: 2 steps in",
        ]
        places = [said.find(text) for text in told]
        assert places == sorted(places)
        assert min(places) > 0
        first = ["evaluate", f"runs/{name}", "--users", "10", "--split", "validation"]
        assert run(first, monkeypatch) == 0  # not in the place of the recipe's own split, though it is the first
        assert not Path("runs", name, "evaluation").exists()
        assert run(["evaluate", f"runs/{name}", "--users", "20", "--out", f"{name}.json"], monkeypatch) == 0
    assert "| final" in capsys.readouterr().out
    assert set(json.loads((elsewhere / "mine.json").read_text())["systems"]) >= {"base", "final", "transitions"}
    assert run(["compare", "runs/mine", "runs/yours"], monkeypatch) == 0
    assert run(["evaluate", "runs/yours", "--users", "20", "--split", "validation"], monkeypatch) == 0
    Path("runs/yours/evaluation/rankings.parquet").unlink()  # half an evaluation is made again
    assert run(["compare", "runs/mine", "runs/yours"], monkeypatch) == 2
    assert run(["evaluate", "runs/yours", "--users", "20"], monkeypatch) == 0
    capsys.readouterr()
    validation = "runs/yours/evaluation-validation-20"  # the test users' evaluation is not lost to it
    assert run(["compare", "runs/mine", validation], monkeypatch) == 2
    assert "different protocols (split: test and validation)" in capsys.readouterr().err
    assert run(["compare", "runs/yours", "runs/yours"], monkeypatch) == 2
    assert "name one of each by --pair" in capsys.readouterr().err
    assert run(["compare", "runs/yours", "runs/yours", "--pair", "base", "final"], monkeypatch) == 0
    assert "| base -> final |" in capsys.readouterr().out
    assert run(["export", "runs/mine", "--to", "model"], monkeypatch) == 0
    capsys.readouterr()
    assert run(["recommend", "model", "red cup", "blue pen", "-k", "5"], monkeypatch) == 0
    shown = [line.split("\t") for line in capsys.readouterr().out.strip().splitlines()]
    assert [row[0] for row in shown] == ["1", "2", "3", "4", "5"]
    assert "red cup" not in [row[1] for row in shown]
    (elsewhere / "u.jsonl").write_text('{"user": "a", "history": ["red cup"]}\nbad\n{"user": "b", "history": []}\n')
    for out in ("lists.jsonl", "lists.parquet"):
        assert run(["recommend", "model", "--users", "u.jsonl", "--out", out], monkeypatch) == 0
        assert f"2 users -> {out}; 1 lines rejected -> {out}.rejected.jsonl" in capsys.readouterr().out
    rows = [json.loads(line) for line in (elsewhere / "lists.jsonl").read_text().splitlines()]
    assert [(r["user"], len(r["items"])) for r in rows] == [("a", 10), ("b", 10)]
    assert run(["recommend", "model", "--users", "u.jsonl", "--out", "lists.csv"], monkeypatch) == 2
    assert ".jsonl.gz or .parquet" in capsys.readouterr().err
    (elsewhere / "some.txt").write_text("blue cup\nblue pen\n\nblue box\n")
    (elsewhere / "one.txt").write_text("blue pen\n")
    limits = ["--allow", "some.txt", "--deny", "one.txt"]
    own = {"user": "own", "history": [], "candidates": ["blue box", "red cup"]}
    wrong = {"user": "wrong", "history": [], "candidates": ["nothing of ours"]}
    (elsewhere / "own.jsonl").write_text("".join(json.dumps(u) + "\n" for u in (own, wrong, {"history": ["red cup"]})))
    for strategy in ("fused", "fast", "beam", "sample", "dense", "rerank"):
        job = ["recommend", "model", "--users", "own.jsonl", "--out", f"{strategy}.jsonl", "--strategy", strategy]
        assert run([*job, *limits], monkeypatch) == 0
        rows = [json.loads(line) for line in (elsewhere / f"{strategy}.jsonl").read_text().splitlines()]
        assert [{i["title"] for i in row["items"]} for row in rows] == [{"blue box"}, {"blue box", "blue cup"}]
        assert "nothing of ours" in (elsewhere / f"{strategy}.jsonl.rejected.jsonl").read_text()
    capsys.readouterr()
    (elsewhere / "one.txt").write_text("nothing of ours\n")
    assert run(["recommend", "model", "red cup", "--deny", "one.txt"], monkeypatch) == 2
    assert "deny: the catalogue has no title or id" in capsys.readouterr().err
    assert run(["recommend", "model", "red cup", "--strategy", "guess"], monkeypatch) == 2
    assert "--strategy guess: write one of fused, fast, beam, " in capsys.readouterr().err
    bulk = ["recommend", "model", "--users", "u.jsonl", "--strategy", "sample"]
    assert run([*bulk, "--out", "drawn.jsonl.gz", "--k", "2", "--block", "1"], monkeypatch) == 0
    with gzip.open(elsewhere / "drawn.jsonl.gz", "rt") as file:
        assert [len(json.loads(line)["items"]) for line in file] == [2, 2]
