"""A model's tokenizer, without the model: lists that no LLM makes need nothing more of it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from calrec_lite.model.whole import refused


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model folder. Raises InputError where there is none."""
    with refused(f"{folder}: has no tokenizer that can be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        tokenizer("a b")  # odd settings show when it is used
        return tokenizer
