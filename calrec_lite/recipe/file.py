"""Recipe files: YAML with `extends` and `--set`, read with line numbers, every error reported at once."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path
from calrec_lite.recipe import Recipe, Recommend, Section, resolved
from calrec_lite.recipe.bases import builtin_folder, unknown_recipe
from calrec_lite.recipe.reading import KeyPath, Place, read_resolved, read_value, read_values

SHOWN = 200  # characters of a name or a value in an error
LENGTHS = ("epochs", "max_steps", "minutes")  # of a stage; one of them is given
MOST_FILES = 30  # of which a recipe is merged
MOST_MISTAKES = 20  # that are reported
AFTERWARDS = ("recommend", "evaluate")  # sections that decide nothing of a run's weights
SECRET = re.compile(r"(?i)(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|auth|key|apikey)$")


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        source: path of a YAML file, or the name of a recipe that comes with the package (`demo`).
        overrides: `key.sub=value` pairs, the value read as YAML; list positions are numbers.

    Raises:
        InputError: with every mistake found, each with file, line and, where one is near, a suggestion.
    """
    lines: dict[KeyPath, Place] = {}
    values = _read(_find(str(source), None), lines, (), [])
    for override in overrides:
        _override(values, override, lines)
    return check_recipe(values, lines)


def check_recipe(values: Any, lines: dict[KeyPath, Place] | None = None) -> Recipe:
    """Turn plain data into a Recipe. Raises InputError with all mistakes."""
    lines = lines or {}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_report(_mistake(e, _trim(e["loc"], values), lines) for e in error.errors())) from None
    cross_errors = recipe.cross_errors()
    if cross_errors:
        raise InputError(_report(_said(_place(path, lines), path, message) for path, message in cross_errors))
    return recipe


def with_settings(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe of what is trained already, with other values of `recommend.*` and `evaluate.*`.

    Raises:
        InputError: with every mistake, as `load_recipe`; a key of another section, which decides what was trained.
    """
    values, lines = resolved(recipe), dict[KeyPath, Place]()
    for override in overrides:
        _require_section(override, AFTERWARDS)
        _override(values, override, lines)
    return check_recipe(values, lines) if lines else recipe


def with_recommend(options: Recommend, overrides: Iterable[str]) -> Recommend:
    """As `with_settings`, of the settings of lists alone, as an export has them."""
    values, lines = {"recommend": options.model_dump(mode="json")}, dict[KeyPath, Place]()
    for override in overrides:
        _require_section(override, AFTERWARDS[:1])
        _override(values, override, lines)
    try:
        return _Lists.model_validate(values).recommend
    except ValidationError as error:
        raise InputError(_report(_mistake(e, _trim(e["loc"], values), lines) for e in error.errors())) from None


class _Lists(Section):
    """`recommend` in its place, so that a mistake is named by its whole key."""

    recommend: Recommend


def _require_section(override: str, sections: tuple[str, ...]) -> None:
    section = override.partition("=")[0].partition(".")[0]
    if section not in sections:
        known = " and ".join(f"{name}.*" for name in sections)
        near = "" if "." in override.partition("=")[0] else " (write --set recommend.k=20)"
        raise InputError(f"--set {_cut(override)}: of what is trained already only {known} can be set here{near}")


def save_resolved(recipe: Recipe, path: Path) -> None:
    """Write the recipe with every default spelled out; the file is itself a valid recipe."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")


def load_resolved(path: Path) -> Recipe:
    """What `save_resolved` wrote, by YAML's own rules: it extends nothing, and its texts stay texts.

    Raises:
        InputError: it was damaged.
    """
    return check_recipe(read_resolved(path))


def _find(name: str, folder: Path | None) -> Path:
    candidates = [Path(name)] if folder is None else [folder / name]
    candidates += [builtin_folder() / name, builtin_folder() / f"{name}.yaml"]
    for path in candidates:
        try:
            if path.is_file():
                return path
        except OSError as error:  # a folder that may not be entered, a name that is too long
            raise InputError(f"{_cut(name)}: cannot be read: {error.strerror}") from None
    hint = unknown_recipe(_cut(name))
    raise InputError(f"{_cut(name)}: no such recipe file, and no built-in recipe of that name{hint}")


def _read(path: Path, lines: dict[KeyPath, Place], seen: tuple[Path, ...], read: list[Path]) -> Any:
    """The values of a file merged over those it extends; `lines` receives the place of each key.

    Args:
        seen: the files by way of which it is extended. read: all that were read so far.
    """
    own = not seen
    if path.resolve() in seen:
        raise InputError(f"{path}: extends itself by way of {' -> '.join(map(str, seen))}")
    file_lines: dict[KeyPath, Place] = {}
    values = read_values(path, own, file_lines)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections (base:, domains:, ...)")
    if values and not own and not any(_near(str(key), [*Recipe.model_fields, "extends"]) for key in values):
        raise InputError(f"{path}: is extended, and no recipe: it has none of {', '.join(Recipe.model_fields)}")
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise InputError(f"{path}: extends: give a file name or a list of them")
    read.append(path)
    if len(read) + len(parents) > MOST_FILES:
        raise InputError(f"{path}: extends: more than {MOST_FILES} files with those that these extend")
    merged: Any = {}
    for parent in parents:
        merged = _merge(merged, _read(_find(parent, path.parent), lines, (*seen, path.resolve()), read))
    lines.update(file_lines)
    return _merge(merged, values)


def _merge(below: Any, above: Any) -> Any:
    """Sections are merged key by key; anything else is replaced, and so is `fields`: an ordered choice, no section."""
    if isinstance(below, dict) and isinstance(above, dict):
        merged = {k: _merge(below[k], v) if k in below and k != "fields" else v for k, v in above.items()}
        return {**below, **merged}
    return above


def _override(values: Any, override: str, lines: dict[KeyPath, Place]) -> None:
    key, equals, text = override.partition("=")
    place = Place(_cut(f"--set {key}=..." if SECRET.search(key) else f"--set {override}"))
    if not equals or not key:
        raise InputError(f"{place}: write it as key.sub=value")
    value = read_value(text, place)
    path: list[str | int] = []
    section = values
    *above, last = key.split(".")
    for part in above:
        if isinstance(section, dict):
            path.append(part)
            section = section.setdefault(part, {})
        elif isinstance(section, list) and (position := _position(part, section)) is not None:
            path.append(position)
            section = section[position]
        else:
            raise InputError(f"{place}: there is no `{_cut(part)}` on the way to `{_cut(key)}`")
    if isinstance(section, list):
        position = _position(last, section)
        if position is None:
            raise InputError(f"{place}: `{_cut(last)}` is not a position in a list of {len(section)}")
        section[position] = value
    elif isinstance(section, dict):
        section[last] = value
        if path[:1] == ["stages"] and last in LENGTHS and value is not None:
            _unset_other_lengths(section, last, tuple(path), lines)
    else:
        raise InputError(f"{place}: `{_cut('.'.join(above))}` is a single value, not a section")
    path.append(last if isinstance(section, dict) else int(last))
    for n in range(1, len(path)):
        lines.setdefault(tuple(path[:n]), place)
    lines[tuple(path)] = place


def _unset_other_lengths(stage: dict[str, Any], given: str, path: KeyPath, lines: dict[KeyPath, Place]) -> None:
    """A stage is as long as --set says, whatever unit its file counts in; two of --set are still one too many."""
    for unit in LENGTHS:
        said = lines.get((*path, unit))
        if unit != given and not (said and said.line is None):
            stage.pop(unit, None)


def _position(part: str, section: list[Any]) -> int | None:
    """The place in a list that `part` names."""
    return int(part) if re.fullmatch("[0-9]{1,9}", part) and int(part) < len(section) else None


def _trim(location: tuple[int | str, ...], values: Any) -> KeyPath:
    """pydantic's location without the union branches and markers that it adds."""
    out: list[str | int] = []
    value = values
    for i, part in enumerate(location):
        inside = isinstance(value, dict) and part in value
        inside = inside or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        if inside:
            out.append(part)
            value = value[part]
        elif i == len(location) - 1 and isinstance(value, dict):
            out.append(part)
    return tuple(out)


def _mistake(error: Any, path: KeyPath, lines: dict[KeyPath, Place]) -> str:
    """What to say of a mistake. Of files that are only extended nothing is quoted."""
    place = _place(path, lines)
    if error["type"] == "extra_forbidden":
        keys = _keys_at(error["loc"][:-1])
        near = _near(str(error["loc"][-1]), keys)
        hint = f"did you mean `{near}`?" if near else f"known: {', '.join(keys)}"
        return _said(place, path if place.own or near else path[:-1], f"unknown key; {hint}")
    if error["type"] == "missing":
        return _said(place, path, "is missing")
    message = error["msg"].removeprefix("Value error, ")
    secret = any(SECRET.search(str(part)) for part in path)
    shown = _shown(error["input"]) if place.own and not secret else ""
    return _said(place, path, f"{message[0].lower()}{message[1:]}{shown}")


def _said(place: Place, path: KeyPath, message: str) -> str:
    return f"{place}: {_cut('.'.join(map(str, path)) or 'recipe')}: {message}"


def _cut(text: str) -> str:
    """A text in one line that is not too long to be shown."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _shown(value: Any) -> str:
    """A single value as an error shows it; sections and lists are not."""
    if value is None or isinstance(value, list | dict):
        return ""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python writes none of more than 4,300 digits
        return " (got a very large number)"
    return f" (got {_cut(repr(value))})"


def _near(key: str, known: list[str]) -> str | None:
    """The known key that one was perhaps meant to be."""
    return next(iter(difflib.get_close_matches(key, known, 1)), None) if len(key) <= SHOWN else None


def _keys_at(location: KeyPath) -> list[str]:
    """The keys a section may have, following `location` through the schema."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[part].annotation if part in model.model_fields else model
        while get_args(model):
            model = next((a for a in reversed(get_args(model)) if _has_keys(a)), type(None))
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _has_keys(annotation: Any) -> bool:
    return bool(get_args(annotation)) or (isinstance(annotation, type) and issubclass(annotation, BaseModel))


def _place(path: KeyPath, lines: dict[KeyPath, Place]) -> Place:
    """Where a key, or what is nearest above it, was said."""
    return next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), Place("recipe"))


def _report(mistakes: Iterable[str]) -> str:
    out = list(dict.fromkeys(mistakes))
    return "\n".join([*out[:MOST_MISTAKES], *([f"and {len(out) - MOST_MISTAKES} more"] if out[MOST_MISTAKES:] else [])])
