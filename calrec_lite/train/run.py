"""A run on disk: what lies where, and how far it has come."""

import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare_to
from calrec_lite.errors import InputError
from calrec_lite.files import write_json
from calrec_lite.model.base import base_folder, load_tokenizer
from calrec_lite.model.device import AskedDType, Choice, choose_dtype
from calrec_lite.recipe import Base, Recipe, require_domain, resolved
from calrec_lite.recipe_file import load_resolved, save_resolved
from calrec_lite.text.encoding import EncodedCatalogue, Encoder, encode_catalogue


@dataclass(frozen=True)
class StageFolder:
    """Where a stage keeps its things."""

    folder: Path

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def done(self) -> bool:
        return self.metrics.is_file() and (self.merged / "config.json").is_file()


class Run:
    """A recipe and its folder.

    Args:
        recipe: checked.
        folder: `runs/NAME`; made if it is not there.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._encoded: dict[str, EncodedCatalogue] = {}
        self._domains: dict[str, Domain] = {}

    @classmethod
    def start(cls, recipe: Recipe, root: Path) -> "Run":
        """The run of a recipe under `root`: new, or the one already there.

        Raises:
            InputError: if the folder holds a run of a recipe that would give other weights.
        """
        run = cls(recipe, root / recipe.name)
        if run._recipe_file.is_file():
            before = cls.open(run.folder)
            changed = _changed(resolved(before.recipe), resolved(recipe), before.came_to)
            if changed:
                raise InputError(
                    f"{run.folder} holds a run of another recipe (it differs in {', '.join(changed)}): "
                    "give this one another `name`, or remove that folder"
                )
            asked = before.recipe.base.dtype
            if recipe.base.dtype == "auto" and asked != "auto" and not before.kept_dtype:
                run.keep_dtype(Choice(asked, "as base.dtype asked when this run began"))
        save_resolved(recipe, run._recipe_file)
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run. Raises InputError if the folder holds none, or its recipe is no recipe any more."""
        file = folder / "recipe.yaml"
        if not file.is_file():
            raise InputError(f"{folder}: no run here (no recipe.yaml); runs lie under runs/NAME")
        return cls(load_resolved(file), folder)

    @property
    def _recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def stages(self) -> list[StageFolder]:
        """One folder a stage, numbered from 1."""
        return [StageFolder(self.folder / f"{i}-{s.name}") for i, s in enumerate(self.recipe.stages, 1)]

    @cached_property
    def base(self) -> Path:
        """Folder of the untouched base."""
        return base_folder(self.recipe.base)

    @property
    def dtype(self) -> Choice:
        """The number type of all that this run computes: chosen where its first model is loaded, kept on any machine.

        Weights trained, losses and lists are then of one type; `recommend` chooses anew (DESIGN 4.17).
        """
        if kept := self.kept_dtype:
            return kept
        choice = choose_dtype(self.recipe.base, self.base)
        self.keep_dtype(choice)
        return choice

    @property
    def kept_dtype(self) -> Choice | None:
        """The number type, if it was chosen already."""
        kept = self._states().get("dtype")
        return Choice(**kept) if kept else None

    def keep_dtype(self, choice: Choice) -> None:
        """Compute in this type from now on."""
        write_json(self.folder / "run.json", {**self._states(), "dtype": asdict(choice)})

    @property
    def loading(self) -> Base:
        """How the base and what is trained of it are loaded: as the recipe says, in the run's number type."""
        return self.recipe.base.model_copy(update={"dtype": self.dtype.dtype})

    @property
    def came_to(self) -> AskedDType:
        """The number type as far as it is known: `auto` before any model was loaded."""
        kept = self.kept_dtype
        return kept.dtype if kept else self.recipe.base.dtype

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(load_tokenizer(self.base, self.recipe.base.trust_remote_code), self.recipe.text)

    def domain(self, name: str) -> Domain:
        """The prepared domain, prepared now if it is not there or its source has changed."""
        if name not in self._domains:
            spec = require_domain(self.recipe, name)
            domain = prepare_to(name, spec, self.recipe.seed, self.folder / "domains" / name)
            for stage in self._states()["stages"].values():
                if stage.get("data", {}).get(name, domain.fingerprint) != domain.fingerprint:
                    raise InputError(
                        f"{self.folder}: the data of `{name}` has changed since a stage was trained on it; "
                        "restore the files, or give the run another `name`"
                    )
            self._domains[name] = domain
        return self._domains[name]

    def catalogue(self, name: str) -> EncodedCatalogue:
        """The domain's items, tokenised."""
        if name not in self._encoded:
            domain, loss = self.domain(name), self.recipe.loss
            self._encoded[name] = encode_catalogue(
                name,
                domain.catalogue,
                self.encoder,
                domain.train_counts(),
                loss.effective_prior,
                loss.effective_logit_scale,
                progress=True,
            )
        return self._encoded[name]

    def final(self) -> Path:
        """Folder of the last stage's merged weights. Raises InputError if training has not come so far."""
        if not self.stages[-1].done:
            raise InputError(f"{self.folder}: not trained to the end yet; run `calrec-lite train` on its recipe")
        return self.stages[-1].merged

    def note(self, stage: str, state: str, **facts: Any) -> None:
        """Record in run.json where the run stands."""
        states = self._states()
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        states["stages"][stage] = {**states["stages"].get(stage, {}), "state": state, state: now, **facts}
        write_json(self.folder / "run.json", states)

    def _states(self) -> dict[str, Any]:
        file = self.folder / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"stages": {}}

    def log_entries(self) -> list[dict[str, Any]]:
        """What training has logged, oldest first; a line that a kill cut off is left out."""
        entries = []
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []:
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
        return entries

    def stage_metrics(self) -> dict[str, Any]:
        """What each finished stage measured, by the stage's folder name; its weights may have been removed since."""
        stages = [s for s in self.stages if s.metrics.is_file()]
        return {s.folder.name: json.loads(s.metrics.read_text(encoding="utf-8")) for s in stages}


FREE = (  # keys of `optim` that change memory, speed or reports, never the weights
    "micro_batch_size",
    "gradient_checkpointing",
    "compile",
    "handover_tolerance",
    "eval_every",
    "save_every",
    "log_every",
    "report_to",
)


def _changed(old: dict[str, Any], new: dict[str, Any], dtype: str) -> list[str]:
    """Sections that decide the weights and differ; how lists are made and measured may change afterwards.

    `dtype` is what the old recipe's number type came to: another `auto` stays with it, and before it came to any, a
    recipe may still ask for one.
    """
    deciding = ("seed", "base", "domains", "text", "stages", "loss", "optim")
    asked = new["base"]["dtype"]
    old = {**old, "base": {**old["base"], "dtype": asked if "auto" in (asked, dtype) else dtype}}
    old, new = ({**r, "optim": {k: v for k, v in r["optim"].items() if k not in FREE}} for r in (old, new))
    return [key for key in deciding if old[key] != new[key]]
