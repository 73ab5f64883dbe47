from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inference_pio.measure.text import evaluation_text


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and threads that wait for one another crawl on a crowded machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A real byte-level tokenizer of 120 tokens (bytes that the text uses), which every tiny model knows."""
    return small_tokenizer()


def small_tokenizer(start: str | None = None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [start] if start else []
    core.train_from_iterator(
        [evaluation_text()[:20_000]], trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=start)
