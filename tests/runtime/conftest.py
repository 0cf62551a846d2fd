"""Fixtures of the runtime's tests: our models and FlagEmbedding's."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from bge_runtime import FlagModel
from tests.helpers.bundles import SHARED
from tests.helpers.decoders import MISTRAL, export_decoder, write_tiny_decoder


@pytest.fixture(scope="session")
def model(tiny_bundle):
    """The tiny model with [CLS] pooling. Shared: leave its attributes alone."""
    return FlagModel(str(tiny_bundle))


@pytest.fixture(scope="session")
def upstream():
    """FlagEmbedding's classes and tables, with its progress bars off."""
    pytest.importorskip("FlagEmbedding")
    with warnings.catch_warnings():
        # Deprecations in its own dependencies.
        warnings.simplefilter("ignore")
        from FlagEmbedding import (
            BGEM3FlagModel,
            FlagAutoModel,
            FlagICLModel,
            FlagLLMModel,
            FlagModel,
        )
        from FlagEmbedding.abc.inference import AbsEmbedder
        from FlagEmbedding.inference.embedder import model_mapping
        from FlagEmbedding.inference.embedder.decoder_only import base as llm
        from FlagEmbedding.inference.embedder.decoder_only import icl
        from FlagEmbedding.inference.embedder.encoder_only import base, m3
    import torch
    from tqdm import tqdm, trange

    # On tiny models its threads would only wait for one another.
    torch.set_num_threads(1)
    # Each of its models collects garbage when it is deleted: half a second with all this loaded.
    gc.freeze()

    def quiet(bar):
        return lambda *args, **options: bar(*args, **{**options, "disable": True})

    for module in (base, m3, llm, icl):
        module.tqdm, module.trange = quiet(tqdm), quiet(trange)
    return SimpleNamespace(
        BGEM3FlagModel=BGEM3FlagModel,
        FlagAutoModel=FlagAutoModel,
        FlagModel=FlagModel,
        FlagLLMModel=FlagLLMModel,
        FlagICLModel=FlagICLModel,
        AbsEmbedder=AbsEmbedder,
        model_mapping=model_mapping,
    )


@pytest.fixture(scope="session")
def pair(upstream, tiny_checkpoint, tiny_bundle, tiny_mean_bundle):
    """A function that returns our model and FlagEmbedding's, with the same weights and options."""
    bundles = {"cls": tiny_bundle, "mean": tiny_mean_bundle}

    def make(*, pooling="cls", **options):
        options = {"use_fp16": False, "devices": "cpu", "batch_size": 4, **options}
        options["pooling_method"] = pooling
        ours = FlagModel(str(bundles[pooling]), **options)
        theirs = upstream.FlagModel(str(tiny_checkpoint), **options)
        return ours, theirs

    return make


@pytest.fixture(scope="session")
def decoder(made_once):
    """A tiny causal decoder: folders of its checkpoint and its bundle.

    It is of the base class, and has bge-en-icl's tokens, so that both classes can be tested.
    """
    checkpoint = made_once("tiny-decoder", partial(write_tiny_decoder, reads_examples=True))
    make = partial(export_decoder, checkpoint, model_class="decoder-only-base")
    bundle = made_once("tiny-decoder-bundle", make)
    return SimpleNamespace(checkpoint=str(checkpoint), bundle=str(bundle))


@pytest.fixture(scope="session")
def two_way_decoder(made_once):
    """The bundle of a decoder that attends in both directions."""
    make = partial(write_tiny_decoder, name="qwen2-bidirectional")
    return str(made_once("two-way-bundle", partial(export_decoder, made_once("two-way", make))))


@pytest.fixture(scope="session")
def mistral_decoder(made_once):
    """A tiny decoder with Mistral's real tokenizer and bge-en-icl's tokens."""
    model = SHARED / "tokenizers" / "mistral-7b-v0.1" / "tokenizer.model"
    if not model.is_file():
        pytest.skip("Mistral's tokenizer is not beside this checkout")

    def write(folder):
        from transformers import LlamaTokenizerFast

        from bge_export.synthetic.decoder import write_random_decoder

        folder.mkdir()
        tokenizer = LlamaTokenizerFast(
            vocab_file=str(model), add_eos_token=True, clean_up_tokenization_spaces=False
        )
        tokenizer.add_tokens(["<instruct>", "<query>", "<response>"], special_tokens=True)
        tokenizer.pad_token = tokenizer.eos_token
        write_random_decoder(replace(MISTRAL, vocab_size=len(tokenizer)), folder, seed=3)
        tokenizer.save_pretrained(folder)

    checkpoint = made_once("tiny-mistral", write)
    bundle = made_once("tiny-mistral-bundle", partial(export_decoder, checkpoint))
    return SimpleNamespace(checkpoint=str(checkpoint), bundle=str(bundle))
