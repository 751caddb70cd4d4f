"""A run's export as a folder that is a Hugging Face Space: a page where anybody tries its lists."""

import shutil
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import calrec_lite
from calrec_lite.errors import InputError
from calrec_lite.export.bundle import export_run
from calrec_lite.export.card import base_name, on_hub
from calrec_lite.files import atomic_path
from calrec_lite.package.space import CODE, MODEL, refuse_other
from calrec_lite.run import Run

GRADIO = "6.31.0"  # the version that the page is tested with
PACKAGE = "calrec-lite"
SOURCE = Path(calrec_lite.__file__).parents[1]  # of a checkout; of an installed package all packages' folder
PYTHON = "3.11"  # as constraints.txt
UNUSED = ("gguf", "pip", "sentence-transformers")  # what making lists never imports

APP = '''"""A page with lists of the model."""
{imports}
from calrec_lite.serve.space_page import open_page

page = open_page({source}, {title!r})

if __name__ == "__main__":
    page.launch()
'''
CARD = """---
{front}---

# {title}

Choose a history: the page recommends what may come next, of {items:,} items, with a reason for each.

Made by `calrec-lite export --space`, version {version}. `calrec_lite/` is its source, and
`requirements.txt` what that needs.
On a machine of your own: `pip install gradio=={gradio} -r requirements.txt`, then `python app.py`.
"""


def export_space(run: Run, to: Path, model: str | None = None) -> Path:
    """Write a Space: its card, `app.py`, `requirements.txt`, this package's source, and the export in `model/`.

    The folder appears under its name only when it is complete; an earlier Space there is replaced.

    Args:
        model: OWNER/NAME on the Hub. The Space loads the model from there and holds none.

    Raises:
        InputError: as `export_run`; if `to` is a folder of something else, or the recipe exports no catalogue.
    """
    run.final()
    if not run.recipe.export.catalogue:
        raise InputError("--space: without its catalogue (export.catalogue: false) the model cannot recommend")
    refuse_other(to)
    with atomic_path(to) as temporary:
        temporary.mkdir()
        if model is None:
            export_run(run, temporary / MODEL)
        _copy_code(temporary / CODE)
        (temporary / "app.py").write_text(_app(run.recipe.name, model), encoding="utf-8")
        (temporary / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_card(run, model), encoding="utf-8")
    return to


def _app(title: str, model: str | None) -> str:
    if model is not None:
        return APP.format(imports="", source=repr(model), title=title)
    source = f'Path(__file__).parent / "{MODEL}"'
    return APP.format(imports="\nfrom pathlib import Path\n", source=source, title=title)


def _copy_code(to: Path) -> None:
    """This package's source: a Space is built with `requirements.txt` alone at hand, so a wheel in it is not found."""
    own = Path(calrec_lite.__file__).parent
    for file in own.rglob("*.py"):
        place = to / file.relative_to(own)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    for licence in (f for f in metadata.files(PACKAGE) or [] if f.name == "LICENSE"):
        shutil.copy(licence.locate(), to)


def _requirements() -> list[str]:
    """What this package needs beside Gradio, which a Space has by its card."""
    needed = (Requirement(text) for text in _dependencies())
    return sorted(str(one) for one in needed if one.marker is None and canonicalize_name(one.name) not in UNUSED)


def _dependencies() -> list[str]:
    """The package's own, by the pyproject.toml beside its source where there is one: what is installed as editable
    keeps those of the day on which that was done."""
    installed = metadata.requires(PACKAGE) or []
    try:
        import tomllib  # from Python 3.11 on

        project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (ImportError, OSError, ValueError, KeyError):
        return installed
    return list(project["dependencies"]) if project.get("name") == PACKAGE else installed


def _card(run: Run, model: str | None) -> str:
    recipe = run.recipe
    base = base_name(recipe)
    models = [model] if model else [base] if on_hub(base) else []
    licence = "apache-2.0" if model else recipe.base.license  # the code's, or that of the weights which are in it
    front = {
        "title": recipe.name,
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": "app.py",
        **({"license": licence} if licence else {}),
        **({"models": models} if models else {}),
        "tags": ["calrec-lite", "recommendation"],
    }
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=recipe.name,
        items=len(run.domain(recipe.target).catalogue),
        version=calrec_lite.__version__,
        gradio=GRADIO,
    )
