"""What is wrong, and needs no torch to be seen, is said without loading it: seconds of waiting for one line."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import io, json, sys
from contextlib import redirect_stderr
from calrec_lite.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["calrec-lite", *arguments]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            main()
        print("no error", arguments)
    except SystemExit as end:
        print(end.code, arguments[0], said.getvalue().strip()[:150])
    if heavy := {"torch", "transformers"} & set(sys.modules):
        sys.exit(f"{arguments} loaded {heavy}")
"""


def test_errors_that_need_no_torch_load_none(tmp_path: Path) -> None:
    recipe = """
name: mine
base: {model: nowhere/at-all}
domains:
  shop: {interactions: events.csv, fields: {Title: title}}
stages:
  - {name: target, domains: [shop], max_steps: 2}
"""
    (tmp_path / "recipe.yaml").write_text(recipe)
    untrained = tmp_path / "runs" / "mine"
    untrained.mkdir(parents=True)
    (untrained / "recipe.yaml").write_text(recipe)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "calrec.json").write_text("{}")
    verbs = ("evaluate", "tune", "export", "report")
    commands = [[verb, "nothing"] for verb in verbs] + [[verb, str(untrained)] for verb in verbs]
    commands += [
        ["evaluate", str(untrained), "--set", "loss.alpha=1"],
        ["train", "nothing.yaml"],
        ["prepare", "recipe.yaml"],
        ["ablate", "recipe.yaml", "--cell", "typo"],
        ["demo", "--set", "nonsense"],
        ["compare", "a", "b"],
        ["merge", "a", "b", "c"],
        ["push", "nothing", "no-owner"],
        ["push", "nothing", "some one/x y"],
        ["recommend", "export", "a title"],
        ["recommend", "runs/mine", "a title"],
        ["recommend", "runs/mine", "--user", "3"],
        ["recommend", "export", "--user", "3"],
        ["recommend", "export", "--users", "u.jsonl", "--out", "o.jsonl"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands)
    assert all(line.startswith("2 ") for line in lines), done.stdout


def test_lists_without_the_llm_load_neither_peft_nor_bitsandbytes(fused_export: Path) -> None:
    """They take as long to load as everything else together."""
    code = (
        "import sys; from calrec_lite.cli import main; main(); "
        "heavy = {'peft', 'bitsandbytes', 'transformers.modeling_utils'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    title = json.loads((fused_export / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()[0])["fields"][
        "Title"
    ]
    command = [sys.executable, "-c", code, "recommend", str(fused_export), title, "--strategy", "fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1\t")
