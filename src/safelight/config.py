"""The settings of a server: frozen, read once. Flags > environment (``SAFELIGHT_*``) > TOML file > default."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safelight.errors import ConfigError, SafelightError
from safelight.faults import parse as parse_faults
from safelight.params import check_size

ENV_PREFIX = "SAFELIGHT_"
EMBEDDED_MODEL = "safelight/shapes"
STUB_MODEL = "safelight/stub"

HUB_TOKEN_VARIABLES = (f"{ENV_PREFIX}HUB_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where ``safelight pull`` looks for a token, in this order; no worker sees them."""

_NO_SETTINGS = (f"{ENV_PREFIX}CONFIG", f"{ENV_PREFIX}API_KEY", HUB_TOKEN_VARIABLES[0])
_MIN_KEY_CHARS = 8
_TRACES_PATH = "/v1/traces"
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:[0-9]{1,3}(,(cuda:)?[0-9]{1,3})*")


def _setting(default: object, help_text: str, parse: Callable[[str], object], *, is_secret: bool = False) -> Any:
    return field(default=default, metadata={"help": help_text, "parse": parse, "is_secret": is_secret})


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key by its name; of the key itself only the hash is kept, in hexadecimal."""

    name: str
    sha256: str


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value


def _path(value: str) -> Path:
    return Path(_text(value))


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return int(value)

    return parse


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise ValueError("is not a number of seconds")
    return float(value)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return value

    return parse


def _truth(value: str) -> bool:
    return _one_of("true", "false")(value.lower()) == "true"


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError("is not auto, cpu, cuda or cuda:0,1")
    indices = re.findall(r"[0-9]+", value)
    if len({int(index) for index in indices}) != len(indices):
        raise ValueError("names a device twice")
    return value


def _keys(value: str) -> tuple[ApiKey, ...]:
    """``NAME=KEY,NAME=sha256:HEX``. An empty value is a mistake, never an open door."""
    keys = tuple(_key(part) for part in value.split(","))
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("names a key twice")
    return keys


def _key(text: str) -> ApiKey:
    name, _, key = (part.strip() for part in text.partition("="))
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not key:
        raise ValueError("has an entry that is not NAME=KEY")
    if key.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
            raise ValueError("has a hash that is not sha256: and 64 hexadecimal digits")
        return ApiKey(name, key.removeprefix("sha256:"))
    if len(key) < _MIN_KEY_CHARS:
        raise ValueError(f"has a key of fewer than {_MIN_KEY_CHARS} characters")
    return ApiKey(name, hashlib.sha256(key.encode()).hexdigest())


def _words(pattern: str, what: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        for word in words:
            if not re.fullmatch(pattern, word):
                raise ValueError(f"has {word!r}, which is not {what}")
        return words

    return parse


def _collector(value: str) -> str:
    """The full address of a collector's traces."""
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise ValueError("is not an address such as http://127.0.0.1:4318")
    if url.username is not None:
        raise ValueError("has a user's name in it: set OTEL_EXPORTER_OTLP_HEADERS instead")
    return value if url.path.endswith(_TRACES_PATH) else value.rstrip("/") + _TRACES_PATH


def _standard_collector(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """What OpenTelemetry's own variables say about where traces go."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next(((name, environment[name]) for name in names if environment.get(name)), None)


def _faults(value: str) -> str:
    parse_faults(value)
    return value


def _sizes(value: str) -> tuple[tuple[int, int], ...]:
    return tuple(parse_size(size) for size in value.split(",") if size)


def parse_size(value: str) -> tuple[int, int]:
    """``"1024x768"`` as (width, height) in pixels; ValueError otherwise."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)
    if not match:
        raise ValueError("is not WIDTHxHEIGHT, such as 1024x768")
    width, height = int(match[1]), int(match[2])
    try:
        check_size(width, height)
    except SafelightError as error:
        raise ValueError(f"cannot be drawn: {error.message}") from None
    return width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One field per setting; the environment variable is ``SAFELIGHT_`` and the name in upper case."""

    model: str = _setting(
        EMBEDDED_MODEL,
        "the embedded model's name, a checkpoint directory, a safetensors or GGUF file, or OWNER/NAME[@REVISION] as it "
        "was pulled",
        _text,
    )
    base_model: str | None = _setting(
        None,
        "where the model is a single file: the model whose text encoders, tokenizers and VAE it takes, a directory or "
        "OWNER/NAME[@REVISION]",
        _text,
    )
    host: str = _setting("127.0.0.1", "address to listen on", _text)
    port: int = _setting(8000, "port to listen on; 0 picks a free one", _whole_number(0, 65535))
    device: str = _setting("auto", "auto, cpu, cuda or cuda:0,1; auto takes every CUDA device, else the CPU", _device)
    dtype: str = _setting(
        "auto",
        "number format of the weights; auto: bfloat16 on CUDA, float32 on the CPU",
        _one_of("auto", "float32", "bfloat16", "float16"),
    )
    precision: str = _setting(
        "auto",
        "of the transformer's large layers: bf16, fp8 (CUDA cards from Ada and Hopper on), or auto: as dtype says",
        _one_of("auto", "bf16", "fp8"),
    )
    memory: str = _setting(
        "auto",
        "how much of the model stays on a CUDA device: full; low: what is used once a picture comes from the host's "
        "memory; offload: everything does, at every step; auto: the first of these that fits",
        _one_of("auto", "full", "low", "offload"),
    )
    step_cache: int = _setting(
        1,
        "2 or 3: in the middle of a picture only every second or third step is computed, the others are extrapolated; "
        "1: every step is",
        _whole_number(1, 3),
    )
    batch_limit: int = _setting(
        0,
        "pictures that may share a denoising step; 0: as many as measured times and the memory allow",
        _whole_number(0, 64),
    )
    data_dir: Path = _setting(  # noqa: RUF009 (the default is a Path, and immutable)
        Path("safelight-data"), "directory for what outlives a run", lambda value: Path(_text(value))
    )
    models_dir: Path | None = _setting(  # noqa: RUF009 (as above)
        None, "directory of pulled models; empty: models in the data directory", _path
    )
    loras_dir: Path | None = _setting(  # noqa: RUF009 (as above)
        None, "directory of LoRA adapters, as NAME.safetensors; empty: loras in the data directory", _path
    )
    lora_cache_mb: int = _setting(
        1024, "megabytes of LoRA adapters that a worker keeps in the host's memory", _whole_number(0, 10**6)
    )
    queue_limit: int = _setting(64, "jobs that may wait; one more is refused with 429", _whole_number(1, 100_000))
    grace_period_s: float = _setting(30.0, "seconds that running jobs get to finish after SIGTERM", _seconds)
    warmup_sizes: tuple[tuple[int, int], ...] = _setting(
        (), "sizes to warm up before ready, such as 1024x1024,768x1024; empty: the model's default size", _sizes
    )
    drain_delay_s: float = _setting(
        0.0, "seconds after SIGTERM in which the port stays open at least; on Kubernetes 5", _seconds
    )
    hang_timeout_s: float = _setting(
        10.0, "least seconds without a denoising step after which a worker counts as hung and is replaced", _seconds
    )
    load_timeout_s: float = _setting(1800.0, "seconds that a load may take before its worker is replaced", _seconds)
    queue_work_limit: int = _setting(
        20_000, "work that may wait, in megapixels x steps x images; more is refused with 429", _whole_number(1, 10**9)
    )
    rate_limit: int = _setting(
        0,
        "work that each key may ask for in a minute, in megapixels x steps x images; 0: no limit",
        _whole_number(0, 10**9),
    )
    result_ttl_s: float = _setting(86_400.0, "seconds that finished jobs and their images are kept", _seconds)
    result_limit_mb: int = _setting(
        4096, "megabytes of images that are kept; the oldest finished jobs go first", _whole_number(1, 10**9)
    )
    link_ttl_s: float = _setting(3600.0, "seconds that the address of a picture works without a key", _seconds)
    max_connections: int = _setting(12_000, "connections that may be open at once", _whole_number(10, 1_000_000))
    head_timeout_s: float = _setting(10.0, "seconds that a client may take to send a request's head", _seconds)
    body_timeout_s: float = _setting(30.0, "seconds that a client may take to send a request's body", _seconds)
    write_timeout_s: float = _setting(
        30.0, "seconds that a client may lag behind reading 8 KiB/s before it is cut off", _seconds
    )
    api_keys: tuple[ApiKey, ...] = _setting(
        (), "keys that clients must send, as NAME=KEY,NAME=sha256:HEX; empty: no key is needed", _keys, is_secret=True
    )
    admin_keys: tuple[ApiKey, ...] = _setting(
        (), "the same for keys that may also load models and the like", _keys, is_secret=True
    )
    model_aliases: str = _setting(
        "accept",
        "whether gpt-image-* and dall-e-* mean the served model: accept, list (also in /v1/models), off",
        _one_of("accept", "list", "off"),
    )
    c2pa_certificate: Path | None = _setting(  # noqa: RUF009 (as above)
        None, "PEM file with a certificate chain for signing pictures (C2PA); empty: they are not signed", _path
    )
    c2pa_private_key: Path | None = _setting(None, "PEM file with its P-256 key", _path)  # noqa: RUF009
    private_webhooks: bool = _setting(
        False, "true: webhooks may be addresses of private networks and of this machine", _truth
    )
    log_prompts: bool = _setting(False, "true: prompts are written to the log", _truth)
    insecure: bool = _setting(False, "true: listen on other addresses than loopback without API keys", _truth)
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "names that the Host header may have, beside loopback; empty: on loopback no others, else any",
        _words(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]", "a host name without a port"),
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        "origins of web pages that may ask, such as https://app.example.org; empty: this server's only",
        _words(r"https?://[A-Za-z0-9.:\[\]-]+", "an origin such as https://app.example.org"),
    )
    recover: bool = _setting(False, "true: move a damaged job database aside and begin with an empty one", _truth)
    faults: str = _setting("", "fault points for tests, such as engine.step@3=kill; only on a loopback host", _faults)
    log_level: str = _setting("info", "least level that is logged", _one_of("debug", "info", "warning", "error"))
    otlp_endpoint: str | None = _setting(
        None,
        "address of an OpenTelemetry collector that gets traces (OTLP over HTTP), such as http://127.0.0.1:4318; "
        "empty: as OTEL_EXPORTER_OTLP_ENDPOINT says, else none",
        _collector,
    )
    log_format: str = _setting(
        "text", "of the log on stderr: text, or json, one object per line", _one_of("text", "json")
    )

    @property
    def pulled_models(self) -> Path:
        """Where ``safelight pull`` puts models."""
        return self.models_dir or self.data_dir / "models"

    @property
    def adapters_dir(self) -> Path:
        """Where LoRA adapters lie, beside those that come with a model."""
        return self.loras_dir or self.data_dir / "loras"


def settings() -> tuple[Field[Any], ...]:
    """The fields of ``Config``, each with ``metadata["help"]``."""
    return fields(Config)


def load_config(
    flags: Mapping[str, str | None], environment: Mapping[str, str], config_file: Path | None = None
) -> Config:
    """Merges the sources; a flag that is ``None`` was not given. Raises ``ConfigError`` naming key and value."""
    known = {setting.name: setting for setting in settings()}
    texts: dict[str, tuple[str, str]] = {}
    if collector := _standard_collector(environment):
        texts["otlp_endpoint"] = collector
    for name, value in _read_file(config_file).items():
        texts[name] = (f"{config_file}: {name}", value)
    for key, value in environment.items():
        if key.startswith(ENV_PREFIX) and key not in _NO_SETTINGS:
            texts[key.removeprefix(ENV_PREFIX).lower()] = (key, value)
    for name, flag in flags.items():
        if flag is not None:
            texts[name] = (f"--{name.replace('_', '-')}", flag)
    for name, (source, _) in texts.items():
        if name not in known:
            raise ConfigError(f"{source} is not a setting of Safelight", param=name)
    config = Config(**{name: _parse(known[name], *text) for name, text in texts.items()})
    if config.precision != "auto" and config.dtype not in ("auto", "bfloat16"):
        source, value = texts["precision"]
        raise ConfigError(f"{source}={value!r} goes with dtype bfloat16, not {config.dtype!r}", param="precision")
    return config


def _parse(setting: Field[Any], source: str, value: str) -> Any:
    try:
        return setting.metadata["parse"](value)
    except ValueError as error:
        shown = "***" if setting.metadata["is_secret"] else repr(value)
        raise ConfigError(f"{source}={shown} {error}", param=setting.name) from None


def _read_file(path: Path | None) -> dict[str, str]:
    """TOML values as the text that a flag would have; lists are joined by commas."""
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config={str(path)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config={str(path)!r} is not TOML: {error}") from None
    return {name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in table.items()}
