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
from calrec_lite.recipe import Recipe, resolved

# Numbers of YAML 1.1 that a reader takes for others: 010 is 8, 1:30 is 90; 08 is a text, which pydantic takes for 8.
OLD_NUMBER = re.compile(r"[-+]?(0[0-9_.]*[0-9_]+|0[ob][0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
DECIMAL = re.compile(r"[-+]?0?\.[0-9]+|0")
OLD_TRUTH = ("yes", "no", "on", "off")
KeyPath = tuple[str | int, ...]
PACKAGE = Path(__file__).parents[1]


def builtin_folder() -> Path:
    """The folder of the recipes that come with the package (beside the code in a checkout)."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        source: path of a YAML file, or the name of a recipe that comes with the package (`demo`).
        overrides: `key.sub=value` pairs, the value read as YAML; list positions are numbers.

    Raises:
        InputError: with every mistake found, each with file, line and, where one is near, a suggestion.
    """
    lines: dict[KeyPath, str] = {}
    values = _read(_find(str(source), None), lines, ())
    for override in overrides:
        _override(values, override, lines)
    return check_recipe(values, lines)


def check_recipe(values: Any, lines: dict[KeyPath, str] | None = None) -> Recipe:
    """Turn plain data into a Recipe. Raises InputError with all mistakes."""
    lines = lines or {}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_report(((_trim(e["loc"], values), _message(e)) for e in error.errors()), lines)) from None
    cross_errors = recipe.cross_errors()
    if cross_errors:
        raise InputError(_report(cross_errors, lines))
    return recipe


def save_resolved(recipe: Recipe, path: Path) -> None:
    """Write the recipe with every default spelled out; the file is itself a valid recipe."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")


def load_resolved(path: Path) -> Recipe:
    """What `save_resolved` wrote, by YAML's own rules: it extends nothing, and its texts stay texts.

    Raises:
        InputError: it was damaged.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise _not_yaml(path, error) from None
    return check_recipe(values)


def _not_yaml(source: object, error: Exception) -> InputError:
    """For a YAMLError, or a ValueError: UnicodeDecodeError is one."""
    return InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}")


def _find(name: str, folder: Path | None) -> Path:
    candidates = [Path(name)] if folder is None else [folder / name]
    candidates += [builtin_folder() / name, builtin_folder() / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, [p.stem for p in builtin_folder().glob("*.yaml")], 1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise InputError(f"{name}: no such recipe file, and no built-in recipe of that name{hint}")


def _read(path: Path, lines: dict[KeyPath, str], seen: tuple[Path, ...]) -> Any:
    """The values of a file merged over those it extends; `lines` receives the place of each key."""
    if path.resolve() in seen:
        raise InputError(f"{path}: extends itself by way of {' -> '.join(map(str, seen))}")
    try:
        file_lines: dict[KeyPath, str] = {}
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        values = _construct(node, (), path, file_lines) if node is not None else {}
    except (yaml.YAMLError, ValueError) as error:
        raise _not_yaml(path, error) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections (base:, domains:, ...)")
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise InputError(f"{path}: extends: give a file name or a list of them")
    merged: Any = {}
    for parent in parents:
        merged = _merge(merged, _read(_find(parent, path.parent), lines, (*seen, path.resolve())))
    lines.update(file_lines)
    return _merge(merged, values)


def _construct(node: yaml.Node, at: KeyPath, path: Path, lines: dict[KeyPath, str]) -> Any:
    lines.setdefault(at, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError(
                    f"{path}:{key_node.start_mark.line + 1}: a key must be a single word; quote text in braces"
                )
            key = _scalar(key_node)
            if key in out:
                raise InputError(f"{path}:{key_node.start_mark.line + 1}: key `{key}` appears twice")
            lines[(*at, key)] = f"{path}:{key_node.start_mark.line + 1}"
            out[key] = _construct(value_node, (*at, key), path, lines)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*at, i), path, lines) for i, child in enumerate(node.value)]
    return _scalar(node) if isinstance(node, yaml.ScalarNode) else None


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.style is None and OLD_NUMBER.fullmatch(node.value) and not DECIMAL.fullmatch(node.value):
        line = node.start_mark.line + 1
        raise ValueError(f"line {line}: `{node.value}` is another number to YAML; write it in decimal, or quote a text")
    if node.style is None and node.value.lower() in OLD_TRUTH:  # a text where a text is asked for, else the truth value
        return node.value
    loader = yaml.SafeLoader("")
    value = loader.construct_object(node)
    if isinstance(value, str) and node.style is None:  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value) if set(value) <= set("0123456789.eE+-") and any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def _merge(below: Any, above: Any) -> Any:
    """Sections are merged key by key; anything else is replaced, and so is `fields`: an ordered choice, no section."""
    if isinstance(below, dict) and isinstance(above, dict):
        merged = {k: _merge(below[k], v) if k in below and k != "fields" else v for k, v in above.items()}
        return {**below, **merged}
    return above


def _override(values: Any, override: str, lines: dict[KeyPath, str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: write it as key.sub=value")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _construct(node, (), Path("--set"), {}) if node is not None else None
    except (yaml.YAMLError, ValueError) as error:
        raise _not_yaml(f"--set {override}", error) from None
    parts: list[str | int] = [int(p) if p.isdigit() else p for p in key.split(".")]
    section = values
    for part in parts[:-1]:
        if isinstance(section, list) and isinstance(part, int) and part < len(section):
            section = section[part]
        elif isinstance(section, dict):
            section = section.setdefault(part, {})
        else:
            raise InputError(f"--set {override}: there is no `{part}` on the way to `{key}`")
    last = parts[-1]
    if isinstance(section, list):
        if not isinstance(last, int) or last >= len(section):
            raise InputError(f"--set {override}: `{last}` is not a position in a list of {len(section)}")
        section[last] = value
    elif isinstance(section, dict):
        section[last] = value
    else:
        raise InputError(f"--set {override}: `{'.'.join(map(str, parts[:-1]))}` is a single value, not a section")
    for n in range(1, len(parts)):
        lines.setdefault(tuple(parts[:n]), f"--set {override}")
    lines[tuple(parts)] = f"--set {override}"


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


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        keys = _keys_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), keys, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(keys)}"
        return f"unknown key; {hint}"
    if error["type"] == "missing":
        return "is missing"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{message[0].lower()}{message[1:]} (got {error['input']!r})"
        if not isinstance(error["input"], dict)
        else message
    )


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


def _report(errors: Iterable[tuple[KeyPath, str]], lines: dict[KeyPath, str]) -> str:
    out = []
    for path, message in dict.fromkeys(errors):
        place = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), "recipe")
        out.append(f"{place}: {'.'.join(map(str, path)) or 'recipe'}: {message}")
    return "\n".join(out)
