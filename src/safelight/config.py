"""The settings of a server: frozen, read once. Flags > environment (``SAFELIGHT_*``) > TOML file > default."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from safelight import setting_values as values
from safelight.errors import ConfigError
from safelight.model_list import ModelEntry, as_text, read_model_list

ENV_PREFIX = "SAFELIGHT_"
EMBEDDED_MODEL = "safelight/shapes"
STUB_MODEL = "safelight/stub"

HUB_TOKEN_VARIABLES = (f"{ENV_PREFIX}HUB_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where ``safelight pull`` looks for a token, in this order; no worker sees them."""

_NO_SETTINGS = (f"{ENV_PREFIX}CONFIG", f"{ENV_PREFIX}API_KEY", HUB_TOKEN_VARIABLES[0])


def _setting(default: object, help_text: str, parse: Callable[[str], object], *, is_secret: bool = False) -> Any:
    return field(default=default, metadata={"help": help_text, "parse": parse, "is_secret": is_secret})


def _standard_collector(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """What OpenTelemetry's own variables say about where traces go."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next(((name, environment[name]) for name in names if environment.get(name)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One field per setting; the environment variable is ``SAFELIGHT_`` and the name in upper case."""

    model: str = _setting(
        EMBEDDED_MODEL,
        "the embedded model's name, a checkpoint directory, a safetensors or GGUF file, or OWNER/NAME[@REVISION] as it "
        "was pulled; with [[models]], the name of the one that is the default",
        values.text,
    )
    base_model: str | None = _setting(
        None,
        "where the model is a single file: the model whose text encoders, tokenizers and VAE it takes, a directory or "
        "OWNER/NAME[@REVISION]",
        values.text,
    )
    host: str = _setting("127.0.0.1", "address to listen on", values.text)
    port: int = _setting(8000, "port to listen on; 0 picks a free one", values.whole_number(0, 65535))
    device: str = _setting(
        "auto",
        "auto, cpu, cuda (or all) or cuda:0,1; auto takes every CUDA device, else the CPU",
        values.device,
    )
    workers: int = _setting(
        0,
        "workers that share the CPU, each with a copy of the model and its share of the cores; 0: one, or one for each "
        "CUDA device; of a cluster, how many to ask it for, 0: one a GPU, without GPUs one a node",
        values.whole_number(0, 256),
    )
    cluster: str | None = _setting(
        None,
        "where workers run, if not on this machine: ray, the Ray that this machine is part of or else one of its own; "
        "ray://HOST[:PORT], the cluster with this head; empty: on this machine",
        values.cluster,
    )
    lease_s: float = _setting(
        10.0,
        "seconds of silence after which a worker of a cluster counts as lost, and ends itself if it still runs",
        values.lease,
    )
    dtype: str = _setting(
        "auto",
        "number format of the weights; auto: bfloat16 on CUDA, float32 on the CPU",
        values.one_of("auto", "float32", "bfloat16", "float16"),
    )
    precision: str = _setting(
        "auto",
        "of the transformer's large layers: bf16, fp8 (CUDA cards from Ada and Hopper on), or auto: as dtype says",
        values.one_of("auto", "bf16", "fp8"),
    )
    memory: str = _setting(
        "auto",
        "how much of the model stays on a CUDA device: full; low: what is used once a picture comes from the host's "
        "memory; offload: everything does, at every step; auto: the first of these that fits",
        values.one_of("auto", "full", "low", "offload"),
    )
    memory_limit_mb: int = _setting(
        0,
        "megabytes of a device's memory that its worker may use, as if the card were smaller; 0: all that is free",
        values.whole_number(0, 10**7),
    )
    step_cache: int = _setting(
        1,
        "2 or 3: in the middle of a picture only every second or third step is computed, the others are extrapolated; "
        "1: every step is",
        values.whole_number(1, 3),
    )
    batch_limit: int = _setting(
        0,
        "pictures that may share a denoising step; 0: as many as measured times and the memory allow",
        values.whole_number(0, 64),
    )
    sequence_parallel: str = _setting(
        "auto",
        "whether several devices make one picture together while no other job waits: auto, on CUDA where measured "
        "times say that it is faster; off; or of how many devices such a team is, 2 to 8, whatever the times say",
        values.one_of("auto", "off", *map(str, range(2, 9))),
    )
    idle_unload_s: float = _setting(
        0.0, "seconds without a job after which a model is unloaded until the next one comes; 0: never", values.seconds
    )
    model_wait_s: float = _setting(
        60.0,
        "seconds that jobs of a model wait at most while those of the loaded one go first; so long it is kept at least",
        values.seconds,
    )
    switch_overlap: str = _setting(
        "auto",
        "whether the old model serves while the next one loads beside it: auto, where the memory allows; always; never",
        values.one_of("auto", "always", "never"),
    )
    data_dir: Path = _setting(  # noqa: RUF009 (the default is a Path, and immutable)
        Path("safelight-data"), "directory for what outlives a run", lambda value: Path(values.text(value))
    )
    models_dir: Path | None = _setting(  # noqa: RUF009 (as above)
        None, "directory of pulled models; empty: models in the data directory", values.path
    )
    loras_dir: Path | None = _setting(  # noqa: RUF009 (as above)
        None, "directory of LoRA adapters, as NAME.safetensors; empty: loras in the data directory", values.path
    )
    lora_cache_mb: int = _setting(
        1024, "megabytes of LoRA adapters that a worker keeps in the host's memory", values.whole_number(0, 10**6)
    )
    queue_limit: int = _setting(64, "jobs that may wait; one more is refused with 429", values.whole_number(1, 100_000))
    grace_period_s: float = _setting(30.0, "seconds that running jobs get to finish after SIGTERM", values.seconds)
    warmup_sizes: tuple[tuple[int, int], ...] = _setting(
        (), "sizes to warm up before ready, such as 1024x1024,768x1024; empty: the model's default size", values.sizes
    )
    drain_delay_s: float = _setting(
        0.0, "seconds after SIGTERM in which the port stays open at least; on Kubernetes 5", values.seconds
    )
    hang_timeout_s: float = _setting(
        10.0,
        "least seconds without a denoising step after which a worker counts as hung and is replaced",
        values.seconds,
    )
    load_timeout_s: float = _setting(
        1800.0, "seconds that a load may take before its worker is replaced", values.seconds
    )
    queue_work_limit: int = _setting(
        20_000,
        "work that may wait, in megapixels x steps x images; more is refused with 429",
        values.whole_number(1, 10**9),
    )
    rate_limit: int = _setting(
        0,
        "work that each key may ask for in a minute, in megapixels x steps x images; 0: no limit",
        values.whole_number(0, 10**9),
    )
    result_ttl_s: float = _setting(86_400.0, "seconds that finished jobs and their images are kept", values.seconds)
    result_limit_mb: int = _setting(
        4096, "megabytes of images that are kept; the oldest finished jobs go first", values.whole_number(1, 10**9)
    )
    link_ttl_s: float = _setting(3600.0, "seconds that the address of a picture works without a key", values.seconds)
    max_connections: int = _setting(12_000, "connections that may be open at once", values.whole_number(10, 1_000_000))
    head_timeout_s: float = _setting(10.0, "seconds that a client may take to send a request's head", values.seconds)
    body_timeout_s: float = _setting(30.0, "seconds that a client may take to send a request's body", values.seconds)
    write_timeout_s: float = _setting(
        30.0, "seconds that a client may lag behind reading 8 KiB/s before it is cut off", values.seconds
    )
    api_keys: tuple[values.ApiKey, ...] = _setting(
        (),
        "keys that clients must send, as NAME=KEY,NAME=sha256:HEX; empty: no key is needed",
        values.keys,
        is_secret=True,
    )
    admin_keys: tuple[values.ApiKey, ...] = _setting(
        (), "the same for keys that may also load models and the like", values.keys, is_secret=True
    )
    model_aliases: str = _setting(
        "accept",
        "whether gpt-image-* and dall-e-* mean the served model: accept, list (also in /v1/models), off",
        values.one_of("accept", "list", "off"),
    )
    c2pa_certificate: Path | None = _setting(  # noqa: RUF009 (as above)
        None, "PEM file with a certificate chain for signing pictures (C2PA); empty: they are not signed", values.path
    )
    c2pa_private_key: Path | None = _setting(None, "PEM file with its P-256 key", values.path)  # noqa: RUF009
    private_webhooks: bool = _setting(
        False, "true: webhooks may be addresses of private networks and of this machine", values.truth
    )
    log_prompts: bool = _setting(False, "true: prompts are written to the log", values.truth)
    insecure: bool = _setting(False, "true: listen on other addresses than loopback without API keys", values.truth)
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "names that the Host header may have, beside loopback; empty: on loopback no others, else any",
        values.words(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]", "a host name without a port"),
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        "origins of web pages that may ask, such as https://app.example.org; empty: this server's only",
        values.words(r"https?://[A-Za-z0-9.:\[\]-]+", "an origin such as https://app.example.org"),
    )
    recover: bool = _setting(False, "true: move a damaged job database aside and begin with an empty one", values.truth)
    faults: str = _setting(
        "", "fault points for tests, such as engine.step@3=kill; only on a loopback host", values.faults
    )
    log_level: str = _setting("info", "least level that is logged", values.one_of("debug", "info", "warning", "error"))
    otlp_endpoint: str | None = _setting(
        None,
        "address of an OpenTelemetry collector that gets traces (OTLP over HTTP), such as http://127.0.0.1:4318; "
        "empty: as OTEL_EXPORTER_OTLP_ENDPOINT says, else none",
        values.collector,
    )
    log_format: str = _setting(
        "text", "of the log on stderr: text, or json, one object per line", values.one_of("text", "json")
    )

    models: tuple[ModelEntry, ...] = ()
    """The tables ``[[models]]``, the default first; it has no flag and no environment variable."""

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """The models that are served, the default first."""
        return self.models or (ModelEntry(model=self.model),)

    def of(self, entry: ModelEntry) -> Config:
        """The settings that hold for one model."""
        return replace(self, model=entry.model, **entry.own)

    @property
    def pulled_models(self) -> Path:
        """Where ``safelight pull`` puts models."""
        return self.models_dir or self.data_dir / "models"

    @property
    def adapters_dir(self) -> Path:
        """Where LoRA adapters lie, beside those that come with a model."""
        return self.loras_dir or self.data_dir / "loras"


def settings() -> tuple[Field[Any], ...]:
    """The fields of ``Config`` that have a flag, each with ``metadata["help"]``."""
    return tuple(setting for setting in fields(Config) if setting.metadata)


def load_config(
    flags: Mapping[str, str | None], environment: Mapping[str, str], config_file: Path | None = None
) -> Config:
    """Merges the sources; a flag that is ``None`` was not given. Raises ``ConfigError`` naming key and value."""
    known = {setting.name: setting for setting in settings()}
    file = _read_file(config_file)
    tables = file.pop("models", [])
    texts: dict[str, tuple[str, str]] = {}
    if collector := _standard_collector(environment):
        texts["otlp_endpoint"] = collector
    for name, value in file.items():
        texts[name] = (f"{config_file}: {name}", as_text(value))
    for key, text in environment.items():
        if key.startswith(ENV_PREFIX) and key not in _NO_SETTINGS:
            texts[key.removeprefix(ENV_PREFIX).lower()] = (key, text)
    for name, flag in flags.items():
        if flag is not None:
            texts[name] = (f"--{name.replace('_', '-')}", flag)
    for name, (source, _) in texts.items():
        if name not in known:
            raise ConfigError(f"{source} is not a setting of Safelight", param=name)
    config = Config(**{name: _parse(known[name], *text) for name, text in texts.items()})
    entries = read_model_list(f"{config_file}: models", tables, lambda name, *text: _parse(known[name], *text))
    if entries:
        config = _with_models(config, entries, texts.get("model"))
    for entry in config.entries:
        _check_formats(config.of(entry), entry, texts.get("precision"))
    return config


def _with_models(config: Config, entries: tuple[ModelEntry, ...], default: tuple[str, str] | None) -> Config:
    """``default`` is where ``model`` was set, and to what: a name of the list."""
    first = entries[0]
    if default is not None:
        source, name = default
        named = [entry for entry in entries if entry.key == name]
        if not named:
            names = ", ".join(entry.key for entry in entries)
            raise ConfigError(f"{source}={name!r} is none of the models of the list: {names}", param="model")
        first = named[0]
    ordered = (first, *(entry for entry in entries if entry is not first))
    return replace(config, models=ordered, model=first.model)


def _check_formats(config: Config, entry: ModelEntry, given: tuple[str, str] | None) -> None:
    if config.precision != "auto" and config.dtype not in ("auto", "bfloat16"):
        source = f"precision of {entry.key!r}" if entry.own or given is None else given[0]
        raise ConfigError(
            f"{source}={config.precision!r} goes with dtype bfloat16, not {config.dtype!r}", param="precision"
        )


def _parse(setting: Field[Any], source: str, value: str) -> Any:
    try:
        return setting.metadata["parse"](value)
    except ValueError as error:
        shown = "***" if setting.metadata["is_secret"] else repr(value)
        raise ConfigError(f"{source}={shown} {error}", param=setting.name) from None


def _read_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config={str(path)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config={str(path)!r} is not TOML: {error}") from None
