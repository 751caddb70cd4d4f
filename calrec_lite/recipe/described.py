"""A recipe as a person reads it: what differs from the defaults, or every key with its description; and docs/recipe.md.

`python -m calrec_lite.recipe.described` prints that page.
"""

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml

from calrec_lite.recipe.section import Section
from calrec_lite.recipe.sections import Recipe

WIDTH = 110  # of a line with its comment; longer comments stand above their key
LONGEST = 160  # characters of a default in the page
SOME = {"domains": "NAME", "stages": "N"}  # sections of which there may be several


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `reading` may take for numbers (1e5), though YAML itself does not."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    node: yaml.ScalarNode = yaml.SafeDumper.represent_str(dumper, value)
    if set(value) <= set("0123456789.eE+-_:"):
        node.style = '"'
    return node


_Dumper.add_representer(str, _text)


def differing(recipe: Recipe) -> str:
    """The recipe as YAML, without the keys that have their default: a recipe that says the same."""
    return _yaml(recipe.model_dump(mode="json", exclude_defaults=True))


def explained(recipe: Recipe) -> str:
    """The recipe as YAML with every key, each with its description in a comment."""
    return "".join(f"{line}\n" for line in _lines(recipe, recipe.model_dump(mode="json")))


def _yaml(value: Any, flow: bool | None = False) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=10**6
    )
    return text


def _lines(section: Section, values: dict[str, Any]) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        value, plain = getattr(section, key), values[key]
        if isinstance(value, Section):
            yield from _with_comment(f"{key}:", _purpose(type(value)))
            yield from _indented(_lines(value, plain))
        elif _section_of(field.annotation):  # several: by name, or one after the other
            yield f"{key}:"
            for name in value if isinstance(value, dict) else range(len(value)):
                yield f"  {name}:" if isinstance(name, str) else "  -"
                yield from _indented(_indented(_lines(value[name], plain[name])))
        elif isinstance(plain, dict) and plain:
            yield from _with_comment(f"{key}:", field.description)
            yield from _indented(_yaml(plain).splitlines())
        else:
            yield from _with_comment(_yaml({key: _Flow.of(plain)}).rstrip("\n"), field.description)


class _Flow(list[Any]):
    """A list on one line."""

    @classmethod
    def of(cls, value: Any) -> Any:
        return cls(cls.of(v) for v in value) if isinstance(value, list) else value


_Dumper.add_representer(_Flow, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))


def _with_comment(line: str, comment: str | None) -> Iterator[str]:
    if not comment:
        yield line
    elif len(line) + len(comment) + 4 <= WIDTH:
        yield f"{line}  # {comment}"
    else:
        yield from (f"# {part}" for part in textwrap.wrap(comment, WIDTH - 2))
        yield line


def _indented(lines: Any) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _purpose(section: type[Section]) -> str:
    """The first sentence of a section's docstring."""
    return " ".join(inspect.getdoc(section).split("\n\n")[0].split())  # type: ignore[union-attr]


def page() -> str:
    """docs/recipe.md."""
    lines = [
        "# Every key of a recipe",
        "",
        "Made from the code by `python -m calrec_lite.recipe.described > docs/recipe.md`; a test keeps it so. A recipe",
        "is YAML. What it does not say has its default; `extends` names other recipes that it is merged over, and",
        "`--set KEY=VALUE` wins over all (`--set stages.0.epochs=2`: places in a list are counted from 0).",
        "`calrec-lite train RECIPE --dry-run` prints what a recipe says beside the defaults, with `--full` all of it.",
        "[S] marks the CALRec paper's setting as its readers report it.",
        "",
    ]
    return "\n".join([*lines, *_page_of(Recipe, ())]) + "\n"


def _page_of(section: type[Section], path: tuple[str, ...]) -> Iterator[str]:
    yield f"## {'`' + '.'.join(path) + '`' if path else 'The recipe itself'}"
    yield ""
    yield _cell(_purpose(section))
    yield ""
    schema = section.model_json_schema()
    inner = {key: of for key, field in section.model_fields.items() if (of := _section_of(field.annotation))}
    plain = [key for key in section.model_fields if key not in inner]
    if plain:
        yield "| key | value | default | what it is |"
        yield "|---|---|---|---|"
    for key in plain:
        facts = schema["properties"][key]
        default = "required" if key in schema.get("required", ()) else _default(facts["default"])
        yield f"| `{key}` | {_cell(_kind(facts))} | {default} | {_cell(facts['description'])} |"
    if plain:
        yield ""
    for key, of in inner.items():
        yield from _page_of(of, (*path, key, *([SOME[key]] if key in SOME else [])))


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that a key holds, or holds several of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def _default(value: Any) -> str:
    text = _yaml(value, flow=True).removesuffix("...\n").strip()
    return f"`{text}`" if len(text) <= LONGEST else "long: `--full` shows it"


def _kind(facts: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in facts:
        return " or ".join(_kind(part) for part in facts["anyOf"])
    if choices := facts.get("enum", [facts["const"]] if "const" in facts else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = facts.get("type")
    if kind == "array":
        return f"list of {_kind(facts['items'])}"
    if kind in ("integer", "number"):
        return f"{'whole number' if kind == 'integer' else 'number'}{_bounds(facts)}"
    return {"string": "text", "boolean": "true or false", "null": "null", "object": "mapping"}[str(kind)]


def _bounds(facts: dict[str, Any]) -> str:
    """Those that a person may come near to."""
    low, high, below = (facts.get(key) for key in ("minimum", "maximum", "exclusiveMaximum"))
    if high is not None and high <= 1_000_000:
        return f", {low:,g} to {high:,.15g}"
    if below is not None and below <= 1_000_000:
        return f", {low:,g} to below {below:,.15g}"
    return "" if low is None or 0 < low < 1e-3 else f", at least {low:,g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
