"""
The only code that talks to the Hugging Face Hub: one small file and a list of files, with no model code ever run.

Tokens, cache, HF_ENDPOINT and HF_HUB_OFFLINE are huggingface_hub's own. What is added: a deadline (the library retries a
server that fails for up to a minute), silence on stderr, and errors of one sentence with a way out.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from planner.config_file import MAX_CONFIG_BYTES, adapter_error, printable, read_config, read_object
from planner.errors import HubError, InvalidConfigError, QplanError, UnknownModelError
from planner.units import MIB
from planner.value import Value

T = TypeVar("T")

# A user waits at the prompt for one file of a few KiB. HF_HUB_DOWNLOAD_TIMEOUT raises it, as it does the library's own.
TIMEOUT_SECONDS = 10.0
# What only decorates the answer (sizes, the published count) may not hold it up for long.
FACTS_TIMEOUT_SECONDS = 3.0
_LOCAL_WAY_OUT = "or pass a folder or a config.json"


class RepositoryFacts(Value):
    """
    What the Hub's listing of a repository says; None where it does not say, or could not be asked.

    Attributes:
        weight_bytes: Bytes of the weight files that `from_pretrained` would download.
        parameters: What the Hub counts in the safetensors files.
        gated: Whether the Hub asks for a licence before a download.
    """

    weight_bytes: int | None = None
    parameters: int | None = None
    gated: bool = False


def fetch_config(repo_id: str, revision: str | None = None, *, offline: bool | None = None) -> tuple[dict[str, Any], str]:
    """
    The config.json of a repository and the commit that it belongs to, from the Hub or from the library's cache.

    Args:
        repo_id: `org/name`, or the bare name of an old repository.
        revision: Branch, tag or commit; None for `main`.
        offline: Whether to look into the cache alone; None for what HF_HUB_OFFLINE says.

    Raises:
        UnknownModelError: There is no such repository or revision, or it holds no model that transformers could load.
        InvalidConfigError: Its config.json is no config.json.
        HubError: The Hub could not be reached in time, or it refused.
    """
    library = _library()
    seconds = max(TIMEOUT_SECONDS, float(library.constants.HF_HUB_DOWNLOAD_TIMEOUT))
    cache_only = library.constants.HF_HUB_OFFLINE if offline is None else offline
    path = _within(seconds, lambda: _config_path(library, repo_id, revision, seconds, cache_only=cache_only))
    if path is None:
        raise _too_slow(repo_id)
    return read_config(path, f"{repo_id}/config.json"), path.parent.name  # .../snapshots/<commit>/config.json


def repository_facts(repo_id: str, revision: str, *, offline: bool | None = None) -> RepositoryFacts:
    """
    Sizes and counts of a repository, where the Hub can be asked quickly; never an error.

    Args:
        repo_id: As for `fetch_config`.
        revision: The commit that `fetch_config` returned.
        offline: As for `fetch_config`.
    """
    library = _library()
    if library.constants.HF_HUB_OFFLINE if offline is None else offline:
        return RepositoryFacts()
    info = _within(FACTS_TIMEOUT_SECONDS, lambda: _listing(library, repo_id, revision, FACTS_TIMEOUT_SECONDS))
    if info is None:
        return RepositoryFacts()
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    counted = getattr(info, "safetensors", None)
    return RepositoryFacts(weight_bytes(sizes), counted.total if counted is not None else None, bool(info.gated))


def weight_bytes(files: Mapping[str, int]) -> int | None:
    """
    Bytes of the weight files that `from_pretrained` would take, out of a repository's or a folder's.

    Repositories often hold the weights twice (safetensors and pickled, sharded and in one). The order is transformers'.

    Args:
        files: File name -> size in bytes.

    Returns:
        The sum, or None where there are no weights that transformers would load.

    Source:
        transformers@5.23.0, modeling_utils.py, _get_resolved_checkpoint_files.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        if files.get(f"{stem}.{suffix}"):
            return files[f"{stem}.{suffix}"]
        shards = [size for name, size in files.items() if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name)]
        if sum(shards):
            return sum(shards)
    return None


def what_else(files: Iterable[str]) -> str:
    """What a place without a config.json holds instead, as the end of a sentence; empty where nothing is known."""
    names = {name.lower() for name in files}
    kinds = [
        (any(name.endswith(".gguf") for name in names), "; it holds GGUF files, which are for inference"),
        ("model_index.json" in names, "; it holds a diffusers pipeline"),
        ("params.json" in names, "; it holds weights in the publisher's own format (params.json)"),
        (any(name.endswith((".safetensors", ".bin", ".pth")) for name in names), "; it holds weights alone"),
        (not names - {".gitattributes", "readme.md"}, "; it is empty"),
    ]
    return next((text for holds, text in kinds if holds), "")


def _config_path(library: Any, repo_id: str, revision: str | None, seconds: float, *, cache_only: bool) -> Path:
    """
    Where the library put config.json.

    The first request goes out without the library's retries, so that a refusal is told at once. Where it fails, a copy in the
    cache serves, as in the library.
    """
    try:
        if not cache_only:
            url = library.hf_hub_url(repo_id, "config.json", revision=revision)
            _check_size(library.get_hf_file_metadata(url, timeout=seconds).size, repo_id)
        return _download(library, repo_id, "config.json", revision, seconds, cache_only=cache_only)
    except _failures(library) as error:
        if not isinstance(error, library.errors.RevisionNotFoundError) and not _is_missing_file(library, error):
            cached = library.try_to_load_from_cache(repo_id, "config.json", revision=revision)
            if isinstance(cached, str):
                return Path(cached)
        raise _explain(library, error, repo_id, revision, cache_only=cache_only) from error


def _download(library: Any, repo_id: str, file: str, revision: str | None, seconds: float, *, cache_only: bool = False) -> Path:
    """Where the library put a file."""
    path = library.hf_hub_download(
        repo_id,
        file,
        revision=revision,
        etag_timeout=seconds,
        local_files_only=cache_only,
    )
    return Path(path)


def _check_size(size: int | None, repo_id: str) -> None:
    """Refuse to download what no config.json is."""
    if size is not None and size > MAX_CONFIG_BYTES:
        raise InvalidConfigError(
            f"config.json of `{repo_id}` is larger than {MAX_CONFIG_BYTES // MIB} MiB, so it is no config.json",
            hint=f"check the repository, {_LOCAL_WAY_OUT}",
        )


def _listing(library: Any, repo_id: str, revision: str | None, seconds: float) -> Any:
    """The Hub's listing of a repository, or None where it is not to be had."""
    try:
        return library.HfApi().model_info(repo_id, revision=revision, timeout=seconds, files_metadata=True)
    except _failures(library, KeyError, TypeError, AttributeError):  # the last three: an answer that is no such listing
        return None


def _explain(library: Any, error: Exception, repo_id: str, revision: str | None, *, cache_only: bool) -> QplanError:
    """One sentence and a way out for what went wrong between here and the Hub."""
    errors = library.errors
    if isinstance(error, errors.HFValidationError):
        return UnknownModelError(f"`{repo_id}` cannot be a Hub id", hint=f"name it as `org/name`, {_LOCAL_WAY_OUT}")
    if cache_only or isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            f"`{repo_id}` is not in the Hub's cache on this machine, and the network is switched off",
            hint=f"go online (unset HF_HUB_OFFLINE), {_LOCAL_WAY_OUT}",
        )
    if _is_missing_file(library, error):
        return _explain_missing_config(library, repo_id, revision)
    response = getattr(error, "response", None)
    if response is None:
        return _explain_silence(library, error, repo_id)
    page = f"{library.constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"`{repo_id}` is gated, and the Hub gives its config.json only to those who accepted its licence",
            hint=f"accept it at {page} and run `hf auth login`, {_LOCAL_WAY_OUT}",
        )
    return _explain_refusal(library, error, response, repo_id, revision)


def _explain_refusal(library: Any, error: Exception, response: Any, repo_id: str, revision: str | None) -> QplanError:
    """What the Hub meant by an HTTP status."""
    errors, status = library.errors, response.status_code
    page = f"{library.constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownModelError(
            f"the Hub has no model `{repo_id}`, or it is private",
            hint=f"check the spelling, run `hf auth login` if it is private, {_LOCAL_WAY_OUT}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModelError(
            f"`{repo_id}` has no revision `{printable(revision or 'main')}`",
            hint=f"choose a branch, tag or commit of {page}/commits/main",
        )
    if status == 401:
        return HubError("the Hub refused the token that this machine sent", hint="run `hf auth login`, or unset HF_TOKEN")
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        when = f"in {wait} s" if wait.isdecimal() else "in some minutes"
        return HubError(
            f"the Hub answers no more requests from here for now (429, asked for `{repo_id}`)",
            hint=f"try again {when}, run `hf auth login` for a higher limit, {_LOCAL_WAY_OUT}",
        )
    if status >= 500:
        return HubError(f"the Hub failed to answer for `{repo_id}` ({status})", hint=f"try again later, {_LOCAL_WAY_OUT}")
    return HubError(f"the Hub refused to give config.json of `{repo_id}` ({status})", hint=f"look at {page}, {_LOCAL_WAY_OUT}")


def _explain_silence(library: Any, error: Exception, repo_id: str) -> QplanError:
    """What to say where no answer came, or none that the Hub would give."""
    endpoint = library.constants.ENDPOINT
    if any(isinstance(each, library.errors.FileMetadataError) for each in (error, error.__cause__)):
        return HubError(f"{endpoint} does not answer as the Hub does", hint=f"check HF_ENDPOINT and the proxy, {_LOCAL_WAY_OUT}")
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.strerror}: {printable(str(error.filename))}"
        return HubError(f"the Hub's cache on this machine cannot be used: {reason}", hint=f"set HF_HOME, {_LOCAL_WAY_OUT}")
    # By name: huggingface_hub has changed its HTTP library twice (requests, httpx, httpx2), and each has its own class.
    if "Timeout" in type(error).__name__:
        return _too_slow(repo_id)
    reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__, 120)
    return HubError(f"{endpoint} cannot be reached for `{repo_id}`: {reason}", hint=f"check the network and HF_ENDPOINT, {_LOCAL_WAY_OUT}")


def _explain_missing_config(library: Any, repo_id: str, revision: str | None) -> QplanError:
    """What a repository without a config.json holds instead, and which model it was made from."""
    info = _listing(library, repo_id, revision, FACTS_TIMEOUT_SECONDS)
    files = [file.rfilename for file in info.siblings or ()] if info is not None else []
    if "adapter_config.json" in files:
        try:
            path = _download(library, repo_id, "adapter_config.json", revision, FACTS_TIMEOUT_SECONDS)
            return adapter_error(repo_id, read_object(path))
        except _failures(library, QplanError):
            return adapter_error(repo_id, {})
    base = getattr(info.card_data, "base_model", None) if info is not None else None
    base = base[0] if isinstance(base, list) and base else base
    return UnknownModelError(
        f"`{repo_id}` has no config.json{what_else(files) if info is not None else ''}",
        hint=f"plan for its base: qplan estimate {printable(base)}"
        if isinstance(base, str)
        else f"name the checkpoint that it was made from, {_LOCAL_WAY_OUT}",
    )


def _is_missing_file(library: Any, error: Exception) -> bool:
    """Whether the Hub says that the repository has no such file. The class of a file missing here derives from that one."""
    errors = library.errors
    return isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)


def _too_slow(repo_id: str) -> HubError:
    """What to say when the deadline has passed."""
    return HubError(
        f"the Hub took too long to answer for `{repo_id}`",
        hint=f"try again, set HF_HUB_DOWNLOAD_TIMEOUT to more seconds than {TIMEOUT_SECONDS:.0f}, {_LOCAL_WAY_OUT}",
    )


def _failures(library: Any, *others: type[Exception]) -> tuple[type[Exception], ...]:
    """
    What a request can raise, and others. The HTTP library's own classes are found through it, to fit the version at hand.

    Source:
        huggingface_hub@2.4.0, errors.py: HfHubHTTPError derives from the HTTP library's HTTPError first.
    """
    http_error = library.errors.HfHubHTTPError.__bases__[0]
    invalid_url = getattr(sys.modules[http_error.__module__.partition(".")[0]], "InvalidURL", ValueError)
    return (http_error, invalid_url, library.errors.EntryNotFoundError, OSError, ValueError, *others)


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """
    The work's result, or None where it takes longer. What it raises is raised here.

    The library has no deadline of its own for a server that sends a byte now and then. A thread that is left behind stays
    quiet and ends with the process.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with _quiet():
                outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, not handled
            failure.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(seconds)
    if failure:
        raise failure[0]
    return outcome[0] if outcome else None


def _library() -> Any:
    """huggingface_hub and the submodules that are used, imported here for the first time: it costs 0.3 s."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except (ImportError, ValueError) as error:  # it reads HF_ENDPOINT and the like at import, and raises on nonsense
        reason = printable(str(error), 120)
        raise HubError(f"huggingface_hub cannot be imported: {reason}", hint=f"check HF_ENDPOINT, {_LOCAL_WAY_OUT}") from error
    return huggingface_hub


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log lines of the library: what it has to say comes out of here as an error."""
    library = _library()
    utils = library.utils
    verbosity = utils.logging.get_verbosity()
    hide_bars = library.constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    if hide_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hide_bars:
            utils.enable_progress_bars()
