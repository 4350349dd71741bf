"""What an operator may write in HEADRACE_LLM_MODELS, and what is said when it is wrong."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.llm.domain.model import Usage
from services.llm.settings import LlmSettings, configured_models, prices

FAR = {"name": "qwen", "backend": "openai", "base_url": "http://gpu:8000/v1/"}
VECTORS = {"name": "e5", "backend": "sentence_transformers", "repo": "intfloat/e5"}


def settings(*models: object, **more: object) -> LlmSettings:
    text = json.dumps(models) if models else ""
    return LlmSettings(listen="x:1", models=text, default_gguf=Path("a.gguf"), default_embedding_dir=Path("b"), **more)


def names(*models: object, **more: object) -> tuple[list[str], list[str]]:
    found, defaults = configured_models(settings(*models, **more))
    return [model.name for model in found], sorted(defaults)


def test_without_a_word_the_built_in_models_are_offered():
    assert names() == (["smollm2-135m-instruct", "all-minilm-l6-v2"], ["all-minilm-l6-v2", "smollm2-135m-instruct"])


def test_a_named_model_becomes_the_default_of_its_kind_and_the_built_in_ones_stay():
    found, defaults = names(FAR)
    assert found == ["qwen", "smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert defaults == ["all-minilm-l6-v2", "qwen"]


def test_a_model_costs_what_its_prices_say_and_nothing_is_known_without_any():
    (free, read, both), _ = configured_models(
        settings(
            FAR,
            {**FAR, "name": "read", "price_per_million_input_tokens": 0.5},
            {**FAR, "name": "both", "price_per_million_input_tokens": 2, "price_per_million_output_tokens": 8},
            defaults="off",
        )
    )
    usage = Usage(prompt_tokens=3_000_000, completion_tokens=500_000)
    assert prices(free) is None
    assert prices(read).of(usage) == pytest.approx(1.5)
    assert prices(both).of(usage) == pytest.approx(10)


def test_the_built_in_models_can_be_turned_off():
    assert names(FAR, defaults="off") == (["qwen"], ["qwen"])


def test_the_model_marked_as_default_is_the_default_and_so_is_the_only_embedder():
    other = {**FAR, "name": "llama", "default": True}
    assert names(FAR, other, VECTORS, defaults="off") == (["qwen", "llama", "e5"], ["e5", "llama"])


def test_a_named_model_takes_the_place_of_a_built_in_one_of_its_name():
    found, _ = configured_models(settings({**FAR, "name": "smollm2-135m-instruct"}))
    assert [model.backend for model in found] == ["openai", "sentence_transformers"]


def test_addresses_lose_their_last_slash_and_stand_once():
    (far, *_), _ = configured_models(settings({**FAR, "replicas": ["http://gpu:8000/v1", "http://gpu2:8000/v1"]}))
    assert far.base_urls == ("http://gpu:8000/v1", "http://gpu2:8000/v1")


def test_the_list_may_be_in_a_file_but_not_in_both_places(tmp_path):
    file = tmp_path / "models.json"
    file.write_text(json.dumps([FAR]))
    assert names(models_file=file)[0][0] == "qwen"
    with pytest.raises(ValidationError, match="not both"):
        settings(FAR, models_file=file)
    with pytest.raises(ValidationError, match="no file"):
        settings(models_file=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "x", "backend": "magic"}, "'openai', 'tgi', 'llamacpp', 'sentence_transformers'"),
        ({"name": "x", "backend": "openai"}, "`base_url` or `replicas` is needed"),
        ({"name": "x", "backend": "openai", "base_url": "gpu:8000"}, "must begin with http:// or https://"),
        ({"name": "x", "backend": "llamacpp"}, "one of `path` and `repo` is needed"),
        ({"name": "x", "backend": "llamacpp", "path": "a", "repo": "b"}, "not both"),
        ({"name": "x", "backend": "llamacpp", "repo": "b"}, "`file` is needed"),
        ({"name": "workflow/x", "backend": "openai", "base_url": "http://a"}, "must not begin with 'workflow/'"),
        ({**FAR, "modle": "x"}, "models.0.openai.modle"),
    ],
)
def test_a_wrong_entry_is_told_with_its_place(entry, said):
    with pytest.raises(ValidationError, match="HEADRACE_LLM_MODELS") as caught:
        configured_models(settings(entry))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([FAR, FAR], "more than once: qwen"),
        ([{**FAR, "default": True}, {**FAR, "name": "b", "default": True}], "only one model"),
    ],
)
def test_entries_that_do_not_agree_are_refused(models, said):
    with pytest.raises(ValidationError, match=said):
        configured_models(settings(*models))


def test_what_is_wrong_is_told_without_the_key():
    with pytest.raises(ValidationError) as caught:
        configured_models(settings({**FAR, "api_key": "sk-secret", "backend": "opnai"}))
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(ValidationError, match="is not JSON") as caught:
        configured_models(LlmSettings(listen="x:1", models='[{"api_key": "sk-secret"'))
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(settings({**FAR, "api_key": "sk-secret"}))
