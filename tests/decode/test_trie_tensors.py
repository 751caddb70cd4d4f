"""The probability of a trie's edges, whatever the model's precision and however much of the head is in memory."""

import numpy as np
import pytest
import torch

from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.method.catalogue import EncodedCatalogue


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_children_among_the_whole_vocabulary_in_slices_of_it(
    catalogue: EncodedCatalogue, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    paths = TrieTensors.of(catalogue, "vocabulary")
    head, states = torch.randn(400, 16).to(dtype), torch.randn(5, 16).to(dtype)
    edges, parent = paths.children(torch.arange(5))
    assert len(edges) > 10
    logp = (states.double() @ head.double().T).log_softmax(-1)
    wanted = logp[parent, paths.token[edges]].numpy()
    for entries in (1 << 24, 16 * 30):  # all at once; 30 tokens at a time
        monkeypatch.setattr("calrec_lite.decode.trie_tensors.HEAD_ENTRIES", entries)
        found = paths.child_logprobs(states, head, edges, parent, torch.zeros(5, dtype=torch.long))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
