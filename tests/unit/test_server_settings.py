"""Settings: where they come from, what is refused, what is shown."""

from dataclasses import fields
from pathlib import Path

import pytest

from pgchroma.errors import ConfigurationError
from pgchroma.server.cors import origins_of
from pgchroma.server.settings import RULES, ServerSettings, is_loopback, unknown_variables

URL = {"PGCHROMA_DATABASE_URL": "postgresql:///pgchroma"}


def test_every_setting_is_described() -> None:
    assert set(RULES) == {item.name for item in fields(ServerSettings)}
    assert all(rules.help for rules in RULES.values())


def test_defaults_are_allowed_by_their_own_rules() -> None:
    settings = ServerSettings.load(URL)
    for name, rules in RULES.items():
        value = getattr(settings, name)
        if rules.choices:
            assert value in rules.choices
        if rules.maximum:
            assert rules.minimum <= value <= rules.maximum


def test_options_go_before_the_environment_and_that_before_defaults() -> None:
    environment = {**URL, "PGCHROMA_PORT": "9000", "PGCHROMA_WORKERS": "3", "PGCHROMA_INDEXER": "False"}
    settings = ServerSettings.load(environment, {"port": 9001, "workers": None})
    assert (settings.port, settings.workers, settings.indexer, settings.pool_size) == (9001, 3, False, 8)


def test_an_empty_variable_counts_as_absent() -> None:
    assert ServerSettings.load({**URL, "PGCHROMA_PORT": ""}).port == 8000


def test_chromas_own_name_for_reset_is_understood() -> None:
    assert ServerSettings.load({**URL, "ALLOW_RESET": "true"}).allow_reset
    assert not ServerSettings.load({**URL, "ALLOW_RESET": "true", "PGCHROMA_ALLOW_RESET": "no"}).allow_reset


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGCHROMA_PORT", "-1"),
        ("PGCHROMA_PORT", "8000x"),
        ("PGCHROMA_WORKERS", "0"),
        ("PGCHROMA_POOL_SIZE", "0"),
        ("PGCHROMA_ALLOW_RESET", "perhaps"),
        ("PGCHROMA_LOG_LEVEL", "loud"),
        ("PGCHROMA_AUTH", "password"),
        ("PGCHROMA_SHUTDOWN_SECONDS", "1e9"),
        ("PGCHROMA_STATEMENT_TIMEOUT_SECONDS", "nan"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable}={value}") as caught:
        ServerSettings.load({**URL, variable: value})
    assert caught.value.hint


@pytest.mark.parametrize(
    "value", ["example.org", "https://example.org/", "https://a.org https://b.org", "https://"]
)
def test_what_no_browser_sends_as_its_origin_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PGCHROMA_CORS_ALLOW_ORIGINS.* is not an origin"):
        ServerSettings.load({**URL, "PGCHROMA_CORS_ALLOW_ORIGINS": f"http://localhost:5173, {value}"})


@pytest.mark.parametrize("variable", ["PGCHROMA_CORS_ALLOW_ORIGINS", "CHROMA_SERVER_CORS_ALLOW_ORIGINS"])
def test_origins_are_taken_as_chroma_writes_them(variable: str) -> None:
    for text, expected in (
        ('["*"]', ("*",)),
        ('["http://localhost:5173", "https://a.org"]', ("http://localhost:5173", "https://a.org")),
        ("[]", ()),
        ("http://localhost:5173,https://a.org", ("http://localhost:5173", "https://a.org")),
    ):
        settings = ServerSettings.load({**URL, variable: text})
        assert origins_of(settings.cors_allow_origins, variable) == expected
    for text in ('["*"', '{"a": 1}', "[1]"):
        with pytest.raises(ConfigurationError, match="CORS_ALLOW_ORIGINS"):
            ServerSettings.load({**URL, variable: text})


def test_an_option_is_checked_like_a_variable() -> None:
    with pytest.raises(ConfigurationError, match="PGCHROMA_PORT=70000"):
        ServerSettings.load(URL, {"port": 70000})


def test_without_a_database_nothing_starts() -> None:
    with pytest.raises(ConfigurationError, match="no database is named"):
        ServerSettings.load({})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no-such-host.invalid"])  # noqa: S104
def test_an_open_server_for_everyone_needs_consent(host: str) -> None:
    open_to_all = {**URL, "PGCHROMA_HOST": host, "PGCHROMA_AUTH": "off"}
    with pytest.raises(ConfigurationError, match="PGCHROMA_AUTH=off") as caught:
        ServerSettings.load(open_to_all)
    assert "PGCHROMA_ALLOW_UNAUTHENTICATED=true" in caught.value.hint
    accepted = {**open_to_all, "PGCHROMA_ALLOW_UNAUTHENTICATED": "true"}
    assert ServerSettings.load(accepted).host == host
    assert ServerSettings.load({**URL, "PGCHROMA_HOST": host}).auth == "token"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


def test_the_password_comes_from_systemds_credentials_unless_a_file_is_named(tmp_path: Path) -> None:
    environment = {**URL, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert ServerSettings.load(environment).database_password_file is None
    (tmp_path / "database_password").write_text("secret\n")
    assert ServerSettings.load(environment).database_password_file == tmp_path / "database_password"
    named = {**environment, "PGCHROMA_DATABASE_PASSWORD_FILE": "/elsewhere"}
    assert ServerSettings.load(named).database_password_file == Path("/elsewhere")
    assert ServerSettings.load(named).store_settings().password_file == Path("/elsewhere")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hush@db:5432/x", "postgresql://u:***@db:5432/x"),
        ("host=db user=u password=hush dbname=x", "host=db user=u password=*** dbname=x"),
        ("postgresql:///x?host=/run&user=u", "postgresql:///x?host=/run&user=u"),
        ("postgresql:///x?user=u&password=hush", "postgresql:///x?user=u&password=***"),
    ],
)
def test_logs_show_no_password(url: str, shown: str) -> None:
    assert ServerSettings(database_url=url).shown_database_url == shown


def test_a_misspelt_variable_is_found() -> None:
    assert unknown_variables({**URL, "PGCHROMA_WORKRES": "2", "PGCHROMA_PORT": "1", "PATH": ""}) == [
        "PGCHROMA_WORKRES"
    ]
