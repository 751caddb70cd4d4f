"""A model folder that others open as it is: weights, tokenizer, generation config, calrec.json, items, card."""

import json
import os
import shutil
from pathlib import Path

from huggingface_hub import ModelCardData

from calrec_lite.errors import InputError
from calrec_lite.files import BESIDE_WEIGHTS, copy_matching
from calrec_lite.package.layout import CATALOGUE, FITTED, NAME, TRANSITIONS, PackageInfo, record, write_info
from calrec_lite.package.sentence import write_sentence_files
from calrec_lite.recipe import Recommend
from calrec_lite.text.encoding import Encoder

PATH_KEYS = {"_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file"}
CARD = """# A recommender

Finetuned by the method of CALRec with calrec-lite, over the items of `catalogue.jsonl`. Not evaluated.

```python
from calrec_lite import Recommender

recommender = Recommender.from_pretrained("this folder or its Hub id")
recommender.recommend([["a title", "another title"]], k=10)
```
"""


def copy_model(source: Path, to: Path) -> None:
    """Weights and what belongs to them into the folder `to`. Weights are linked where the disk can: they never change
    in place."""
    for file in source.glob("*.safetensors"):
        try:
            os.link(file.resolve(), to / file.name)  # the Hub's cache holds links itself
        except OSError:  # another disk, or one that knows no links
            shutil.copy(file, to / file.name)
    copy_matching(source, to, (*BESIDE_WEIGHTS, "*.py"))


def complete_model(folder: Path, encoder: Encoder, item_tokens: int) -> None:
    """Make full weights in `folder` one that behaves alike everywhere: no foreign paths or sampling defaults in it,
    and open to sentence-transformers.

    Args:
        item_tokens: the most that an item has.
    """
    _without_places(folder)
    _explicit_generation(folder, encoder, item_tokens)
    try:
        write_sentence_files(folder, encoder)
    except InputError as error:  # the rest of the folder works without them
        print(f"no sentence-transformers files: {error}")


def copy_package(source: Path, options: Recommend, to: Path) -> None:
    """A copy of an exported folder with other options for lists, as the new folder `to`."""
    to.mkdir()
    copy_model(source, to)
    copy_matching(source, to, (CATALOGUE, TRANSITIONS, "README.md"))
    for folder in (*source.glob("[0-9]_*"), *source.glob(FITTED)):
        shutil.copytree(folder, to / folder.name)
    info = PackageInfo.model_validate_json((source / NAME).read_text(encoding="utf-8"))
    write_info(to, info.model_copy(update={"recommend": options}))
    record(to)


def write_short_card(folder: Path, base: str | None) -> None:
    """README.md of a model that was trained from Python; the card of a run says more (`export.card`).

    Args:
        base: Hub id of the base; None where it has none.
    """
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        tags=["calrec-lite", "recommendation", "sequential-recommendation"],
    )
    (folder / "README.md").write_text(f"---\n{metadata.to_yaml()}\n---\n\n{CARD}", encoding="utf-8")


def _without_places(folder: Path) -> None:
    """Remove the paths on its maker's machine that older versions of transformers wrote into a base's files."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if PATH_KEYS & values.keys():
            values = {key: value for key, value in values.items() if key not in PATH_KEYS}
            file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _explicit_generation(folder: Path, encoder: Encoder, item_tokens: int) -> None:
    """A base's own sampling defaults would silently change what a user measures (docs/architecture.md)."""
    from transformers import GenerationConfig  # here: it loads all of generation

    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=item_tokens,
        bos_token_id=int(encoder.start[0]),
        eos_token_id=[int(i) for i in encoder.stops],
        pad_token_id=encoder.pad,
    )
    (folder / "generation_config.json").write_text(json.dumps(config.to_diff_dict(), indent=1) + "\n", encoding="utf-8")
