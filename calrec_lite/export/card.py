"""The model card: README.md with Hub metadata, rendered from facts on disk."""

import json
from typing import Any

import yaml

from calrec_lite import __version__
from calrec_lite.evaluate.results import table
from calrec_lite.recipe import resolved
from calrec_lite.train.run import Run


def render_card(run: Run) -> str:
    """The card's text: what was trained on what, how it was measured, how to use it."""
    recipe = run.recipe
    results = _results(run)
    base = recipe.base.model.partition("#")[0]
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["calrec-lite", "recommendation", "sequential-recommendation"],
        **({"base_model": base} if "://" not in base and not base.endswith(".gguf") else {}),
        **({"model-index": [_model_index(recipe.name, results)]} if results else {}),
    }
    domain = run.domain(recipe.target)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.name}",
        f"A sequential recommender for `{domain.name}` ({len(domain.catalogue):,} items), finetuned from `{base}` by "
        f"the method of CALRec with calrec-lite {__version__}. The base's licence applies.",
        _USE,
        "## Results",
        table(results) if results else "Not evaluated yet: run `calrec-lite evaluate` and export again.",
        "## Stages",
        _stages(run.stage_metrics()),
        "## Data",
        f"Fingerprint of the prepared domain: `{domain.fingerprint}`.",
        "## Recipe",
        f"```yaml\n{yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(parts) + "\n"


_USE = """```python
from calrec_lite.recommend import Recommender

recommender = Recommender.from_pretrained("this folder or its Hub id")
recommender.recommend([["a title", "another title"]], k=10)
```"""


def _results(run: Run) -> dict[str, Any] | None:
    file = run.evaluation / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _stages(stages: dict[str, Any]) -> str:
    """Validation loss at each hand-over (nats an item) and how the merged weights compare with the adapter."""
    lines = [
        "| stage | steps | before | after | merged | top-1 agreement | max logit difference |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, facts in stages.items():
        parity = facts["parity"]
        lines.append(
            f"| {name} | {facts['steps']} | {facts['valid_nats_before']:.3f} | {facts['valid_nats_after']:.3f} "
            f"| {facts['valid_nats_merged']:.3f} | {parity['top1_agreement']:.4f} | {parity['max_difference']:.3f} |"
        )
    return "\n".join(lines) + "\n\nValidation loss in nats an item; `merged` is the merged weights in full precision."


def _model_index(name: str, results: dict[str, Any]) -> dict[str, Any]:
    domain = results["domain"]
    metrics = [
        {"type": metric, "value": round(interval["value"], 4), "name": metric}
        for metric, interval in results["systems"]["final"].items()
    ]
    return {
        "name": name,
        "results": [
            {
                "task": {"type": "other", "name": "Sequential recommendation"},
                "dataset": {"type": domain["name"], "name": f"{domain['name']} {domain['fingerprint'][:12]}"},
                "metrics": metrics,
            }
        ],
    }
