"""What one list is made by and after: an export or a run, titles or a user of the data. No torch until it is opened."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.package.layout import fields_of, locate, read_info, with_strategy
from calrec_lite.recipe.file import with_recommend
from calrec_lite.run import Run

if TYPE_CHECKING:
    from calrec_lite.recommend.recommender import Recommender


@dataclass(frozen=True)
class Engine:
    """How a model is opened: by the options of `calrec-lite recommend` of these names."""

    strategy: str | None
    settings: Sequence[str]
    engine: str = "transformers"
    quantised: bool = False


@dataclass(frozen=True)
class Source:
    """Looked at, and not yet loaded.

    Attributes:
        open: loads the model.
        fields_of: item ids -> each one's fields.
        history: (title, id) of what a user of the data took, oldest first; None: titles are typed.
    """

    open: "Callable[[], Recommender]"
    fields_of: Callable[[Collection[str]], dict[str, dict[str, str]]]
    history: list[tuple[str, str]] | None


def is_run(model: str) -> bool:
    """Whether a folder holds a run, and is no export."""
    return (Path(model) / "recipe.yaml").is_file() and not (Path(model) / "calrec.json").is_file()


def source_of_run(run: Run, user: str | None, engine: Engine) -> Source:
    """A trained run, by `run.recipe`.

    Raises:
        InputError: it is not trained to the end, has no such user, or the engine is for exports.
    """
    if engine.engine != "transformers" or engine.quantised:
        raise InputError(f"{run.folder}: is a run; --engine and --4bit are for its export")
    final, domain = run.final(), run.domain(run.recipe.target)
    options, catalogue = with_strategy(run.recipe.recommend, engine.strategy), domain.catalogue

    def opened() -> "Recommender":
        from calrec_lite.fitting.opening import open_recommender

        return open_recommender(run, final, options=options)

    def fields(ids: Collection[str]) -> dict[str, dict[str, str]]:
        return {item: catalogue.fields[catalogue.aliases[item]] for item in ids if item in catalogue.aliases}

    return Source(opened, fields, _history(domain, user))


def source_of_export(model: str, user: str | None, domain: Path | None, engine: Engine) -> Source:
    """An export, or its Hub id.

    Args:
        domain: the folder of a prepared domain, for a user's history.

    Raises:
        InputError: it is no export, there is no such setting or user, or no domain that could know one.
    """
    if user is not None and domain is None:
        raise InputError(
            "--user: an export holds no histories; name its run instead, or a prepared domain by "
            "--domain RUN/domains/NAME"
        )
    folder = locate(model)
    with_recommend(with_strategy(read_info(folder, model).recommend, engine.strategy), engine.settings)
    history = _history(Domain.open(domain), user) if domain else None
    return Source(lambda: open_export(model, engine), lambda ids: fields_of(folder, ids), history)


def open_export(model: str | Path, engine: Engine, dtype: Any = "auto") -> "Recommender":
    """A recommender by one of both engines."""
    options = engine.strategy, dtype
    if engine.engine == "vllm":
        from calrec_lite.recommend.vllm import vllm_recommender

        return vllm_recommender(model, *options, engine.settings)
    from calrec_lite.recommend.recommender import Recommender

    return Recommender.from_pretrained(model, engine.quantised, *options, settings=engine.settings)


def _history(domain: Domain, user: str | None) -> list[tuple[str, str]] | None:
    """All that the user took."""
    if user is None:
        return None
    items = domain.sequences.of(domain.user(user)).tolist()
    return [(domain.catalogue.titles[i], domain.catalogue.ids[i]) for i in items]
