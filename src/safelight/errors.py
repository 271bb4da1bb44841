"""Every error that Safelight raises on purpose, with a stable code and the HTTP status it becomes.

SafelightError
├── ConfigError                 a setting is wrong (exit code 2)
├── PortInUse                   another process listens there (exit code 1)
├── StoreError                  the data directory cannot be used (exit code 1)
├── PullError                   a model could not be downloaded (exit code 1); its leaves: ``hub/errors.py``
├── ProtocolError               front and worker do not understand each other
├── InvalidTransition           a job was asked to make a move that it may not make
├── InvalidRequest         400  what was asked cannot be done as written
│   ├── InvalidJSON        400
│   ├── MissingParameter   400
│   ├── UnknownParameter   400
│   ├── InvalidValue       400
│   ├── InvalidSize        400
│   ├── UnsupportedValue   400  legal elsewhere, but not on this server or model
│   └── LoraInvalid        400  a LoRA adapter that is no adapter, or one of another model
├── Unauthorized           401  no API key, or none that this server knows
├── PermissionDenied       403
│   └── OriginNotAllowed   403  a web page of another origin asked
├── HostNotAllowed         421  the Host header names another server
├── NotFound               404
│   └── ModelNotFound      404
├── MethodNotAllowed       405
├── JobNotFinished         409  what was asked needs a job that has ended
├── BodyTooLarge           413
├── UnsupportedMediaType   415
├── IdempotencyMismatch    422  the key was used before, with another body
├── QueueFull              429
├── RateLimited            429  the key has asked for too much in a minute
├── StorageFull            507  no space is left for jobs or results
├── Unavailable            503  cannot take work now
│   ├── ShuttingDown       503
│   ├── StorageUnavailable 503  the job database or the result files cannot be written or read
│   └── LoadError          503  the model could not be loaded
│       ├── CheckpointNotFound
│       ├── CheckpointInvalid
│       ├── DeviceUnavailable
│       └── NotEnoughMemory
├── JobCancelled           499  the client or an operator cancelled it
└── GenerationError        500  the engine could not make the image
    ├── WorkerCrashed      500
    ├── OutOfMemory        500
    ├── DeviceFault        500  the device's context is broken: the worker is replaced
    ├── BadOutput          500  NaN, infinity or one flat colour: never passed on as a picture
    └── InternalError      500

The message of an error is written for the person who asked; causes and tracebacks belong in the log.
"""

from __future__ import annotations

from typing import ClassVar


class SafelightError(Exception):
    """Base of all errors. ``param`` names the request member or setting that is to blame, if one is.

    ``retry_after_s`` becomes the ``Retry-After`` header; ``should_retry`` the ``x-should-retry`` header that the
    OpenAI SDKs obey.
    """

    code: ClassVar[str] = "safelight_error"
    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"
    title: ClassVar[str] = "Error"
    should_retry: ClassVar[bool | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class ConfigError(SafelightError):
    """A setting is unknown or has a wrong value; the message names both."""

    code, title = "invalid_config", "Invalid configuration"


class PortInUse(SafelightError):
    """Another process listens on the address."""

    code, title = "port_in_use", "Port in use"


class StoreError(SafelightError):
    """The data directory is used by another server, from a newer version, or damaged; the message says what to do."""

    code, title = "store_error", "Data directory cannot be used"


class PullError(SafelightError):
    """A model could not be downloaded; what has arrived of it is kept, so that the next pull goes on."""

    code, title = "pull_failed", "Model could not be downloaded"


class ProtocolError(SafelightError):
    """A frame between front and worker is malformed or too large."""

    code, title = "protocol_error", "Protocol error"


class InvalidTransition(SafelightError):
    """A job was asked to make a move that its table does not have: a defect, never the user's fault."""

    code, title = "invalid_transition", "Invalid transition"


class InvalidRequest(SafelightError):
    """What was asked cannot be done as written; asking again will not help."""

    code, status, error_type, title = "invalid_request", 400, "invalid_request_error", "Invalid request"


class InvalidJSON(InvalidRequest):
    """The body is not JSON."""

    code, title = "invalid_json", "Body is not JSON"


class MissingParameter(InvalidRequest):
    """A required member is absent."""

    code, title = "missing_required_parameter", "Missing parameter"


class UnknownParameter(InvalidRequest):
    """A member that this server does not know: ignoring it could change the meaning."""

    code, title = "unknown_parameter", "Unknown parameter"


class InvalidValue(InvalidRequest):
    """A member has a value of the wrong type or outside its range."""

    code, title = "invalid_value", "Invalid value"


class InvalidSize(InvalidRequest):
    """Width or height cannot be served."""

    code, title = "invalid_size", "Invalid size"


class UnsupportedValue(InvalidRequest):
    """The value is legal elsewhere, but this server or model does not offer it."""

    code, title = "unsupported_value", "Unsupported value"


class LoraInvalid(InvalidRequest):
    """A LoRA adapter cannot be used with this model; the message names the layer or the value that is to blame."""

    code, title = "lora_invalid", "LoRA adapter cannot be used"


class Unauthorized(SafelightError):
    """No API key was sent, or none that this server knows."""

    code, status, error_type, title = "invalid_api_key", 401, "invalid_request_error", "API key needed"


class PermissionDenied(SafelightError):
    """The key is known, but may not do this."""

    code, status, error_type, title = "permission_denied", 403, "invalid_request_error", "Permission denied"


class OriginNotAllowed(PermissionDenied):
    """A web page of another origin asked, through the browser of somebody who may."""

    code, title = "origin_not_allowed", "Origin not allowed"


class HostNotAllowed(SafelightError):
    """The Host header names another server: DNS rebinding, or a proxy that was not announced."""

    code, status, error_type, title = "host_not_allowed", 421, "invalid_request_error", "Host not allowed"


class NotFound(SafelightError):
    """No such thing here."""

    code, status, error_type, title = "not_found", 404, "invalid_request_error", "Not found"


class ModelNotFound(NotFound):
    """The named model is not the one that is served."""

    code, title = "model_not_found", "Model not found"


class MethodNotAllowed(SafelightError):
    """The route exists, but not for this method."""

    code, status, error_type, title = "method_not_allowed", 405, "invalid_request_error", "Method not allowed"


class JobNotFinished(SafelightError):
    """The job waits or runs."""

    code, status, error_type, title = "job_not_finished", 409, "invalid_request_error", "Job not finished"


class BodyTooLarge(SafelightError):
    """More bytes were received than the route takes."""

    code, status, error_type, title = "body_too_large", 413, "invalid_request_error", "Body too large"


class UnsupportedMediaType(SafelightError):
    """The body is of a type that the route does not take."""

    code, status, error_type, title = "unsupported_media_type", 415, "invalid_request_error", "Unsupported media type"


class IdempotencyMismatch(SafelightError):
    """The ``Idempotency-Key`` belongs to an earlier request with another body."""

    code, status, error_type = "idempotency_key_reused", 422, "invalid_request_error"
    title = "Idempotency key reused"


class QueueFull(SafelightError):
    """The queue is at its limit; try again later."""

    code, status, error_type, title = "queue_full", 429, "rate_limit_error", "Queue full"


class RateLimited(SafelightError):
    """The caller's key has used up its share of the minute."""

    code, status, error_type, title = "rate_limit_exceeded", 429, "rate_limit_error", "Rate limit exceeded"


class StorageFull(SafelightError):
    """No space is left; accepted jobs are kept and go on once there is."""

    code, status, title = "storage_full", 507, "Storage full"


class Unavailable(SafelightError):
    """No work can be taken now."""

    code, status, title = "unavailable", 503, "Unavailable"


class ShuttingDown(Unavailable):
    """The server drains."""

    code, title = "shutting_down", "Shutting down"


class StorageUnavailable(Unavailable):
    """The job database or the result files cannot be written or read now; accepted jobs are kept."""

    code, title = "storage_unavailable", "Storage unavailable"


class LoadError(Unavailable):
    """The model could not be loaded. The front stays up; ``POST /v1/models/{id}/load`` tries again."""

    code, title = "model_load_failed", "Model could not be loaded"


class CheckpointNotFound(LoadError):
    """There is no checkpoint under that name."""

    code, title = "checkpoint_not_found", "Checkpoint not found"


class CheckpointInvalid(LoadError):
    """A file of the checkpoint is missing, truncated or of the wrong kind; the message names it."""

    code, title = "checkpoint_invalid", "Checkpoint invalid"


class DeviceUnavailable(LoadError):
    """The configured device does not exist or cannot be used."""

    code, title = "device_unavailable", "Device unavailable"


class NotEnoughMemory(LoadError):
    """The model does not fit into the memory that is free."""

    code, title = "not_enough_memory", "Not enough memory"


class JobCancelled(SafelightError):
    """The job was cancelled before its end. 499 is nginx's status for a client that went away."""

    code, status, error_type, title = "job_cancelled", 499, "invalid_request_error", "Cancelled"


class GenerationError(SafelightError):
    """The engine could not make the image."""

    code, title = "generation_failed", "Generation failed"


class WorkerCrashed(GenerationError):
    """The worker process died with the job."""

    code, title = "worker_crashed", "Worker crashed"


class OutOfMemory(GenerationError):
    """The device has too little memory for this request; asking for the same again will fail again."""

    code, title, should_retry = "out_of_memory", "Out of memory", False


class DeviceFault(GenerationError):
    """The device's context is broken; every later call in that process would fail or lie."""

    code, title = "device_fault", "Device fault"


class BadOutput(GenerationError):
    """The model produced NaN, infinity or one flat colour: never passed on as a picture."""

    code, title = "bad_output", "Output is not a picture"


class InternalError(GenerationError):
    """A defect in Safelight; the log has the traceback under the request id."""

    code, title = "internal_error", "Internal error"


def _leaves(kind: type[SafelightError]) -> list[type[SafelightError]]:
    found = [kind]
    for child in kind.__subclasses__():
        found += _leaves(child)
    return found


_BY_CODE: dict[str, type[SafelightError]] = {kind.code: kind for kind in _leaves(SafelightError)}


def error_from_code(code: str, message: str) -> SafelightError:
    """The error with this code, as it arrives from a worker; an unknown code becomes ``InternalError``."""
    return _BY_CODE.get(code, InternalError)(message)
