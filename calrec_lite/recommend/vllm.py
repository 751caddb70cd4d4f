"""vLLM as the engine of `strategy: sample`: it draws items, as a logits processor of ours keeps it to the catalogue.

Written for the interface of vLLM 0.33. Every prompt has its own seed, so that its items do not depend on the
other users.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from calrec_lite.decode.steering import item_of
from calrec_lite.errors import InputError
from calrec_lite.model.device import AskedDType, dtype_here
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.model.whole import require_whole
from calrec_lite.package.layout import open_package, with_strategy
from calrec_lite.recipe import Recommend
from calrec_lite.recipe.file import with_recommend
from calrec_lite.recommend.draws import Draws
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.recommend.vllm_rows import ASKED
from calrec_lite.text.encoding import Encoder, Tokens
from calrec_lite.text.trie import Trie

TEMPERATURES = (0.01, 2.0)  # what vLLM takes as it is
PROCESSOR = "calrec_lite.recommend.vllm_processor:CatalogueProcessor"


def vllm_recommender(
    source: str | Path, strategy: str | None = None, dtype: AskedDType = "auto", settings: Iterable[str] = ()
) -> Recommender:
    """`Recommender.from_pretrained` with vLLM in place of transformers.

    Args:
        strategy: default: the recipe's. Only `sample`.
        dtype, settings: as of `Recommender.from_pretrained`.

    Raises:
        InputError: for another strategy, where vLLM is not installed, or if the folder is none of ours.
    """
    package = open_package(source)
    options = with_recommend(with_strategy(package.options, strategy), settings)
    if options.strategy != "sample":
        raise InputError(
            f"--engine vllm: it draws items, and cannot make lists by `{options.strategy}`; "
            "add --strategy sample, or leave --engine out"
        )
    if not TEMPERATURES[0] <= options.temperature <= TEMPERATURES[1]:
        raise InputError(f"--engine vllm: recommend.temperature {options.temperature} is not within {TEMPERATURES}")
    LLM = import_vllm().LLM
    require_whole(package.folder)
    if package.info.collaborative:
        package.transitions_file()  # which the processor reads
    encoder = Encoder(load_tokenizer(package.folder), package.text)
    catalogue = package.catalogue(encoder)
    if len(catalogue) == 1:
        raise InputError("--engine vllm: a catalogue of one item leaves nothing to draw; leave --engine out")
    room = room_of(package.folder, encoder, catalogue.tokens.longest + 1)
    llm = LLM(
        model=str(package.folder),
        dtype=dtype_here(package.folder, dtype).dtype,
        load_format="safetensors",  # no pickles
        seed=package.seed,
        max_model_len=room,
        enable_prefix_caching=True,  # a user's draws share the prompt's cache
        logits_processors=[PROCESSOR],
        logprobs_mode="processed_logits",
    )
    draw = Drawing(llm, options, package.seed, encoder, catalogue.trie, room)
    unbatched = options.model_copy(update={"batch_tokens": 1 << 62})  # vLLM batches by itself
    items = catalogue, package.ids, unbatched, package.seed, package.aliases
    return Recommender(None, encoder, *items, draw, html=package.info.html)


class Drawing:
    """Draws items with a `vllm.LLM` that has the processor: prompts and histories -> each user's items."""

    def __init__(self, llm: Any, options: Recommend, seed: int, encoder: Encoder, trie: Trie, room: int) -> None:
        self.llm, self.options, self.seed, self.end, self.trie = llm, options, seed, encoder.end, trie
        self.item_tokens, self.room = _item_tokens(trie), room

    def __call__(self, prompts: Sequence[Tokens], known: Sequence[np.ndarray]) -> list[Draws]:
        """Raises InputError for a prompt that leaves no room for an item."""
        vllm, longest = import_vllm(), max(map(len, prompts))
        if longest + len(self.trie.root) + self.item_tokens > self.room:
            raise InputError(f"a history of {longest} tokens; with an item, vLLM was given room for {self.room}")
        params = [
            vllm.SamplingParams(
                n=self.options.samples,
                temperature=self.options.temperature,
                seed=prompt_seed(self.seed, prompt),
                max_tokens=self.item_tokens,
                stop_token_ids=[self.end],
                ignore_eos=True,  # the end is ours alone, not those of generation_config.json too
                logprobs=0,  # that of the drawn token alone
                detokenize=False,
                extra_args={ASKED: history.tolist()},
            )
            for prompt, history in zip(prompts, known, strict=True)
        ]
        inputs = [vllm.TokensPrompt(prompt_token_ids=[*p.tolist(), *self.trie.root.tolist()]) for p in prompts]
        answers = self.llm.generate(inputs, params, use_tqdm=False)
        return [self._draws(answer.outputs) for answer in answers]

    def _draws(self, texts: Sequence[Any]) -> Draws:
        """The processor gives log P for logits, which vLLM divides by the temperature and adds up."""
        items = np.array([item_of(self.trie, text.token_ids) for text in texts], np.int64)
        return Draws(items, self.options.temperature * np.array([text.cumulative_logprob for text in texts]))


def prompt_seed(seed: int, prompt: Tokens) -> int:
    """A prompt's seed; vLLM adds 0, 1, 2, ... to it for the texts of one prompt, so seeds are far apart."""
    return int(np.random.SeedSequence([seed, *prompt.tolist()]).generate_state(1)[0])


def _item_tokens(trie: Trie) -> int:
    """The most tokens that are drawn of an item: to where it is certain, and the end token."""
    ends = trie.depth[trie.owner[trie.dest < 0]]
    return int(ends.max()) - len(trie.root) + 2


def room_of(folder: Path, encoder: Encoder, item_tokens: int) -> int:
    """Tokens of the longest prompt and an item, as far as the model has positions."""
    longest = encoder.longest_prompt + item_tokens
    positions = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", longest)
    return min(longest, positions)


def import_vllm() -> Any:
    """The library. Raises InputError where it cannot be imported."""
    try:
        import vllm
    except ImportError as error:
        raise InputError(
            f"--engine vllm: vLLM cannot be imported ({error}); pip install 'calrec-lite[vllm]', which needs Linux and "
            "a GPU, or leave --engine out"
        ) from None
    return vllm
