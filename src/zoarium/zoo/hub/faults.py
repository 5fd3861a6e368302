"""The hub's errors as one sentence each: what was asked of which repository, and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zoarium._core.errors import HubError, StoreError
from zoarium._core.extras import require

AGAIN = "run the same again: it goes on where it stopped"
LOG_IN = "log in with: hf auth login, or pass token="
WHY = "sharing on the Hugging Face hub"


def hub_api(token: str | bool | None) -> Any:
    """The hub's client, telling the hub who calls.

    Raises
    ------
    MissingExtraError
        If huggingface_hub is not installed.
    """
    from zoarium import __version__

    hub = require("huggingface_hub", "hub", WHY)
    return hub.HfApi(token=token, library_name="zoarium", library_version=__version__)


@contextmanager
def hub_faults(repo_id: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub's client raises inside the block into a `HubError` of one sentence."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        sentence = _sentence(error, repo_id, doing, revision)
        if sentence is None:
            raise
        raise HubError(sentence) from error


def _sentence(error: BaseException, repo_id: str, doing: str, revision: str | None) -> str | None:
    """What to say of an error of the client; None for one that is none of its own."""
    from huggingface_hub import errors

    what = f"cannot {doing} {repo_id!r}: "
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is no name of a repository on the hub; write it as owner/name."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"{what}you are not logged in to the hub; {LOG_IN}."
    if isinstance(error, errors.GatedRepoError):
        return f"{what}it is gated; ask for access on its page on the hub, then {LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}it has no revision {revision or 'main'!r}; give a branch, a tag or a commit it has."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what}the hub has no such data set, or not for you; check the name, and for a private one {LOG_IN}."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return _unreachable(error, what)
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what}a file that its zoo.json lists is missing there; ask its owner to push the zoo again."
    if isinstance(error, errors.HfHubHTTPError):
        return what + _status(error)
    if isinstance(error, errors.HTTPError):  # the transport: no name, no route, cut off
        return f"{what}the hub cannot be reached ({_first_line(error)}); check the network and {AGAIN}."
    if error.__cause__ is not None and isinstance(error, RuntimeError):  # a thread that was uploading
        return _sentence(error.__cause__, repo_id, doing, revision)
    if isinstance(error, ValueError) and "metadata" in str(error):
        return f"{what}the hub refuses the header of the card ({' '.join(str(error).split())}); correct the card."
    if isinstance(error, OSError):
        return f"{what}{error.strerror or _first_line(error)}; {AGAIN}."
    return None


def _unreachable(error: BaseException, what: str) -> str:
    from huggingface_hub import constants, errors

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, errors.HfHubHTTPError):
            return what + _status(cause)
        cause = cause.__cause__
    if constants.HF_HUB_OFFLINE:
        return f"{what}it is not in the cache and HF_HUB_OFFLINE is set; unset it, or pull the zoo once with a network."
    return f"{what}the hub cannot be reached and it is not in the cache; check the network and {AGAIN}."


def _status(error: Any) -> str:
    code = error.response.status_code
    if code == 401:
        return f"the hub does not know your token; {LOG_IN}."
    if code == 403:
        return "your token does not allow it; use one with write access to that name, or create_pr=True to propose it."
    if code in (409, 412):
        return f"somebody else has changed it meanwhile; {AGAIN}."
    if code == 429:
        return f"the hub has had too many requests from you; wait a little, then {AGAIN}."
    if code >= 500:
        return f"the hub is in trouble (HTTP {code}); wait a little, then {AGAIN}."
    return f"the hub refuses (HTTP {code}: {_first_line(error)})."


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(getattr(error, "server_message", None) or error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).strip().rstrip(".")
