"""Adapter -> full weights, tensor by tensor, onto the original weights (docs/architecture.md)."""

import json
import math
import re
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from calrec_lite.errors import InputError
from calrec_lite.files import BESIDE_WEIGHTS, atomic_path, copy_matching
from calrec_lite.model.whole import REMEDY, is_finite, read_config, refused, require_plain_folder, require_whole
from calrec_lite.stored import read_object

NEVER_QUANTISED = re.compile(r"embed|lm_head|norm")  # what transformers leaves unquantised in a 4-bit model
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
PIECE = 1 << 24  # bytes copied at once
# PEFT's initialisations that leave the base as it is, as its code of 0.21 has them. The others (PiSSA, OLoRA, CorDA,
# LoftQ, LoRA-GA) take B @ A out of the base, or round it, so that the adapter belongs to a base nobody has stored.
PLAIN_INITIALISATIONS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# What makes an adapter more than W + scaling * B @ A, beside the fields that PEFT itself marks as variants of LoRA.
NOT_PLAIN = ("lora_bias", "fan_in_fan_out", "layer_replication", "use_qalora", "target_parameters", "megatron_config")


@dataclass(frozen=True)
class Delta:
    """One layer's adapter: W becomes W + scaling * B @ A, then, for DoRA, rows rescaled to `magnitude`."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scaling: float
    magnitude: Tensor | None  # (out,)

    def applied(self, weight: Tensor) -> Tensor:
        """(out, in) in the dtype of `weight`, added in fp32."""
        merged = torch.addmm(weight.float(), self.b.float(), self.a.float(), alpha=self.scaling)
        if self.magnitude is not None:
            merged *= (self.magnitude.float() / merged.norm(dim=1)).unsqueeze(1)
        return merged.to(weight.dtype)


def merge_adapter(
    base: Path, adapter: Path, to: Path, onto: Literal["original", "dequantized"] = "original", progress: bool = True
) -> int:
    """Write the base's weights with the adapter added, as a folder transformers opens; returns the layers merged.

    Tensors are read, added in fp32, and written one at a time, so memory is that of the largest tensor.
    Shards keep the base's division and names, tied weights stay tied, and nothing of a
    quantisation is carried along. The folder appears under its name only when it is complete.

    Args:
        base: folder with the original (never quantised) safetensors.
        adapter: folder with adapter_config.json and adapter_model.safetensors.
        to: the new folder.
        onto: the original weights, or what is left of them after NF4 with double quantisation: the weights
            a 4-bit adapter was trained around.

    Raises:
        InputError: if the adapter does nothing, does not fit the base, or is of a kind that cannot be merged here.
    """
    deltas = _read_deltas(adapter)
    files = shards(base)
    require_plain_folder(base)
    if "auto_map" not in read_config(base):  # a base's own code is not run to merge
        require_whole(base)
    shapes = {_module(key): entry["shape"] for shard in files for key, entry in stored_tensors(shard)[0].items()}
    missing = sorted(key for key, d in deltas.items() if shapes.get(key) != [d.b.shape[0], d.a.shape[1]])
    if missing:
        raise InputError(
            f"{adapter}: fits another base: {len(missing)} of {len(deltas)} layers are not in {base}, "
            f"or of another shape ({missing[0]})"
        )
    with atomic_path(to) as temporary:
        temporary.mkdir()
        copy_matching(base, temporary, (*BESIDE_WEIGHTS, "*.py"))
        with tqdm(total=len(shapes), desc="merge", unit="tensor", disable=not progress) as bar:
            for shard in files:
                _write_shard(shard, temporary / shard.name, deltas, onto, bar)
    return len(deltas)


def shards(base: Path) -> list[Path]:
    """The files transformers loads: Mistral's and others' folders hold the same weights again in another format.

    Raises:
        InputError: one of them is not there.
    """
    index = base / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file() and not (base / "model.safetensors").is_file():  # of both, transformers takes the one file
        places = read_object(index, REMEDY).get("weight_map")
        names = set(map(str, places.values())) if isinstance(places, dict) else set()
        if not names or any(Path(name).name != name for name in names):
            raise InputError(f"{index}: its `weight_map` does not give each tensor a file beside it; {REMEDY}")
    if missing := sorted(name for name in names if not (base / name).is_file()):
        raise InputError(f"{base}: lacks {', '.join(missing)}; download the base again, with its safetensors")
    return [base / name for name in sorted(names)]


def _module(key: str) -> str:
    """The model's name of a stored tensor: bases that also read images store their text layers under another prefix."""
    return re.sub(r"^language_model\.model\.", "model.language_model.", key)


def _read_deltas(adapter: Path) -> dict[str, Delta]:
    """Name of the base's tensor -> what is added to it."""
    with refused(f"{adapter}: not a LoRA adapter"):
        config = LoraConfig.from_pretrained(str(adapter))
        tensors = load_file(adapter / "adapter_model.safetensors")
    require_plain(config, str(adapter))
    names = sorted(k.removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight"))
    extra = [k for k in tensors if not re.search(r"\.lora_(A|B|magnitude_vector)(\.weight)?$", k)]
    if extra:
        raise InputError(f"{adapter}: holds weights that are no LoRA ({extra[0]}); they cannot be merged")
    deltas = {}
    with refused(f"{adapter}: not a LoRA adapter"):
        for name in names:
            layer = name.removeprefix("base_model.model.")
            deltas[f"{layer}.weight"] = _delta(tensors, name, config)
    if bad := [n for n, t in tensors.items() if not bool(t.isfinite().all())]:
        raise InputError(f"{adapter}: {bad[0]} holds what is no number (NaN or infinite): train it again")
    if not deltas or not any(bool(d.b.any()) for d in deltas.values()):
        raise InputError(f"{adapter}: does nothing (every lora_B is zero): was it trained?")
    return deltas


def _delta(tensors: dict[str, Tensor], name: str, config: LoraConfig) -> Delta:
    """A layer's adapter. Raises ValueError or KeyError where its parts do not belong together."""
    a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    magnitude = tensors.get(f"{name}.lora_magnitude_vector")
    fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] > 0
    if not fits or (magnitude is not None and magnitude.shape != b.shape[:1]):
        raise ValueError(f"the parts of {name} do not fit each other")
    scaling = _scaling(config, name.removeprefix("base_model.model."), a.shape[0])
    if not math.isfinite(scaling):
        raise ValueError(f"lora_alpha is {scaling}")
    return Delta(a, b, scaling, magnitude)


def require_plain(config: LoraConfig, name: str) -> None:
    """Raise InputError for what is not the stored base plus scaling * B @ A, with or without DoRA's magnitudes.

    Args:
        name: what the message calls the adapter.
    """
    if str(config.init_lora_weights).lower() not in PLAIN_INITIALISATIONS:
        raise InputError(
            f"{name}: init_lora_weights `{config.init_lora_weights}` changed the base before training, so the "
            "adapter does not belong to the stored base; save it as a plain LoRA by PEFT's save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...), or train with another initialisation"
        )
    variants = [f.name for f in fields(config) if f.metadata.get("is_lora_variant") and f.name != "use_dora"]
    used = [name for name in (*NOT_PLAIN, *variants) if getattr(config, name)]
    if config.bias != "none":
        used.append("bias")
    if used:
        raise InputError(f"{name}: adapters with {', '.join(used)} are no plain addition to weights; not merged")


def _scaling(config: LoraConfig, layer: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA; alpha by layer where the adapter says so (PEFT's `alpha_pattern`)."""
    key = get_pattern_key(list(config.alpha_pattern or {}), layer)
    alpha = (config.alpha_pattern or {}).get(key, config.lora_alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def _write_shard(source: Path, to: Path, deltas: dict[str, Delta], onto: str, bar: "tqdm[Any]") -> None:
    """Copy one safetensors file with the deltas added: sizes and places stay, so only some bytes change.

    Read, not mapped: a mapped file would count as memory from the first touch of each page to the end.
    """
    entries, begin = stored_tensors(source)
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with source.open("rb") as file, to.open("wb") as out:
        file.seek(begin)
        out.write(struct.pack("<Q", len(header)) + header)
        for key, entry in entries.items():
            start, end = entry["data_offsets"]
            delta = deltas.get(_module(key))
            round_to_nf4 = onto == "dequantized" and len(entry["shape"]) == 2 and not NEVER_QUANTISED.search(key)
            if delta is None and not round_to_nf4:
                finite = _copy(file, out, end - start, DTYPES.get(entry["dtype"]))
            else:
                weight = _tensor(file.read(end - start), entry, source, key)
                weight = _through_nf4(weight) if round_to_nf4 else weight
                weight = delta.applied(weight) if delta else weight
                finite = is_finite(weight)
                out.write(_raw(weight))
            if not finite:
                raise InputError(f"{source}: {key}, merged, holds what is no number (NaN or infinite); {REMEDY}")
            bar.update(1)


def stored_tensors(shard: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file by name, in the order of their bytes, and where these begin.

    Raises:
        InputError: the file is not whole.
    """
    with refused(f"{shard}: not a whole safetensors file; {REMEDY}"):
        with safe_open(shard, "pt"):  # the library checks sizes and places
            pass
        with shard.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            entries = json.loads(file.read(size))
    entries.pop("__metadata__", None)
    return dict(sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])), 8 + size


def _copy(file: IO[bytes], out: IO[bytes], size: int, dtype: torch.dtype | None) -> bool:
    """Copy a tensor's bytes; whether they are all numbers, as far as the type is one of `DTYPES`."""
    finite = True
    while size:
        piece = file.read(min(size, PIECE))
        out.write(piece)
        size -= len(piece)
        finite = finite and (dtype is None or is_finite(torch.frombuffer(bytearray(piece), dtype=dtype)))
    return finite


def _tensor(data: bytes, entry: dict[str, Any], shard: Path, key: str) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise InputError(f"{shard}: {key} is stored as {entry['dtype']}; adapters are merged onto {', '.join(DTYPES)}")
    return torch.frombuffer(bytearray(data), dtype=DTYPES[entry["dtype"]]).view(entry["shape"])


def _through_nf4(weight: Tensor) -> Tensor:
    """The weight as a 4-bit base computes with it: NF4, double quantisation, as in `model.base.load_model`."""
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return dequantize_4bit(packed, state).to(weight.dtype)


def _raw(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).flatten().numpy().data
