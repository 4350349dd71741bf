"""Where settings are read: from the environment, and from the files of a folder."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.executor.worker.settings import PeerSettings
from services.kit.settings import SECRETS_DIR, InternalKeySettings
from services.vector.settings import Settings as VectorSettings

KEY = "a" * 43 + "="


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    return tmp_path


def test_a_file_stands_for_the_variable_of_its_name(secrets: Path) -> None:
    (secrets / "HEADRACE_INTERNAL_KEY").write_text(f"{KEY}\n")
    assert InternalKeySettings().internal_key.get_secret_value() == KEY


def test_a_file_stands_for_a_variable_that_is_named_in_full(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LISTEN": "127.0.0.1:1", "POSTGRES_URL": "postgresql://a", "INDEX_DIR": "indexes"}.items():
        monkeypatch.setenv(f"HEADRACE_VECTOR_{name}", value)
    (secrets / "HEADRACE_LLM_TARGET").write_text("dns:///llm:50051")
    assert VectorSettings().llm_target == "dns:///llm:50051"


def test_a_variable_comes_before_its_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "HEADRACE_INTERNAL_KEY").write_text("not even a key")
    monkeypatch.setenv("HEADRACE_INTERNAL_KEY", KEY)
    assert InternalKeySettings().internal_key.get_secret_value() == KEY


def test_a_file_is_checked_as_a_variable_is(secrets: Path) -> None:
    (secrets / "HEADRACE_INTERNAL_KEY").write_text("c2hvcnQ=")
    with pytest.raises(ValidationError, match="at least 32 bytes"):
        InternalKeySettings()


def test_what_no_file_and_no_variable_gives_is_missing(secrets: Path) -> None:
    with pytest.raises(ValidationError, match="nats_url"):
        PeerSettings()


def test_no_file_is_read_where_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "HEADRACE_INTERNAL_KEY").write_text(KEY)
    with pytest.raises(ValidationError, match="internal_key"):
        InternalKeySettings()
