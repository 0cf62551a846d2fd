"""``FlagAutoModel`` picks what FlagEmbedding's picks."""

from __future__ import annotations

import pytest

from bge_runtime import FlagAutoModel, FlagModel
from bge_runtime.errors import BundleError, ModelNotFoundError, PoolingError
from bge_runtime.sources import MODEL_CLASSES, MODELS, find_model
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu, assert_same

WITH_FORMAT = "multilingual-e5-large-instruct"
"""A published model whose row differs from the defaults: mean pooling, a query format."""


@pytest.fixture
def named(tmp_path, tiny_mean_bundle, tiny_checkpoint):
    """Puts the tiny bundle and its checkpoint under a name of one's choice."""

    def place(name):
        placed = []
        for side, target in (("ours", tiny_mean_bundle), ("theirs", tiny_checkpoint)):
            path = tmp_path / side / name
            path.parent.mkdir(parents=True)
            path.symlink_to(target, target_is_directory=True)
            placed.append(str(path))
        return placed

    return place


def test_the_table_of_models_is_flagembeddings(upstream):
    mapping = upstream.model_mapping
    names = {cls: member.value for member, cls in mapping.EMBEDDER_CLASS_MAPPING.items()}
    theirs = {
        name: (
            names[config.model_class],
            config.pooling_method.value,
            config.query_instruction_format,
            config.trust_remote_code,
        )
        for name, config in mapping.AUTO_EMBEDDER_MAPPING.items()
    }
    ours = {
        name: (
            facts.model_class,
            facts.pooling,
            facts.query_instruction_format,
            facts.trust_remote_code,
        )
        for name, facts in MODELS.items()
    }
    assert ours == theirs
    assert len(ours) > 40


def test_the_model_classes_are_flagembeddings(upstream):
    assert list(MODEL_CLASSES) == [m.value for m in upstream.model_mapping.EmbedderModelClass]


def test_it_is_not_instantiated(upstream):
    for cls in (FlagAutoModel, upstream.FlagAutoModel):
        with pytest.raises(EnvironmentError, match="from_finetuned"):
            cls()


@pytest.mark.parametrize("name", [WITH_FORMAT, f"{WITH_FORMAT}/checkpoint-120"])
def test_a_known_name_brings_its_pooling_and_query_format(upstream, named, name):
    options = {
        "use_fp16": False,
        "devices": "cpu",
        "query_instruction_for_retrieval": "Find an answer",
    }
    here, there = named(name)
    ours = FlagAutoModel.from_finetuned(here, **options)
    theirs = upstream.FlagAutoModel.from_finetuned(there, **options)
    assert_fp32_on_cpu(ours)
    assert type(ours) is FlagModel
    assert ours.query_instruction_format == "Instruct: {}\nQuery: {}"
    assert_same(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))
    assert_same(ours.encode_corpus(TEXTS), theirs.encode_corpus(TEXTS))


@pytest.mark.parametrize("as_member", [False, True], ids=["name", "enum-member"])
def test_a_given_class_does_not_take_the_format_of_the_name(upstream, named, as_member):
    given = "encoder-only-base"
    options = {
        "model_class": upstream.model_mapping.EmbedderModelClass(given) if as_member else given,
        "use_fp16": False,
        "devices": "cpu",
        "pooling_method": "mean",
        "query_instruction_for_retrieval": "Find an answer",
    }
    here, there = named(WITH_FORMAT)
    ours = FlagAutoModel.from_finetuned(here, **options)
    theirs = upstream.FlagAutoModel.from_finetuned(there, **options)
    assert ours.query_instruction_format == theirs.query_instruction_format == "{}{}"
    assert_same(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))


def test_a_given_format_wins_over_the_names(upstream, named):
    options = {
        "use_fp16": False,
        "devices": "cpu",
        "query_instruction_for_retrieval": "Find an answer",
        "query_instruction_format": "{} -> {}",
        "truncate_dim": 8,
        "normalize_embeddings": False,
        "query_max_length": 16,  # with 9 the instruction would be all that is read
    }
    here, there = named(WITH_FORMAT)
    ours = FlagAutoModel.from_finetuned(here, **options)
    theirs = upstream.FlagAutoModel.from_finetuned(there, **options)
    assert_same(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))


def test_a_bundle_of_unknown_name_opens_by_its_manifest(tiny_mean_bundle):
    # FlagEmbedding refuses unknown names; a bundle knows what it is.
    model = FlagAutoModel.from_finetuned(str(tiny_mean_bundle))
    assert type(model) is FlagModel
    assert model.pooling_method == "mean"
    assert model.query_instruction_format == "{}{}"


def test_a_bundle_knows_better_than_its_folders_name(named):
    # This name stands for [CLS]; the bundle behind it was exported with mean pooling.
    here, _ = named("bge-small-en-v1.5")
    assert FlagAutoModel.from_finetuned(here).pooling_method == "mean"
    with pytest.raises(PoolingError, match=r"'cls'.*was exported with 'mean'"):
        FlagAutoModel.from_finetuned(here, pooling_method="cls")


def test_a_bundle_may_bear_the_name_of_a_model_of_another_class(named):
    here, _ = named("bge-m3")
    assert type(FlagAutoModel.from_finetuned(here)) is FlagModel


def test_an_unknown_class_is_an_error(upstream, tiny_bundle):
    for cls in (FlagAutoModel, upstream.FlagAutoModel):
        with pytest.raises(ValueError, match="encoder-only-huge"):
            cls.from_finetuned(str(tiny_bundle), model_class="encoder-only-huge")


@pytest.mark.parametrize("model_class", ["decoder-only-base", "decoder-only-icl"])
def test_a_decoders_class_does_not_open_an_encoder(tiny_bundle, model_class):
    with pytest.raises(BundleError, match=r"class encoder-only-base.*Open it with FlagModel"):
        FlagAutoModel.from_finetuned(str(tiny_bundle), model_class=model_class)


def test_the_pseudo_moe_class_is_refused_before_its_files_are_sought():
    with pytest.raises(ValueError, match=r"'decoder-only-pseudo_moe', and the pseudo-MoE class is"):
        FlagAutoModel.from_finetuned("somewhere/moe", model_class="decoder-only-pseudo_moe")


@pytest.mark.parametrize(
    "name", ["BAAI/bge-small-en-v1.5", "BAAI/bge-en-icl", "somebody/unheard-of"]
)
def test_a_model_without_a_bundle_is_not_found(name):
    with pytest.raises(ModelNotFoundError, match=f"no folder '{name}'; {name} is not in the hub"):
        FlagAutoModel.from_finetuned(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("bge-m3", "bge-m3"),
        ("BAAI/bge-m3", "bge-m3"),
        ("/models/fine/bge-m3", "bge-m3"),
        ("/models/bge-m3/", "bge-m3"),
        ("/models/bge-m3/checkpoint-500", "bge-m3"),
        ("/models/bge-m3/checkpoint-500/", "bge-m3"),
        ("checkpoint-500", None),
        ("/models/bge-m3/final", None),
        ("bge-m3-bundle", None),
        ("", None),
    ],
)
def test_a_model_is_looked_up_by_the_last_part_of_its_path(path, name):
    found = find_model(path)
    assert (found.name if found else None) == name
