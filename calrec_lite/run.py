"""A run on disk: what lies where, and how far it has come."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calrec_lite.claim import refuse_claimed
from calrec_lite.data.domain import Domain, read_info
from calrec_lite.data.prepare import prepare_to
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.files import sealed, unsealed, write_json
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.recipe import Base, Recipe, require_domain, resolved
from calrec_lite.recipe.deciding import changed
from calrec_lite.recipe.file import load_resolved, save_resolved
from calrec_lite.stored import read_object, require_unchanged, write_manifest
from calrec_lite.text.encoding import Encoder

if TYPE_CHECKING:  # torch takes seconds to import, and what is done to data needs none of it
    from calrec_lite.model.device import AskedDType, Choice


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
    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; one that was cut off (its state is written last) is passed over."""
        checkpoints = self.checkpoints.glob("checkpoint-*")
        for path in sorted(checkpoints, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
            try:
                json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
                return path
            except (OSError, ValueError):
                continue
        return None

    @property
    def trained(self) -> bool:
        """Whether the folder holds anything trained: a checkpoint, or what came of it."""
        return self.metrics.is_file() or self.adapter.is_dir() or self.last_checkpoint is not None

    @property
    def done(self) -> bool:
        return self.metrics.is_file() and (self.merged / "config.json").is_file()

    def record(self) -> None:
        """Note which files adapter and merged weights consist of."""
        write_manifest(self.folder, [f"{self.adapter.name}/*", f"{self.merged.name}/*"])

    def intact(self, part: Path) -> Path:
        """`adapter` or `merged`, as they were written. Raises InputError where one of their files is another now."""
        remedy = f"restore it, or remove {self.folder} to train the stage again"
        if part == self.merged:
            remedy = f"remove {self.merged}, and `calrec-lite train` on the run's recipe merges it again"
        require_unchanged(self.folder, part.name, remedy)
        return part

    def facts(self) -> dict[str, Any]:
        """What the finished stage measured. Raises InputError where it cannot be read any more."""
        remedy = f"restore it, or remove {self.folder} to train the stage again"
        require_unchanged(self.folder, self.metrics.name, remedy)
        return read_object(self.metrics, remedy)


class Run:
    """A recipe and its folder.

    Args:
        recipe: checked.
        folder: `runs/NAME`; made if it is not there.
        own: the recipe that the run keeps, where `recipe` has other settings of lists or measures for one command.
    """

    def __init__(self, recipe: Recipe, folder: Path, own: Recipe | None = None) -> None:
        self.recipe, self.folder, self.own = recipe, folder, own or recipe
        self._encoded: dict[str, EncodedCatalogue] = {}
        self._domains: dict[str, Domain] = {}

    @classmethod
    def start(cls, recipe: Recipe, root: Path) -> "Run":
        """The run of a recipe under `root`: new, or the one already there.

        What an earlier start left is replaced if it trained nothing (the base could not be opened, say).

        Raises:
            InputError: if weights were trained there by a recipe that would give others, or another process is at work
                there.
        """
        run = cls(recipe, root / recipe.name)
        refuse_claimed(run.folder)
        if run._recipe_file.is_file():
            existing = cls.open(run.folder)
            if sections := changed(resolved(existing.recipe), resolved(recipe), existing.asked_or_chosen_dtype):
                if existing.holds_results:
                    raise InputError(
                        f"{run.folder} holds a run of another recipe (it differs in {', '.join(sections)}): "
                        "give this one another `name`, or remove that folder"
                    )
                existing.clear()
            for name in existing._trained_on().keys() & recipe.domains.keys():
                if existing.recipe.domains[name] != recipe.domains[name]:
                    run.prepare(name)  # refuses other data, before the recipe that was trained is replaced
            earlier_dtype = existing.recipe.base.dtype
            began = existing.holds_results and not existing.chosen_dtype
            if began and recipe.base.dtype == "auto" and earlier_dtype != "auto":
                from calrec_lite.model.device import Choice

                run.remember_dtype(Choice(earlier_dtype, "as base.dtype asked when this run began"))
        save_resolved(recipe, run._recipe_file)
        return run

    @property
    def holds_results(self) -> bool:
        """Whether anything that took long is kept here: trained, or measured of the untouched base."""
        return any(stage.trained for stage in self.stages) or (self.evaluation / "metrics.json").is_file()

    def clear(self) -> None:
        """Forget a start that trained nothing; prepared domains stay.

        Raises:
            InputError: another process is training in it.
        """
        refuse_claimed(self.folder)
        for path in (self.folder / "run.json", self.log):
            path.unlink(missing_ok=True)
        for stage in self.stages:
            shutil.rmtree(stage.folder, ignore_errors=True)
        shutil.rmtree(self.folder / "fitted", ignore_errors=True)

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
        from calrec_lite.model.base import base_folder

        return base_folder(self.recipe.base)

    @property
    def dtype(self) -> "Choice":
        """The number type of all that this run computes: chosen when its first model is loaded, then for good.

        Weights trained, losses and lists are then of one type; `recommend` chooses anew (docs/architecture.md).
        """
        if chosen := self.chosen_dtype:
            return chosen
        from calrec_lite.model.device import choose_dtype

        choice = choose_dtype(self.recipe.base, self.weights)
        self.remember_dtype(choice)
        return choice

    @property
    def chosen_dtype(self) -> "Choice | None":
        """The number type, if it was chosen already."""
        from calrec_lite.model.device import Choice

        choice = self._status().get("dtype")
        return Choice(**choice) if choice else None

    def remember_dtype(self, choice: "Choice") -> None:
        """Compute in this type from now on."""
        self._write_status({**self._status(), "dtype": asdict(choice)})

    @property
    def loading(self) -> Base:
        """How the base and what is trained of it are loaded: as the recipe says, in the run's number type."""
        return self.recipe.base.model_copy(update={"dtype": self.dtype.dtype})

    @property
    def asked_or_chosen_dtype(self) -> "AskedDType":
        """The number type that was chosen, or what the recipe asks for before any model was loaded."""
        choice = self.chosen_dtype
        return choice.dtype if choice else self.recipe.base.dtype

    @property
    def weights(self) -> Path:
        """Folder of full weights: those of the last stage that is done, or else the untouched base.

        Raises:
            InputError: they are not what the stage wrote.
        """
        return next((s.intact(s.merged) for s in reversed(self.stages) if s.done), None) or self.base

    @cached_property
    def encoder(self) -> Encoder:
        """Texts to token ids, by the tokenizer of the base."""
        from calrec_lite.model.tokenizer import load_tokenizer

        return Encoder(load_tokenizer(self.weights, self.recipe.base.trust_remote_code), self.recipe.text)

    def stage_data(self, stage: str) -> dict[str, str]:
        """Domain -> fingerprint of the data that a stage was last started on; empty before its first start."""
        return dict(self._status()["stages"].get(stage, {}).get("data", {}))

    def _trained_on(self) -> dict[str, set[str]]:
        """Domain -> fingerprints of the data that stages were trained on, of any recipe in this folder.

        Where run.json was lost, those are the data that lie here; with these gone as well it is "", which no data have.
        """
        known: dict[str, set[str]] = {}
        for stage, folder in zip(self.recipe.stages, self.stages):
            if folder.trained and not self.stage_data(folder.folder.name):
                for name in stage.domains:
                    known.setdefault(name, set()).add(self._prepared_fingerprint(name))
        for stage in self._status()["stages"]:
            if StageFolder(self.folder / stage).trained:
                for name, fingerprint in self.stage_data(stage).items():
                    known.setdefault(name, set()).add(fingerprint)
        return known

    def _prepared_fingerprint(self, name: str) -> str:
        try:
            return str(read_info(self.folder / "domains" / name)["fingerprint"])
        except InputError:
            return ""

    def _refuse_other_data(self, name: str, domain: Domain, measured: str | None = None) -> None:
        known = self._trained_on().get(name, set()) | ({measured} - {None})
        if "" in known:
            raise InputError(
                f"{self.folder}: run.json and domains/{name} are gone, so nothing says what its stages were trained "
                "on; restore one of them, or give the run another `name`"
            )
        if known - {domain.fingerprint}:
            raise InputError(
                f"{self.folder}: the data of `{name}` has changed since a stage was trained on it; "
                "restore the files, or give the run another `name`"
            )

    def prepare(self, name: str, measured: str | None = None) -> Domain:
        """The domain as its sources are now: as it was prepared, or prepared afresh where they have changed.

        For `prepare` and `train`; everything else takes what they have left (`domain`).

        Args:
            measured: fingerprint of the data that something else was made of, which must not change either.

        Raises:
            InputError: the sources cannot be had, or hold other data than a stage was trained on.
        """
        spec, folder = require_domain(self.recipe, name), self.folder / "domains" / name
        self._domains[name] = prepare_to(
            name,
            spec,
            self.recipe.seed,
            folder,
            lambda domain: self._refuse_other_data(name, domain, measured),
            self.recipe.text,
        )
        return self._domains[name]

    def domain(self, name: str) -> Domain:
        """The prepared domain; its sources are looked at only where it is not there yet.

        Raises:
            InputError: it is damaged, is not what a stage was trained on, or as `prepare`.
        """
        if name not in self._domains:
            folder = self.folder / "domains" / name
            if not (folder / "domain.json").is_file():
                return self.prepare(name)
            require_domain(self.recipe, name)
            domain = Domain.open(folder)
            self._refuse_other_data(name, domain)
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
                collaborative=loss.effective_collaborative,
                transitions=Transitions.of(domain) if loss.effective_collaborative else None,
                beside=self.folder / "domains" / name,
            )
        return self._encoded[name]

    def final(self) -> Path:
        """Folder of the last stage's merged weights.

        Raises:
            InputError: training has not come so far, or they are not what it wrote.
        """
        if not self.stages[-1].done:
            raise InputError(f"{self.folder}: not trained to the end yet; run `calrec-lite train` on its recipe")
        return self.stages[-1].intact(self.stages[-1].merged)

    def require_intact(self, folder: Path) -> None:
        """Raise InputError where merged weights of this run are not what their stage wrote."""
        for stage in self.stages:
            if stage.merged == folder:
                stage.intact(folder)

    def note(self, stage: str, state: str, **facts: Any) -> None:
        """Record in run.json where the run stands."""
        status = self._status()
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        status["stages"][stage] = {**status["stages"].get(stage, {}), "state": state, state: now, **facts}
        self._write_status(status)

    def _status(self) -> dict[str, Any]:
        file = self.folder / "run.json"
        if not file.is_file():
            return {"stages": {}}
        remedy = "restore it, or remove it: what is trained stays, but its number type is chosen anew"
        status = read_object(file, remedy)
        stages, choice = status.get("stages"), status.get("dtype", {})
        sound = isinstance(stages, dict) and all(isinstance(s, dict) for s in stages.values())
        known = choice == {} or (isinstance(choice, dict) and choice.keys() == {"dtype", "why"})
        if not (sound and known and unsealed(status)):
            raise InputError(f"{file}: does not say where the run stands; {remedy}")
        return status

    def _write_status(self, status: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", sealed(status))

    def log_entries(self) -> list[dict[str, Any]]:
        """What training has logged, oldest first; a line that a kill cut off, or that is none, is left out."""
        entries = []
        for line in self.log.read_text("utf-8", "replace").splitlines() if self.log.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            entries += [entry] if isinstance(entry, dict) and "stage" in entry else []
        return entries

    def stage_metrics(self) -> dict[str, Any]:
        """What each finished stage measured, by the stage's folder name; its weights may have been removed since."""
        return {s.folder.name: s.facts() for s in self.stages if s.metrics.is_file()}
