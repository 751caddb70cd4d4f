"""v_T of items and v_U of prompts by vLLM's pooling runner, which takes the mean of all states."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.model.whole import require_whole
from calrec_lite.package.layout import open_package
from calrec_lite.recommend.vectors import without_start
from calrec_lite.recommend.vllm import import_vllm, room_of
from calrec_lite.text.encoding import Encoder, Tokens


class PooledVectors:
    """Unit vectors by `vllm.LLM(runner="pooling", convert="embed")`.

    Args:
        source: an export's folder or Hub id.
        dtype: number type of the weights.

    Raises:
        InputError: where vLLM is not installed, or if the folder is none of ours.
    """

    def __init__(self, source: str | Path, dtype: torch.dtype) -> None:
        package = open_package(source)
        self.vllm = import_vllm()
        require_whole(package.folder)
        encoder = Encoder(load_tokenizer(package.folder), package.text)
        self.start = encoder.start
        self.llm = self.vllm.LLM(
            model=str(package.folder),
            runner="pooling",
            convert="embed",
            pooler_config=self.vllm.config.PoolerConfig(seq_pooling_type="MEAN", use_activation=False),
            dtype=str(dtype).removeprefix("torch."),
            load_format="safetensors",  # no pickles
            max_model_len=room_of(package.folder, encoder, 0),
        )
        self.first = self._means([self.start])[0]

    def items(self, texts: Sequence[Tokens]) -> np.ndarray:
        """(N, D) v_T of item texts, without a start token."""
        return self.prompts([np.concatenate([self.start, tokens]) for tokens in texts])

    def prompts(self, prompts: Sequence[Tokens]) -> np.ndarray:
        """(N, D) v_U of prompts (`Encoder.prompt`), which begin with the start token."""
        return without_start(self._means(prompts), np.array([len(p) for p in prompts]), self.first)

    def _means(self, prompts: Sequence[Tokens]) -> np.ndarray:
        inputs = [self.vllm.TokensPrompt(prompt_token_ids=p.tolist()) for p in prompts]
        return np.array([answer.outputs.embedding for answer in self.llm.embed(inputs, use_tqdm=False)], np.float32)
