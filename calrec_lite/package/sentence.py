"""The files that make an export folder a sentence-transformers model: v_T of an item text, v_U of a history prompt."""

import json
from pathlib import Path
from typing import Any

from calrec_lite.errors import InputError
from calrec_lite.text.encoding import Encoder, Tokens
from calrec_lite.text.template import END_OF_ITEM

# The package's public names, not the full paths that sentence-transformers writes: vLLM knows a pooling model by
# exactly those (its get_pooling_config, main of 2026) and would serve this causal LM for embeddings only.
MODULES = {"": "Transformer", "1_WordWeights": "WordWeights", "2_Pooling": "Pooling", "3_Normalize": "Normalize"}
PACKAGE = "sentence_transformers.sentence_transformer.modules"
PROBE = "Title: A blue pen (2 pcs.), Brand: Unknown!"


def write_sentence_files(folder: Path, encoder: Encoder) -> None:
    """Add what `SentenceTransformer(folder)` needs to give the two towers' vectors; no other file is touched.

    A user passes plain texts, alone or mixed in a batch::

        model = SentenceTransformer(folder)            # sentence-transformers >= 6, no trust_remote_code
        items = model.encode_document(texts)           # (N, D) v_T; `Template.item`: "Title: Pen, Brand: Bic"
        users = model.encode_query(prompts)            # (B, D) v_U; `Template.prompt` of the recent items
        scores = users @ items.T                       # cosines: all rows have length 1

    `encode` gives the same vectors for both kinds of text, but only `encode_document` cuts an item at
    `max_item_tokens` as `Encoder.limit` does. (Neither is right for items that differ beyond it only, which are cut
    by a catalogue, and for one with a control token's name in its text, which is that token here; `encode` is right
    for one of exactly that length whose line break is part of a token.)
    Nothing cuts a history at `max_history_tokens`: pass the items that fit, as `Encoder.recent` picks them. A
    text beyond the model's own positions loses its end (`max_seq_length`).

    How each difference between the two libraries is closed:

    - The start token, an item's leading space and its line break are put around the text by a chat template
      that only sentence-transformers reads; the tokenizer's own files stay as they are. Items are single
      lines, so a text with a line break in it, or the bare first sentence, is a history and gets the start
      token only.
    - The start token is left out of the mean by a weight of 0 (`Pooling(include_prompt=False)` counts a
      special token at a prompt's end as not part of it). Weights in fp32 also make the mean of bf16 states
      one in fp32, as ours is.
    - Padding is on the right, also where the tokenizer has no padding token or says left.

    Raises:
        InputError: if this tokenizer splits a text after the start token in another way than inside a history.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text_config = config.get("text_config", config)
    rows = max(int(text_config["vocab_size"]), len(encoder.tokenizer))
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{PACKAGE}.{name}"}
            for i, (path, name) in enumerate(MODULES.items())
        ],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "__version__": {"sentence_transformers": "6.2.0"},
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": _transformer(encoder),
        "1_WordWeights/config.json": _weights(_start(encoder), int(encoder.start[0]), rows),
        "2_Pooling/config.json": {
            "embedding_dimension": int(text_config["hidden_size"]),
            "pooling_mode": "mean",
            "include_prompt": True,
        },
        "3_Normalize/config.json": {
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        },
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        layout: dict[str, Any] = {"separators": (",", ":")} if "WordWeights" in name else {"indent": 1}
        (folder / name).write_text(json.dumps(value, **layout) + "\n", encoding="utf-8")


def _transformer(encoder: Encoder) -> dict[str, Any]:
    """How texts become ids and states."""
    states = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": states, "message": {**states, "format": "flat"}},
        "module_output_name": "token_embeddings",
        "processing_kwargs": {"chat_template": {"chat_template": _chat_template(encoder)}},
        "processor_kwargs": {
            "padding_side": "right",
            "pad_token": encoder.tokenizer.convert_ids_to_tokens(encoder.pad),
        },
        "unpad_inputs": False,  # WordWeights reads the attention mask, which flattened inputs lack
        "document_length": len(encoder.start) + encoder.text.max_item_tokens,
    }


def _weights(start: str, start_id: int, rows: int) -> dict[str, Any]:
    """A weight for each id: 0 for the start token, 1 for all others, whose names can therefore stay empty."""
    names = [""] * rows
    names[start_id] = start
    return {"vocab": names, "word_weights": {start: 0.0}, "unknown_word_weight": 1.0}


def _chat_template(encoder: Encoder) -> str:
    """A Jinja template that adds around a text what is around it in a history."""
    wording = (
        _start(encoder),
        _space(encoder, f"{PROBE}{END_OF_ITEM}", encoder.items([PROBE])[0]),
        _space(encoder, encoder.text.first, encoder.first),
        encoder.text.first,
        END_OF_ITEM,
    )
    start, before_item, before_history, first, end = (json.dumps(w, ensure_ascii=False) for w in wording)
    return (
        '{%- set text = messages[-1]["content"] -%}'
        f"{{%- if {end} in text or text == {first} -%}}{{{{ {start} + {before_history} + text }}}}"
        f"{{%- else -%}}{{{{ {start} + {before_item} + text + {end} }}}}{{%- endif -%}}"
    )


def _start(encoder: Encoder) -> str:
    return str(encoder.tokenizer.convert_ids_to_tokens(int(encoder.start[0])))


def _space(encoder: Encoder, text: str, ids: Tokens) -> str:
    """What must stand between the start token and `text` for these `ids`; tokenizers differ in what they add there."""
    for space in (" ", ""):
        encoded = encoder.tokenizer(f"{_start(encoder)}{space}{text}", add_special_tokens=False)
        if encoded["input_ids"] == [*encoder.start, *ids]:
            return space
    raise InputError(
        "sentence-transformers: this base's tokenizer splits a text after the start token in another way than inside "
        "a history, so that its vectors would differ"
    )
