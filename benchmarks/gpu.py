"""What is asked of one GPU, in under ten minutes: train_cuda.json and recommend_cuda.json.

    python benchmarks/gpu.py

Real sizes in four bits with a micro-batch of 4, ours beside TRL on the same card and in the same process, the 8B one
with the catalogue softmax too, the 1B one and SmolLM2-135M's shape with joined towers, packing and fused adapters taken
away, the latter with CUDA graphs too, and what recommending takes. Nothing is downloaded but a tokenizer. More, and
longer: `train.py --only gpu`; the rows on real data: `train.py --only throughput`.
"""

import time
from functools import partial
from pathlib import Path

from recommend_gpu import BASES, measured
from train import Results
from train_gpu import AWAY, SHAPES, SMALL, compiled, size
from transformers import LlamaConfig

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.files import write_json
from calrec_lite.model.device import device

OUT = Path(__file__).parent / "results"
MICRO = 4


def main() -> None:
    quiet_libraries()
    if device().type != "cuda":
        raise SystemExit("this machine has no CUDA GPU")
    lists = {name: measured(config, device()) for name, config in BASES.items()}
    described = {"command": "python benchmarks/gpu.py", "date": time.strftime("%Y-%m-%d"), "hardware": hardware()}
    write_json(OUT / "recommend_cuda.json", {"speed": lists, **described, "versions": versions()})
    results = Results(OUT / "train_cuda.json", again=True)
    for name in SHAPES:
        results.part("gpu", f"{name} micro {MICRO}", partial(size, name, MICRO, ("ours", "TRL")))
    small = LlamaConfig(**SMALL, attn_implementation="sdpa")
    for rows, tokens in ((64, 224), (16, 160)):
        key = f"SmolLM2-135M, {rows} rows of {tokens} tokens"
        results.part("away", key, partial(compiled, small, device(), rows, tokens, 6, compiles=False))
    smallest, without = next(iter(SHAPES)), ("ours", *(f"ours, {name}" for name in AWAY))
    results.part("measures", f"{smallest} micro {MICRO} away", partial(size, smallest, MICRO, without))
    largest, ways = list(SHAPES)[-1], ("ours", "ours, softmax: catalogue")
    results.part("measures", f"{largest} micro {MICRO} catalogue", partial(size, largest, MICRO, ways))


if __name__ == "__main__":
    main()
