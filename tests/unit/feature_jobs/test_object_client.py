"""The settings of each kind of object store, and the meaning of the client's errors."""

import json
from pathlib import Path

import pytest

from feature_jobs import object_client
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.object_client import TIMEOUT, connect, portable_settings
from tasks.store.cache import Cache
from tasks.store.object_store import RemoteObjects
from tests.object_store import ObjectServer, proxy_of

ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "tests", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}
SERVICE = {"client_email": "", "private_key": "secret", "private_key_id": "", "disable_oauth": True}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


WRONG = {
    "a key that is not base64": (
        "az://c/x",
        {**ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": "secret!"},
        "ACCOUNT_NAME.*its key",
    ),
    "no account": ("az://c/x", {}, "no credentials were found"),
    "no address of Azure's": ("az://c/x", {**ACCOUNT, "AZURE_STORAGE_ENDPOINT": "host:1"}, "STORAGE_ENDPOINT: not an"),
    "an account that is not JSON": ("gs://b/x", {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"secret"'}, "the service account"),
    "no file": ("gs://b/x", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere"}, "the service account"),
    "no address of Google's": ("gs://b/x", {"GOOGLE_BASE_URL": "http://"}, "GOOGLE_BASE_URL: not an address"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_that_no_request_can_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, settings, message = WRONG[name]
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(BadInputError, match=message) as raised:
        connect(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_an_endpoint_may_be_plain_http(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server of one's own: it is asked, and here it is away."""
    monkeypatch.setattr(object_client, "FIRST_PAUSE_S", 0.01)
    endpoint = {"gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}[scheme]
    for name, value in {**ACCOUNT, "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(SERVICE)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(endpoint, "http://127.0.0.1:9")
    with pytest.raises(RetryLaterError, match="cannot be reached"):
        RemoteObjects(f"{scheme}://store/movies", Cache(tmp_path)).read("x")


def test_a_container_that_does_not_exist_is_not_an_empty_one(
    object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with proxy_of(object_server) as proxy:
        for name, value in {**ACCOUNT, "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{proxy.port}/tests"}.items():
            monkeypatch.setenv(name, value)
        proxy.fail_always("no container")
        objects = RemoteObjects("az://nothing/movies", Cache(tmp_path))
        for call in (lambda: objects.read("x"), lambda: objects.put_if_absent("x", b""), lambda: objects.keys("*")):
            with pytest.raises(BadInputError, match="bucket does not exist"):
                call()


def test_a_container_gets_the_settings_of_its_store_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "account.json"
    file.write_text(json.dumps(SERVICE))
    aws = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**ACCOUNT, **aws, "GOOGLE_APPLICATION_CREDENTIALS": str(file), TIMEOUT: "5"}.items():
        monkeypatch.setenv(name, value)
    in_a_container = {url: portable_settings(url) for url in ("s3://b/x", "gs://b/x", "az://b/x")}
    assert {url: {name.split("_")[0] for name in found} for url, found in in_a_container.items()} == {
        "s3://b/x": {"AWS", "RECLOOP"},
        "gs://b/x": {"GOOGLE", "RECLOOP"},
        "az://b/x": {"AZURE", "RECLOOP"},
    }
    assert in_a_container["gs://b/x"]["GOOGLE_SERVICE_ACCOUNT_KEY"] == file.read_text()
    assert str(file) not in in_a_container["gs://b/x"].values()
    for text in ("[]", "{}", "{"):
        file.write_text(text)
        with pytest.raises(BadInputError, match=r"account\.json is not"):
            portable_settings("gs://b/x")
