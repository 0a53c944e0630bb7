"""The Hub, spoken to over the loopback interface: every failure is one sentence, a way out, and quick."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from planner import hub
from planner.catalog import find_checkpoint
from planner.errors import HubError, InvalidConfigError, QplanError, UnknownModelError
from tests.hub_server import COMMIT, LLAMA, HubServer, Repository, serve


def point_library_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does before the library is imported, done after it. Older releases keep copies of the constants."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Hub that the library talks to, with a cache of its own and no token."""
    with serve() as running:
        point_library_to(running.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def assert_told_well(error: QplanError) -> None:
    """One sentence on one line, and what to do."""
    assert "\n" not in error.message
    assert 10 < len(error.message) < 220
    assert ". " not in error.message.rstrip(".")
    assert "Traceback" not in error.message
    assert error.hint


def test_a_config_is_fetched_with_its_commit(server: HubServer):
    """The file's fields come back, and the commit that it belongs to."""
    server.repositories["org/tiny"] = Repository()

    assert hub.fetch_config("org/tiny") == (LLAMA, COMMIT)


def test_a_checkpoint_of_the_hub_says_where_it_is_from(server: HubServer):
    """Source, sizes, the published count and the licence come from the repository's listing; weights count once."""
    files = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": b"x" * 70, "pytorch_model.bin": b"x" * 80}
    listing = {"safetensors": {"parameters": {"BF16": 35}, "total": 35}, "gated": "manual"}
    server.repositories["org/tiny"] = Repository(files, listing=listing)
    found = find_checkpoint("org/tiny")

    assert found.source == f"hub: org/tiny@{COMMIT}"
    assert (found.config, found.published_parameters, found.size_bytes, found.gated) == (LLAMA, 35, 70, True)


def test_a_bare_name_and_a_redirect_work(server: HubServer):
    """Old repositories have no organisation, and renamed ones answer with a redirect."""
    server.repositories["oldmodel"] = Repository(behaviour="redirect")

    assert hub.fetch_config("oldmodel")[0] == LLAMA


def test_a_revision_is_asked_for(server: HubServer):
    """A branch leads to its commit, also for a bundled id, which is then read from the Hub."""
    server.repositories["meta-llama/Llama-2-7b-hf"] = Repository(revisions=("v2",))
    found = find_checkpoint("meta-llama/Llama-2-7b-hf", revision="v2")

    assert found.source == f"hub: meta-llama/Llama-2-7b-hf@{COMMIT}"


def test_the_cache_answers_when_the_hub_does_not(server: HubServer):
    """What was fetched once is found again offline, and when the Hub is down."""
    server.repositories["org/tiny"] = Repository()
    hub.fetch_config("org/tiny")
    seen = len(server.requests)

    assert hub.fetch_config("org/tiny", offline=True) == (LLAMA, COMMIT)
    assert find_checkpoint("org/tiny", offline=True).size_bytes is None
    assert len(server.requests) == seen
    server.repositories["org/tiny"].error = 503
    assert hub.fetch_config("org/tiny") == (LLAMA, COMMIT)


def test_a_token_is_sent(server: HubServer, monkeypatch: pytest.MonkeyPatch):
    """The library's token reaches the Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repositories["org/tiny"] = Repository()
    hub.fetch_config("org/tiny")

    assert set(server.tokens) == {"Bearer hf_secret"}


REFUSALS = {
    "gated": (Repository(error="GatedRepo"), HubError, "gated", "hf auth login"),
    "not found": (None, UnknownModelError, "has no model", "spelling"),
    "no revision": (Repository(revisions=()), UnknownModelError, "no revision `main`", "branch"),
    "rate limit": (Repository(error=429, headers={"Retry-After": "77"}), HubError, "429", "in 77 s"),
    "rate limit, no time": (Repository(error=429), HubError, "429", "some minutes"),
    "failure": (Repository(error=500), HubError, "(500)", "later"),
    "maintenance": (Repository(error=503), HubError, "(503)", "later"),
    "bad token": (
        Repository(error=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}),
        HubError,
        "token",
        "HF_TOKEN",
    ),
    "forbidden": (Repository(error=403), HubError, "(403)", "look at"),
    "teapot": (Repository(error=418), HubError, "(418)", "config.json"),
    "not a Hub": (Repository(behaviour="no-commit"), HubError, "does not answer as the Hub does", "HF_ENDPOINT"),
    "no etag": (Repository(behaviour="no-etag"), HubError, "does not answer as the Hub does", "HF_ENDPOINT"),
    "huge": (Repository(behaviour="huge"), InvalidConfigError, "larger than", "check the repository"),
    "broken JSON": (Repository({"config.json": b'{"a": }'}), InvalidConfigError, "line 1, column 7", "config.json"),
    "an array": (Repository({"config.json": b"[]"}), InvalidConfigError, "array", "config.json"),
    "empty": (Repository({"config.json": b""}), InvalidConfigError, "not valid JSON", "empty"),
    "gguf": (
        Repository({"tiny.Q4.gguf": b"GGUF"}, listing={"cardData": {"base_model": "org/base"}}),
        UnknownModelError,
        "GGUF",
        "qplan estimate org/base",
    ),
    "weights alone": (Repository({"model.safetensors": b"x"}), UnknownModelError, "weights alone", "made from"),
    "adapter": (
        Repository({"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'}),
        UnknownModelError,
        "PEFT adapter (LORA)",
        "qplan estimate org/base",
    ),
    "broken adapter": (Repository({"adapter_config.json": b"["}), UnknownModelError, "PEFT adapter", "trained on"),
    "truncated": (Repository(behaviour="truncated"), HubError, "`org/tiny`", "or pass a folder or a config.json"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence_and_a_way_out(server: HubServer, case: str, monkeypatch: pytest.MonkeyPatch, capfd):
    """Whatever the Hub answers becomes the right error, at once and with nothing else on the terminal."""
    repository, expected, says, advises = REFUSALS[case]
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.8)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    if repository is not None:
        server.repositories["org/tiny"] = repository
    began = time.perf_counter()
    with pytest.raises(expected) as caught:
        hub.fetch_config("org/tiny")
    seconds = time.perf_counter() - began

    assert says in caught.value.message
    assert advises in caught.value.hint
    assert type(caught.value) is expected
    assert_told_well(caught.value)
    assert seconds < 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("behaviour", ["slow", "trickle"])
def test_a_server_that_dawdles_is_given_up(server: HubServer, behaviour: str, monkeypatch: pytest.MonkeyPatch):
    """A body that never comes, or comes by the byte, ends with the deadline."""
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    server.repositories["org/tiny"] = Repository(behaviour=behaviour)
    began = time.perf_counter()
    with pytest.raises(HubError, match="took too long") as caught:
        hub.fetch_config("org/tiny")

    assert time.perf_counter() - began < 1
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in caught.value.hint


@pytest.mark.usefixtures("server")
def test_nobody_listening_is_said_at_once(monkeypatch: pytest.MonkeyPatch):
    """A refused connection is no reason to wait."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    point_library_to(endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    began = time.perf_counter()
    with pytest.raises(HubError, match="cannot be reached") as caught:
        hub.fetch_config("org/tiny")

    assert time.perf_counter() - began < 1
    assert_told_well(caught.value)


def test_the_nearest_bundled_names_are_in_the_hint(server: HubServer):
    """A typo, a gated repository and an outage all come with what needs no network."""
    server.repositories["meta-llama/Llama-2-7b"] = Repository(error="GatedRepo")
    with pytest.raises(UnknownModelError) as typo:
        find_checkpoint("meta-lama/Llama-2-70b-hf")
    with pytest.raises(HubError) as gated:
        find_checkpoint("meta-llama/Llama-2-7b")
    with pytest.raises(HubError) as offline:
        find_checkpoint("meta-lama/Llama-2-70b-hf", offline=True)

    assert "meta-llama/Llama-2-70b-hf" in typo.value.hint
    assert "meta-llama/Llama-2-7b-hf" in gated.value.hint
    assert f"{server.endpoint}/meta-llama/Llama-2-7b " in gated.value.hint
    assert "meta-llama/Llama-2-70b-hf" in offline.value.hint
    for caught in (typo, gated, offline):
        assert_told_well(caught.value)


def test_a_bundled_id_never_touches_the_network(server: HubServer):
    """Without a revision a bundled id, or one with its shapes, is answered from the package alone."""
    assert find_checkpoint("meta-llama/Llama-2-70b-hf").source == "bundled"
    assert find_checkpoint("NousResearch/Llama-2-70b-hf").source == "bundled"
    assert server.requests == []


def test_the_listing_is_only_decoration(server: HubServer):
    """A listing that fails, or is none, leaves sizes unknown and the answer standing."""
    server.repositories["org/tiny"] = Repository()
    facts = hub.repository_facts("org/tiny", COMMIT)
    server.repositories["org/tiny"] = Repository(listing={"siblings": "none", "safetensors": 3})
    broken = hub.repository_facts("org/tiny", COMMIT)
    server.repositories["org/tiny"] = Repository(error=500)

    assert facts == hub.RepositoryFacts()
    assert broken == hub.RepositoryFacts()
    assert hub.repository_facts("org/tiny", COMMIT) == hub.RepositoryFacts()


def test_weights_are_counted_as_they_would_be_loaded():
    """Safetensors before pickles, one file before shards, and nothing that another tool put beside them."""
    shards = {"model-00001-of-00002.safetensors": 3, "model-00002-of-00002.safetensors": 4, "consolidated.safetensors": 7}

    assert hub.weight_bytes(shards) == 7
    assert hub.weight_bytes(shards | {"model.safetensors": 5}) == 5
    assert hub.weight_bytes({"pytorch_model-00001-of-00001.bin": 9, "optimizer.bin": 1}) == 9
    assert hub.weight_bytes({"consolidated.safetensors": 7}) is None


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, as a user's environment variables shape it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


FETCH = """
from planner.catalog import find_checkpoint
from planner.errors import QplanError
try:
    print(find_checkpoint("org/tiny").source)
except QplanError as error:
    print(type(error).__name__, error.message)
"""


def test_environment_variables_are_the_librarys(server: HubServer, tmp_path: Path):
    """HF_ENDPOINT and HF_HOME lead where they lead the library, HF_HUB_OFFLINE stops it, and nothing is logged."""
    server.repositories["org/tiny"] = Repository()
    home = str(tmp_path / "home")
    online = run_python(FETCH, HF_ENDPOINT=server.endpoint, HF_HOME=home)
    offline = run_python(FETCH, HF_ENDPOINT=server.endpoint, HF_HOME=home, HF_HUB_OFFLINE="1")
    empty = run_python(FETCH, HF_ENDPOINT=server.endpoint, HF_HOME=home + "2", HF_HUB_OFFLINE="1")
    nonsense = run_python(FETCH, HF_ENDPOINT="http://[", HF_HOME=home + "3")

    assert (online.stdout, online.stderr) == (f"hub: org/tiny@{COMMIT}\n", "")
    assert (offline.stdout, offline.stderr) == (online.stdout, "")
    assert (empty.stdout.split()[0], empty.stderr) == ("HubError", "")
    assert (nonsense.stdout.split()[0], nonsense.stderr) == ("HubError", "")


def test_remote_code_is_never_run(server: HubServer):
    """A repository with `auto_map` and Python files gives its config.json and nothing else."""
    config = LLAMA | {"auto_map": {"AutoConfig": "configuration_evil.EvilConfig"}}
    server.repositories["org/tiny"] = Repository({"config.json": json.dumps(config).encode(), "configuration_evil.py": b"1/0"})

    assert hub.fetch_config("org/tiny")[0] == config
    assert not any("evil" in request for request in server.requests)
