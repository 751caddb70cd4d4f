"""vLLM as the engine of `strategy: sample`: it draws the texts; prompts, matching and exclusions are the Recommender's.

Written for the interface of vLLM 0.33. Log-probabilities are those before the temperature is applied
(`raw_logprobs`), as our own sampler gives them. Every prompt has its own seed, so that its texts do not depend on the
other users; they differ from those of our own sampler, which uses another random generator.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from calrec_lite.decode.sample import Sample
from calrec_lite.errors import InputError
from calrec_lite.model.base import load_tokenizer
from calrec_lite.model.device import AskedDType, dtype_here
from calrec_lite.model.whole import require_whole
from calrec_lite.package.layout import open_package, with_strategy
from calrec_lite.recipe import Recommend
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.text.encoding import Encoder, Tokens

TEMPERATURES = (0.01, 2.0)  # what vLLM takes as it is


def vllm_recommender(source: str | Path, strategy: str | None = None, dtype: AskedDType = "auto") -> Recommender:
    """`Recommender.from_pretrained` with vLLM in place of transformers.

    Args:
        strategy: default: the recipe's. Only `sample`.
        dtype: as of `Recommender.from_pretrained`.

    Raises:
        InputError: for another strategy, where vLLM is not installed, or if the folder is none of ours.
    """
    package = open_package(source)
    options = with_strategy(package.options, strategy)
    if options.strategy != "sample":
        raise InputError(
            f"--engine vllm: it draws texts and has no public way to steer `{options.strategy}`; "
            "add --strategy sample, or leave --engine out"
        )
    if not TEMPERATURES[0] <= options.temperature <= TEMPERATURES[1]:
        raise InputError(f"--engine vllm: recommend.temperature {options.temperature} is not within {TEMPERATURES}")
    LLM = _vllm().LLM
    require_whole(package.folder)
    encoder = Encoder(load_tokenizer(package.folder), package.text)
    catalogue = package.catalogue(encoder)
    item_tokens = catalogue.tokens.longest
    max_len = _max_model_len(package.folder, encoder, item_tokens)
    llm = LLM(
        model=str(package.folder),
        dtype=dtype_here(package.folder, dtype).dtype,
        load_format="safetensors",  # no pickles
        seed=package.seed,
        max_model_len=max_len,
        enable_prefix_caching=True,  # a user's texts share the prompt's cache
        logprobs_mode="raw_logprobs",
    )
    draw = Drawing(llm, options, package.seed, encoder.stops, item_tokens, max_len)
    unbatched = options.model_copy(update={"batch_tokens": 1 << 62})  # vLLM batches by itself
    return Recommender(None, encoder, catalogue, package.ids, unbatched, package.seed, package.aliases, draw)


class Drawing:
    """Draws texts with a `vllm.LLM`: prompts -> each user's samples."""

    def __init__(self, llm: Any, options: Recommend, seed: int, stops: np.ndarray, item_tokens: int, room: int) -> None:
        self.llm, self.options, self.seed = llm, options, seed
        self.stops, self.item_tokens, self.room = stops, item_tokens, room

    def __call__(self, prompts: Sequence[Tokens]) -> list[list[Sample]]:
        """Raises InputError for a prompt that leaves no room for an item."""
        vllm, longest = _vllm(), max(map(len, prompts))
        if longest + self.item_tokens > self.room:
            raise InputError(f"a history of {longest} tokens; with an item, vLLM was given room for {self.room}")
        params = [
            vllm.SamplingParams(
                n=self.options.samples,
                temperature=self.options.temperature,
                seed=prompt_seed(self.seed, prompt),
                max_tokens=self.item_tokens,
                stop_token_ids=self.stops.tolist(),
                ignore_eos=True,  # the stops are ours alone, not those of generation_config.json too
                logprobs=0,  # that of the drawn token alone
                detokenize=False,
            )
            for prompt in prompts
        ]
        inputs = [vllm.TokensPrompt(prompt_token_ids=p.tolist()) for p in prompts]
        return [
            # With the token that ended a text, as our own sampler gives it: it may hold a last "!" too.
            [Sample(list(text.token_ids), text.cumulative_logprob) for text in answer.outputs]
            for answer in self.llm.generate(inputs, params, use_tqdm=False)
        ]


def prompt_seed(seed: int, prompt: Tokens) -> int:
    """A prompt's seed; vLLM adds 0, 1, 2, ... to it for the texts of one prompt, so seeds are far apart."""
    return int(np.random.SeedSequence([seed, *prompt.tolist()]).generate_state(1)[0])


def _max_model_len(folder: Path, encoder: Encoder, item_tokens: int) -> int:
    """Tokens of the longest prompt and an item, as far as the model has positions."""
    longest = encoder.longest_prompt + item_tokens
    positions = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", longest)
    return min(longest, positions)


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise InputError(
            f"--engine vllm: vLLM cannot be imported ({error}); pip install 'calrec-lite[vllm]', which needs Linux and "
            "a GPU, or leave --engine out"
        ) from None
    return vllm
