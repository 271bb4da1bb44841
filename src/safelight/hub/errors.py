"""Why a model could not be downloaded.

PullError
├── RepositoryNotFound
├── RevisionNotFound
├── RepositoryGated         its conditions must be accepted, or the token may not read it
├── HubTokenInvalid
├── HubUnreachable          no network, or the hub fails again and again
├── DownloadCorrupt         a file's hash is not the one that the hub promises
├── DiskFull
├── ModelsDirectoryUnusable
└── PullInProgress          another pull of the same model runs
"""

from __future__ import annotations

from safelight.errors import PullError


class RepositoryNotFound(PullError):
    """The hub has no such repository, or does not show it to this caller."""

    code, title = "repository_not_found", "Repository not found"


class RevisionNotFound(PullError):
    """The repository has no such branch, tag or commit."""

    code, title = "revision_not_found", "Revision not found"


class RepositoryGated(PullError):
    """Its conditions have not been accepted, or the token may not read it."""

    code, title = "repository_gated", "Repository gated"


class HubTokenInvalid(PullError):
    """The hub does not know the token."""

    code, title = "hub_token_invalid", "Token not accepted"


class HubUnreachable(PullError):
    """No network, or a hub that fails again and again."""

    code, title = "hub_unreachable", "Hub cannot be reached"


class DownloadCorrupt(PullError):
    """What arrives is, time and again, not what the hub promises."""

    code, title = "download_corrupt", "Download damaged"


class DiskFull(PullError):
    """The model does not fit on the disk of the models directory."""

    code, title = "disk_full", "No space for the model"


class ModelsDirectoryUnusable(PullError):
    """It cannot be made or written."""

    code, title = "models_directory_unusable", "Models directory cannot be used"


class PullInProgress(PullError):
    """Another pull of the same model runs."""

    code, title = "pull_in_progress", "Already being pulled"
