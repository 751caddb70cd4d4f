"""A folder that is a Hugging Face Space with an export: what it holds, and how it is known."""

from pathlib import Path

import yaml

from calrec_lite.errors import InputError

MODEL = "model"  # the folder of the export, where the Space does not load one from the Hub
CODE = "calrec_lite"  # this package's own source
FILES = (  # beside the export
    *("README.md", "app.py", "requirements.txt"),
    *(f"{CODE}/LICENSE", f"{CODE}/*.py", f"{CODE}/*/*.py", f"{CODE}/*/*/*.py"),
)


def is_space(folder: Path) -> bool:
    """Whether `calrec-lite export --space` wrote the folder: by its card, as the Hub knows it, and its code."""
    try:
        front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        card = yaml.safe_load(front)
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return False
    return isinstance(card, dict) and card.get("sdk") == "gradio" and (folder / CODE / "__init__.py").is_file()


def refuse_other(to: Path) -> None:
    """Raise InputError where a new Space would replace something else than an earlier one."""
    if Path.cwd().is_relative_to(to.resolve()):
        raise InputError(f"{to}: is or holds the folder you are in; name another one")
    if to.is_dir() and any(to.iterdir()) and not is_space(to):
        raise InputError(f"{to}: is there and is no Space of calrec-lite; name another folder")
