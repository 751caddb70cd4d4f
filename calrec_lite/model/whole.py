"""Whether a model folder is whole: its weights all there, of the right shape, numbers, and nothing beside them that
would be loaded too (docs/architecture.md)."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from calrec_lite.bars import wait_bar
from calrec_lite.errors import InputError, RunError, one_line
from calrec_lite.model.memory import out_of_memory
from calrec_lite.stored import read_object

REMEDY = "take the folder once more from where it came, or write it anew"
SAFELY: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}  # no pickles, no network
SHOWN = 5  # tensors that a message names
ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
GGUF = b"GGUF"  # how such a file begins
REPEATED = re.compile(r"layers?$|experts?$")  # keys that say how many modules are made, before any tensor is read
MOST_REPEATED = 4096


def require_whole(folder: Path, trust_remote_code: bool = False, encoder: bool = False) -> None:
    """Compare a folder's weights with what its config asks for; reads their names and shapes alone.

    Args:
        encoder: it is a sentence encoder (whose pooler nobody asks), not a causal language model.

    Raises:
        InputError: there are tensors missing, or of another shape, or the folder cannot be read as a model.
    """
    require_plain_folder(folder)
    with refused(f"{folder} cannot be loaded"), _no_report():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        if config.is_encoder_decoder and encoder:
            return  # its encoder alone is taken, which its own class knows
        if config.is_encoder_decoder:
            raise InputError(f"{folder} is an encoder-decoder; a causal language model is needed")
        loaded: Any = (AutoModel if encoder else AutoModelForCausalLM).from_pretrained(
            folder,
            device_map={"": "meta"},  # where tensors have shapes and no bytes
            attn_implementation="eager",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **SAFELY,
        )
    info = loaded[1]
    if encoder:
        info["missing_keys"] = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    require_complete(info, folder)


def require_complete(info: dict[str, Any], folder: Path) -> None:
    """Raise InputError for tensors that transformers did not find, or found in another shape, and filled at random.

    Args:
        info: from `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`; tied weights count as
            found there.
    """
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder}: its weights lack {_shown(missing)}; {REMEDY}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise InputError(
            f"{folder}: {_shown([entry[0] for entry in mismatched])} of its weights do not fit its config.json "
            f"({name} is {list(stored)}, not {list(wanted)}); {REMEDY}"
        )


def require_finite(model: nn.Module, files: Iterable[Path] | None, folder: Path) -> None:
    """Raise InputError for weights that are no numbers.

    Args:
        files: read in place of the model, where its weights are quantised.
    """
    bad, state, stored = [], model.state_dict() if files is None else {}, list(files or ())
    with wait_bar(f"check {folder.name}", len(state) or sum(map(_count, stored)), "tensor") as bar:
        for name, tensor in chain(state.items(), _stored(stored)):
            if tensor.is_floating_point() and not is_finite(tensor):
                bad.append(name)
            bar.update()
    if bad:
        raise InputError(f"{folder}: {_shown(bad)} of its weights hold what is no number (NaN or infinite); {REMEDY}")


def require_plain_folder(folder: Path) -> None:
    """Raise InputError where loading would take more than the folder's own weights: an adapter that lies beside them,
    a quantisation, or attention by code from the Hub."""
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder}: an adapter (adapter_config.json) lies beside the weights and would be added to them; move it "
            "away, or merge it by `calrec-lite merge`"
        )
    config = read_config(folder)
    if "quantization_config" in config:
        raise InputError(f"{folder}: the weights are quantised; name their unquantised original")
    for key, value in _all_items(config):
        if key in ATTENTION_KEYS and not (value is None or (isinstance(value, str) and value.isidentifier())):
            raise InputError(
                f"{folder / 'config.json'}: `{key}` names foreign code; take it out, nothing here needs it"
            )
        if REPEATED.search(key) and isinstance(value, int | float) and abs(value) > MOST_REPEATED:
            raise InputError(f"{folder / 'config.json'}: `{key}` is {value:.4g}; no model here has so many")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises InputError where it is no JSON object."""
    return read_object(folder / "config.json", REMEDY)


def require_whole_gguf(path: Path) -> None:
    """Raise InputError where a GGUF file is none, or ends before what its head says it holds; no tensor is read."""
    with path.open("rb") as file:
        if file.read(len(GGUF)) != GGUF:
            raise InputError(f"base.model: {path} is no GGUF file")
    from gguf import GGUFReader  # loaded for this kind of file alone

    try:
        GGUFReader(path)
    except Exception as error:  # it looks at nothing: whatever is missing shows as an error of its arrays
        raise InputError(
            f"base.model: {path} is cut off or damaged: it has {path.stat().st_size:,} bytes, which is not all that "
            f"its head says it holds ({one_line(error)}); download it again"
        ) from None


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Make one line, which begins with `message`, of whatever a library raises over local files; the Hub is not asked.

    transformers, tokenizers, PEFT and safetensors check little of what they read: damage shows as errors of any class.
    """
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # `local_files_only` does not reach everywhere
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{message}: {one_line(error)}") from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _count(file: Path) -> int:
    with safe_open(file, "pt") as weights:
        return len(weights.keys())


def _stored(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                yield name, weights.get_tensor(name)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers only. One pass, mostly: what is no number makes the sum none."""
    # A sum of large numbers may be none, too.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _all_items(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, also of configs within the config, however deep."""
    open_values: list[Any] = [config]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            yield from value.items()
        open_values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []


@contextmanager
def _no_report() -> Iterator[None]:
    """Without transformers' table of what is missing, and its bar: the error says it."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
