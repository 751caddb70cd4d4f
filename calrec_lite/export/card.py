"""The model card: README.md with Hub metadata, rendered from facts on disk."""

import re
from pathlib import Path
from typing import Any

import yaml

from calrec_lite import __version__
from calrec_lite.errors import InputError
from calrec_lite.evaluate.settings import changed_settings, evaluations_of_lists
from calrec_lite.evaluate.store import read_metrics
from calrec_lite.evaluate.tables import table, weights_table
from calrec_lite.fitting.opening import fitted_folder
from calrec_lite.recipe import Recipe, resolved
from calrec_lite.recommend.fusion import read_weights
from calrec_lite.run import Run

SHOWN = 200  # characters of a text of others


def render_card(run: Run, adapter: bool = False, strategy: str | None = None) -> str:
    """The card's text: what was trained on what, how it was measured, how to use it.

    Args:
        adapter: whether it is of the adapter alone.
        strategy: by which the folder makes lists; default: the recipe's.
    """
    recipe = run.recipe
    strategy = strategy or recipe.recommend.strategy
    results, note = _results(run, strategy)
    system = _system(results, strategy)
    base = base_name(recipe)
    metadata = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["calrec-lite", "recommendation", "sequential-recommendation"],
        **({"license": recipe.base.license} if recipe.base.license else {}),
        **({"base_model": base} if on_hub(base) else {}),
        **({"datasets": hub} if (hub := _hub_datasets(run)) else {}),
        **({"model-index": [_model_index(recipe.name, results, system)]} if results and system else {}),
    }
    domain = run.domain(recipe.target)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.name}",
        f"A sequential recommender for `{domain.name}` ({len(domain.catalogue):,} items), finetuned from {_code(base)} "
        f"by the method of CALRec with calrec-lite {__version__}. "
        f"Licence of the base: {_licence(recipe.base.license)}.",
        *([] if not recipe.export.catalogue else [_USE_ADAPTER.format(base=_code(base)) if adapter else _USE]),
        *(["## Lists", _weights(run)] if recipe.recommend.fits and recipe.export.catalogue and not adapter else []),
        "## Results",
        *([table(results)] if results else []),
        *([note] if note else []),
        "## Stages",
        _stages(run.stage_metrics()),
        "## Data",
        _data(run),
        "## Limits",
        f"{_LIMITS} {_NEW_ITEMS}" if recipe.export.catalogue else f"{_LIMITS} {_NO_CATALOGUE}",
        "## Recipe",
        _block("yaml", yaml.safe_dump(_short(_public_recipe(recipe)), sort_keys=False, allow_unicode=True)),
    ]
    return "\n\n".join(parts) + "\n"


def _weights(run: Run) -> str:
    """How much each reading counts in the lists."""
    fast, fused, facts = read_weights(fitted_folder(run, run.final()))
    strategy = run.recipe.recommend.strategy
    weights = (fused if strategy == "fused" else fast) or {}
    if (fit := facts.get(f"{strategy}_fit")) is None:
        raise InputError(f"{fitted_folder(run, run.final())}: does not say how its weights were fitted; train again")
    return (
        f"`{strategy}` adds up what several readings say of an item, each with its weight, fitted on {fit['users']:,} "
        f"validation users:\n\n{weights_table(weights, fit['intervals'])}"
    )


def _licence(name: str | None) -> str:
    if name is None:
        return "see there"
    return name if re.fullmatch(r"[\w.+-]{1,100}", name) else _code(name)


def _code(text: str) -> str:
    """A text of others as Markdown code in a line; a long one is cut."""
    line = _short(" ".join(text.split()))
    mark = "`" * (_backticks(line) + 1)
    return f"{mark} {line} {mark}" if "`" in line else f"{mark}{line}{mark}"


def _block(language: str, text: str) -> str:
    """Lines as Markdown code, closed by a fence that is not in them."""
    fence = "`" * max(3, _backticks(text) + 1)
    return f"{fence}{language}\n{text}{fence}"


def _backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _short(value: Any) -> Any:
    """A value of a recipe, or all within it: labels and wording that are long are cut."""
    if isinstance(value, dict):
        return {_short(key): _short(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_short(below) for below in value]
    return f"{value[:SHOWN]}..." if isinstance(value, str) and len(value) > SHOWN else value


def base_name(recipe: Recipe) -> str:
    """The base's public name: no path of this machine."""
    return _public(recipe.base.model).partition("#")[0]


def _public(source: str) -> str:
    """A Hub id or an address as it is; a path of this machine without its folders."""
    path = source.partition("#")[0]
    return source if re.match("[a-z]+://", path) or on_hub(path) else Path(path).expanduser().resolve().name


def _public_recipe(recipe: Recipe) -> dict[str, Any]:
    values = resolved(recipe)
    values["base"]["model"] = _public(values["base"]["model"])
    for domain in values["domains"].values():
        domain |= {key: _public(domain[key]) for key in ("interactions", "items") if domain[key]}
    values["evaluate"]["minilm"]["model"] = _public(values["evaluate"]["minilm"]["model"])
    for changes in values["ablate"]["variants"].values():
        if "base.model" in changes:
            changes["base.model"] = _public(changes["base.model"])
    return values


def on_hub(base: str) -> bool:
    """Whether a base's name is a Hub id, not a path of this machine."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", base)) and not Path(base).exists() and not base.endswith(".gguf")


def _hub_datasets(run: Run) -> list[str]:
    """OWNER/NAME of every Hub data set the recipe reads."""
    sources = (source for d in run.recipe.domains.values() for source in (d.interactions, d.items or ""))
    return sorted({"/".join(s.split("/")[3:5]).partition("@")[0] for s in sources if s.startswith("hf://datasets/")})


_USE = """```python
from calrec_lite.recommend import Recommender

recommender = Recommender.from_pretrained("this folder or its Hub id")
recommender.recommend([["a title", "another title"]], k=10)
```"""


_USE_ADAPTER = (
    "This is the LoRA adapter alone. `calrec-lite merge BASE ADAPTER TO` adds this folder, as ADAPTER, to the "
    "weights of {base} in the folder BASE; PEFT loads it onto them as it is."
)


_LIMITS = (
    "It recommends items of this catalogue only, learnt from past choices with whatever bias they hold; it was "
    "measured offline on held-out choices, which is not the same as being useful to a person."
)
_NEW_ITEMS = (
    "An item that is not in `catalogue.jsonl` can be added there as text without training, but is then as rare as an "
    "item nobody took."
)
_NO_CATALOGUE = "The catalogue is not part of this export: put its `catalogue.jsonl` beside `calrec.json` to use it."


def _results(run: Run, strategy: str) -> tuple[dict[str, Any] | None, str]:
    """The run's evaluation, if it is of the recipe's data and of lists as they are made now, and what is to be said."""
    own, *others = (_measured(run, folder) for folder in evaluations_of_lists(run))
    results, note = next((found for found in (own, *others) if found[0]), own)
    if results is None or strategy == run.recipe.recommend.strategy:
        return results, note
    row = _system(results, strategy)
    measured = f"they are row `{row}`" if row else "they were not measured"
    return results, f"From this folder alone lists are made by `{strategy}`: {measured}."


def _measured(run: Run, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What lies in one folder, as `_results`."""
    again = "run `calrec-lite evaluate` and export again."
    try:
        results = read_metrics(folder)
    except InputError:
        return None, f"Not evaluated yet: {again}"
    if results["domain"]["fingerprint"] != run.domain(run.recipe.target).fingerprint:
        return None, f"Not evaluated yet: {again}"
    if changes := changed_settings(run, results):
        return None, f"Not evaluated since the settings of its lists have changed ({'; '.join(changes)}): {again}"
    return results, ""


def _system(results: dict[str, Any] | None, strategy: str) -> str | None:
    """The system of an evaluation whose lists are those of the final model by `strategy`; None: not measured."""
    if not results:
        return None
    same = results.get("recommend", {}).get("strategy", strategy) == strategy
    name = "final" if same else f"final_{strategy}"
    return name if name in results["systems"] else None


def _stages(stages: dict[str, Any]) -> str:
    """Validation loss at each hand-over (nats an item) and how the merged weights compare with the adapter."""
    lines = [
        "| stage | steps | before | after | merged | quantised afresh | handed on | top-1 | mean difference | max |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, facts in stages.items():
        parity = facts["parity"]
        nats = [facts[f"valid_nats_{when}"] for when in ("before", "after", "merged", "requantised", "handed_on")]
        cells = [str(facts["steps"]), *(f"{n:.3f}" for n in nats), f"{parity['top1_agreement']:.4f}"]
        cells += [f"{parity['mean_difference']:.4f}", f"{parity['max_difference']:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = (
        "Validation loss in nats an item: before and after training with the adapter live, of the merged weights in "
        "full precision and quantised as the base was in training, and as the next stage started. Top-1 agreement and "
        "absolute differences: logits of the merged weights against the live adapter."
    )
    if types := dict.fromkeys(facts["dtype"] for facts in stages.values() if "dtype" in facts):
        notes += f" Trained and measured in {' and '.join(types)}."
    if any(facts.get("merged_quantised") for facts in stages.values()):
        notes += " The merged weights were too large for the GPU and were measured quantised as in training."
    return "\n".join(lines) + f"\n\n{notes}"


def _data(run: Run) -> str:
    """Every domain the model has seen, with its size and fingerprint."""
    lines = ["| domain | users | items | events | fingerprint |", "|---|--:|--:|--:|---|"]
    for name in dict.fromkeys(d for stage in run.recipe.stages for d in stage.domains):
        domain = run.domain(name)
        sizes = len(domain.sequences), len(domain.catalogue), len(domain.sequences.items)
        lines.append(f"| {name} | {' | '.join(f'{n:,}' for n in sizes)} | `{domain.fingerprint}` |")
    return "\n".join(lines)


def _model_index(name: str, results: dict[str, Any], system: str) -> dict[str, Any]:
    domain = results["domain"]
    metrics = [
        {"type": metric, "value": round(interval["value"], 4), "name": metric}
        for metric, interval in results["systems"][system].items()
    ]
    return {
        "name": name,
        "results": [
            {
                "task": {"type": "other", "name": "Sequential recommendation"},
                "dataset": {
                    "type": domain["name"],
                    "name": f"{domain['name']} {domain['fingerprint'][:12]}",
                    "split": results["protocol"]["split"],
                },
                "metrics": metrics,
            }
        ],
    }
