"""The base LLM and its tokenizer: where they come from, how they are loaded, how the adapter is put in."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from calrec_lite.bars import wait_bar
from calrec_lite.claim import claimed_file
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import BESIDE_WEIGHTS, atomic_path, cache_folder, file_sha256
from calrec_lite.model.device import choose_dtype, device
from calrec_lite.model.merge import shards, stored_tensors
from calrec_lite.model.whole import (
    REMEDY,
    SAFELY,
    one_line,
    refused,
    require_complete,
    require_finite,
    require_whole,
    require_whole_gguf,
)
from calrec_lite.recipe import Base, Lora
from calrec_lite.recipe.bases import unknown_base
from calrec_lite.sources import at_hand, fetch, snapshot


def base_folder(base: Base) -> Path:
    """A local folder with the base's original weights as safetensors, its config and its tokenizer.

    A Hub id is downloaded to the Hub's cache, a .gguf file is unpacked once to bf16 in the user's cache
    folder (packed weights can be neither trained nor merged onto).

    Raises:
        InputError: if there is no such model, it has no safetensors, or they are not whole.
    """
    location = base.model.partition("#")[0]
    if location.endswith(".gguf"):
        return _unpack_gguf(fetch(base.model), base.model)
    folder = Path(location)
    if not folder.is_dir():
        folder = _from_hub(base)
    if not (folder / "config.json").is_file():
        raise InputError(f"base.model: {folder} holds no config.json, so it is no transformers model")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"base.model: {folder} holds no *.safetensors (pickled weights are never loaded)")
    require_whole(folder, base.trust_remote_code)
    return folder


def base_at_hand(base: Base) -> Path | None:
    """As `base_folder`, but None where something would have to be downloaded first."""
    location = base.model.partition("#")[0]
    if Path(location).is_dir() or (location.endswith(".gguf") and at_hand(base.model)):
        return base_folder(base)
    if "://" in location or location.endswith(".gguf"):
        return None
    try:
        folder = _from_hub(base, local=True)
        require_whole(folder, base.trust_remote_code)
    except InputError:  # none of it, or a part
        return None
    return folder


def _from_hub(base: Base, local: bool = False) -> Path:
    patterns = ["*.safetensors", *BESIDE_WEIGHTS, *(["*.py"] if base.trust_remote_code else [])]
    duplicates = ["consolidated*", "original/*"]  # the same weights in their maker's own format
    try:
        return snapshot(base.model, "base.model", patterns, duplicates, base.revision, local)
    except InputError as error:
        raise InputError(f"{error}{unknown_base(base.model)}") from None


def _unpack_gguf(path: Path, name: str) -> Path:
    folder = cache_folder() / "bases" / f"{path.stem}-{file_sha256(path)[:16]}"
    if not (folder / "config.json").is_file():
        with claimed_file(folder, wait=True):
            if not (folder / "config.json").is_file():  # another process may just have unpacked it
                require_whole_gguf(path)
                print(f"unpacking {name.partition('#')[0]} to bf16, once")
                _write_unpacked(path, folder)
    require_whole(folder)
    return folder


def _write_unpacked(path: Path, folder: Path) -> None:
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with refused(f"base.model: {path} cannot be read as GGUF"):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            output_loading_info=True,
            **source,
        )
    model, info = loaded
    require_complete(info, path)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


Placement = tuple[bool, torch.device]  # whether quantised, and where


def placement(folder: Path, base: Base) -> Placement:
    """How the full weights of a folder are loaded to be used.

    On the GPU as they are where they fit in `base.dtype` beside what is on it; else as they are quantised in training;
    else, for a base that is not, on the CPU.
    """
    gpu = device()
    if gpu.type == "cpu" or torch.cuda.mem_get_info(gpu)[0] > 1.3 * loaded_bytes(folder, base):
        return False, gpu
    if base.load_in_4bit or base.load_in_8bit:
        print(f"{folder}: too large for the GPU in {choose_dtype(base, folder).dtype}, so quantised as in training")
        return True, gpu
    return False, torch.device("cpu")


def loaded_bytes(folder: Path, base: Base) -> int:
    """Bytes of a folder's full weights in `base.dtype`, in whatever dtype they are stored."""
    parameters = 0
    for file in shards(folder):
        parameters += sum(math.prod(entry["shape"]) for entry in stored_tensors(file)[0].values())
    return parameters * int(getattr(torch, choose_dtype(base, folder).dtype).itemsize)


def load_model(
    folder: Path,
    base: Base,
    quantised: bool = True,
    where: torch.device | None = None,
    quantisation: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Load the weights of a local folder as the recipe says: NF4 with double quantisation, int8, bf16 or fp32.

    Whatever is quantised is multiplied in the number type of `base.dtype`, which `auto` chooses for this machine.

    Args:
        folder: from `base_folder`, or a stage's merged weights.
        quantised: False loads full weights whatever the recipe says.
        where: default: `device()`.
        quantisation: in place of the recipe's.

    Raises:
        InputError: transformers cannot load it so: an architecture or attention that it does not know or has not
            installed; or its weights are not whole, or no numbers.
        RunError: there is not memory enough for it.
    """
    dtype = getattr(torch, choose_dtype(base, folder, where).dtype)
    if quantisation is None and quantised:
        quantisation = _quantisation(base, dtype)
    try:
        with refused(f"{folder} with attention: {base.attention} cannot be loaded"):
            require_whole(folder, base.trust_remote_code)
            with _loading_bar(f"load {folder.name}"):
                model = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=dtype,
                    quantization_config=quantisation,
                    device_map={"": where or device()},
                    attn_implementation=base.attention,
                    trust_remote_code=base.trust_remote_code,
                    **SAFELY,
                )
            require_finite(model, shards(folder) if quantisation else None, folder)
    except (RuntimeError, MemoryError) as error:  # `refused` leaves out only what says that memory lacks
        raise RunError(
            f"out of memory while {folder} was loaded: free the GPU, or load it in 4 bits (`recommend --4bit`; a run: "
            f"base.load_in_4bit: true under another `name`) ({one_line(error)})"
        ) from None
    model.config.use_cache = False
    if dtype is not torch.bfloat16:  # the type in which bitsandbytes' fused kernel for NF4 on a CPU multiplies
        _without_fused_kernel(model)
    return model


@contextmanager
def _loading_bar(what: str) -> Iterator[None]:
    """transformers' bar over the tensors that it loads, as ours are; its others stay as they are set."""

    def make(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if args and options.get("desc") == "Loading weights":
            return wait_bar(what, len(args[0]), "tensor", iterable=args[0])
        return factory(*args, **options)

    before = transformers_logging.set_tqdm_hook(make)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def _quantisation(base: Base, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if base.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if not base.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _without_fused_kernel(model: nn.Module) -> None:
    for layer in (m for m in model.modules() if isinstance(m, Linear4bit)):
        layer.support_avx512bf16_for_cpu = False


def is_quantised(model: nn.Module) -> bool:
    """Whether a loaded model's weights are quantised, by what transformers notes on it."""
    method, config = getattr(model, "quantization_method", None), getattr(model.config, "quantization_config", None)
    return method is not None or config is not None


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Put the weights of a saved adapter into the one that is there.

    Raises:
        InputError: some are missing, of another shape, of other layers, or no numbers.
    """
    with refused(f"{folder}: its adapter cannot be loaded"):
        tensors = load_file(folder / "adapter_model.safetensors")
        found: Any = set_peft_model_state_dict(model, tensors)
    missing = [name for name in found.missing_keys if ".lora_" in name]
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    for names, fault in (
        (missing, "lacks"),
        (found.unexpected_keys, "fits another model: it has"),
        (bad, "has NaN in"),
    ):
        if names:
            raise InputError(f"{folder}: its adapter {fault} {names[0]} ({len(names)} tensors); {REMEDY}")


def require_positions(model: PreTrainedModel | PeftModel, tokens: int) -> None:
    """Raise InputError for rows beyond the base's own length: learned positions end there, rotary ones were never
    trained further."""
    if tokens > (known := positions(model.config)):
        raise InputError(
            f"text: rows have up to {tokens} tokens, and this base reads {known} (max_position_embeddings): set "
            "text.max_history_tokens, text.max_items or text.max_item_tokens lower"
        )


def positions(config: Any) -> int:
    """Tokens that a model reads; no end where its config names none."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    return known if isinstance(known, int) and known > 0 else sys.maxsize


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration of a recipe's adapter."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT's hint says int, its code divides
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )


def add_adapter(
    model: PreTrainedModel, base: Base, gradient_checkpointing: bool = False, carried: Path | None = None
) -> PeftModel:
    """`add_lora` as a recipe's base says."""
    return add_lora(model, lora_config(base.lora), gradient_checkpointing, carried)


def add_lora(
    model: PreTrainedModel, config: LoraConfig, gradient_checkpointing: bool = False, carried: Path | None = None
) -> PeftModel:
    """Put LoRA layers into the linear layers of the decoder, fresh or `carried` from a folder; only they are trained.

    Never through `prepare_model_for_kbit_training`, whose fp32 copies cost more than 4 bits save
    (docs/architecture.md). The adapter is kept in fp32: it is small, and bf16 loses the small updates.
    """
    # In eval mode on a CPU bitsandbytes repacks the weights for a kernel that has no backward, for good:
    # a validation loss before training would cut off every gradient below, without an error.
    _without_fused_kernel(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if carried:
        with refused(f"{carried}: not a LoRA adapter"):
            config = LoraConfig.from_pretrained(str(carried))
        config.inference_mode = False  # as which it was saved
    asked = [] if isinstance(config.target_modules, str) else list(config.target_modules or [])  # PEFT changes it
    with refused("base.lora"):
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]  # its hint knows no LoraConfig
    _require_each_applies(adapted, asked, [*(config.rank_pattern or {}), *(config.alpha_pattern or {})])
    ready = ready_adapter(adapted)
    if carried:
        load_adapter_weights(ready, carried)
    return ready


def ready_adapter(adapted: PeftModel) -> PeftModel:
    """The adapter in fp32, and only on layers that can be merged. Raises InputError where it is on others."""
    _require_linear(adapted)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _require_each_applies(adapted: PeftModel, targets: list[str], patterns: list[str]) -> None:
    """Raise InputError where a name adapts nothing while others do: PEFT passes over it in silence."""
    layers = [n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if isinstance(m, LoraLayer)]
    unused = [name for name in targets if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    unused += [key for key in patterns if not any(get_pattern_key([key], layer) == key for layer in layers)]
    if unused:
        kinds = sorted({layer.rpartition(".")[2] for layer in layers})
        raise InputError(
            f"base.lora.targets: {', '.join(unused)} adapts no layer of this base; adapted: {', '.join(kinds)}"
        )


def _require_linear(adapted: PeftModel) -> None:
    """Raise InputError where something else than linear layers of the decoder was adapted: it could not be merged."""
    causal: Any = adapted.get_base_model()
    head = causal.get_output_embeddings()
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer) and (layer is head or not isinstance(layer.get_base_layer(), nn.Linear)):
            kind = "the LM head" if layer is head else f"a {type(layer.get_base_layer()).__name__}"
            raise InputError(
                f"base.lora.targets: {name.removeprefix('base_model.model.')} is {kind}; only linear layers of the "
                "decoder can be adapted and merged: name those, or take another base"
            )
