"""What the hub's refusals mean, each in one sentence with its remedy."""

from __future__ import annotations

import httpx2 as httpx

from safelight.errors import PullError
from safelight.hub.access import HubAccess
from safelight.hub.errors import HubTokenInvalid, RepositoryGated, RepositoryNotFound, RevisionNotFound
from safelight.hub.model_name import ModelName

_GIVE_A_TOKEN = "give a token with --token-file or in HF_TOKEN"  # noqa: S105
_WRONG_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105


def refusal(answer: httpx.Response, model: ModelName, access: HubAccess) -> PullError:
    """By the status and the two headers in which the hub says more."""
    code, status = answer.headers.get("x-error-code", ""), answer.status_code
    if answer.headers.get("x-error-message", "") == _WRONG_TOKEN:
        return HubTokenInvalid(
            f"{access.endpoint} does not accept the token of {access.token_source}: "
            f"make a new one at {access.endpoint}/settings/tokens"
        )
    if code == "GatedRepo":
        return RepositoryGated(_gated(model, access))
    if code == "RevisionNotFound":
        return RevisionNotFound(f"{model.repository} has no revision {model.revision or 'main'!r}: name a branch, "
                                f"tag or commit of {access.endpoint}/{model.repository}/commits/main")  # fmt: skip
    if code == "RepoNotFound" or status == httpx.codes.UNAUTHORIZED or (status == httpx.codes.NOT_FOUND and not code):
        return RepositoryNotFound(_missing(model, access))
    if status == httpx.codes.FORBIDDEN:
        return RepositoryGated(
            f"the token of {access.token_source} may not read {model.repository}: allow it to read public gated "
            f"repositories at {access.endpoint}/settings/tokens"
            if access.token
            else f"{access.endpoint} forbids reading {model.repository}: {_GIVE_A_TOKEN}"
        )
    return PullError(f"{access.endpoint} answered {status} for {model}: {code or 'it gave no reason'}")


def _gated(model: ModelName, access: HubAccess) -> str:
    page = f"{access.endpoint}/{model.repository}"
    if access.token is None:
        return f"{model.repository} is gated: accept its conditions at {page}, then {_GIVE_A_TOKEN}"
    return (
        f"{model.repository} is gated, and the account of the token of {access.token_source} has no access: "
        f"accept its conditions at {page}, then pull again"
    )


def _missing(model: ModelName, access: HubAccess) -> str:
    found = f"{access.endpoint} has no repository {model.repository}"
    if access.token is None:
        return f"{found}, or it is private: check the name, or {_GIVE_A_TOKEN}"
    return f"{found} that the token of {access.token_source} may see: check the name, or use another token"
