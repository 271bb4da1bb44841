"""Settings: which source wins, and a sentence with key and value for each wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.config import ENV_PREFIX, Config, load_config, settings
from safelight.errors import ConfigError
from safelight.setting_values import ApiKey, parse_size

VALID: dict[str, tuple[str, Any]] = {
    "model": ("/models/flux", "/models/flux"),
    "base_model": ("acme/base", "acme/base"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "device": ("cuda:0,1", "cuda:0,1"),
    "workers": ("2", 2),
    "cluster": ("ray:10.0.0.1:6379", "ray:10.0.0.1:6379"),
    "lease_s": ("5", 5.0),
    "dtype": ("bfloat16", "bfloat16"),
    "precision": ("fp8", "fp8"),
    "memory": ("offload", "offload"),
    "memory_limit_mb": ("24000", 24_000),
    "step_cache": ("3", 3),
    "batch_limit": ("8", 8),
    "sequence_parallel": ("2", "2"),
    "idle_unload_s": ("600", 600.0),
    "model_wait_s": ("10", 10.0),
    "switch_overlap": ("never", "never"),
    "data_dir": ("/tmp/data", Path("/tmp/data")),
    "models_dir": ("/tmp/models", Path("/tmp/models")),
    "loras_dir": ("/tmp/loras", Path("/tmp/loras")),
    "lora_cache_mb": ("0", 0),
    "queue_limit": ("1", 1),
    "grace_period_s": ("0.5", 0.5),
    "warmup_sizes": ("1024x1024,768x512", ((1024, 1024), (768, 512))),
    "drain_delay_s": ("5", 5.0),
    "hang_timeout_s": ("60", 60.0),
    "load_timeout_s": ("3600", 3600.0),
    "queue_work_limit": ("500", 500),
    "rate_limit": ("600", 600),
    "result_ttl_s": ("0", 0.0),
    "result_limit_mb": ("100", 100),
    "link_ttl_s": ("60", 60.0),
    "max_connections": ("10", 10),
    "head_timeout_s": ("1.5", 1.5),
    "body_timeout_s": ("60", 60.0),
    "write_timeout_s": ("60", 60.0),
    "api_keys": (f"a=sha256:{'0' * 64}", (ApiKey("a", "0" * 64),)),
    "admin_keys": (f"b=sha256:{'1' * 64}", (ApiKey("b", "1" * 64),)),
    "model_aliases": ("off", "off"),
    "c2pa_certificate": ("/keys/chain.pem", Path("/keys/chain.pem")),
    "c2pa_private_key": ("/keys/key.pem", Path("/keys/key.pem")),
    "private_webhooks": ("true", True),
    "log_prompts": ("true", True),
    "insecure": ("TRUE", True),
    "allowed_hosts": ("a.example, b.example", ("a.example", "b.example")),
    "allowed_origins": ("https://a.example", ("https://a.example",)),
    "recover": ("true", True),
    "faults": ("engine.step@3=kill", "engine.step@3=kill"),
    "log_level": ("debug", "debug"),
    "otlp_endpoint": ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
    "log_format": ("json", "json"),
}
WRONG: list[tuple[str, str]] = [
    ("rate_limit", "-1"),
    ("rate_limit", "some"),
    ("model_aliases", "yes"),
    ("private_webhooks", "yes"),
    ("c2pa_certificate", ""),
    ("c2pa_private_key", " "),
    ("log_prompts", "1"),
    ("model", ""),
    ("model", "  "),
    ("base_model", ""),
    ("host", ""),
    ("port", "-1"),
    ("port", "65536"),
    ("port", "80.0"),
    ("port", "http"),
    ("port", ""),
    ("port", " 80"),
    ("port", "\uff18\uff10"),
    ("port", "9" * 5000),
    ("device", "gpu"),
    ("device", "cuda:"),
    ("device", "cuda:-1"),
    ("device", "cuda:0,"),
    ("device", "cpu:0"),
    ("device", "CUDA"),
    ("device", "cuda:\uff11"),
    ("cluster", "local"),
    ("lease_s", "1"),
    ("workers", "-1"),
    ("workers", "257"),
    ("workers", "two"),
    ("dtype", "fp16"),
    ("dtype", ""),
    ("precision", "int8"),
    ("memory", "half"),
    ("memory_limit_mb", "24 GB"),
    ("step_cache", "0"),
    ("step_cache", "4"),
    ("batch_limit", "65"),
    ("batch_limit", "-1"),
    ("sequence_parallel", "1"),
    ("sequence_parallel", "on"),
    ("idle_unload_s", "-1"),
    ("idle_unload_s", "10m"),
    ("model_wait_s", "soon"),
    ("switch_overlap", "yes"),
    ("data_dir", ""),
    ("models_dir", " "),
    ("loras_dir", ""),
    ("lora_cache_mb", "-1"),
    ("queue_limit", "0"),
    ("queue_limit", "100001"),
    ("queue_limit", "ten"),
    ("grace_period_s", "-1"),
    ("grace_period_s", "nan"),
    ("grace_period_s", "inf"),
    ("grace_period_s", "1e3"),
    ("grace_period_s", "30s"),
    ("warmup_sizes", "1024"),
    ("warmup_sizes", "1024X1024"),
    ("warmup_sizes", "1000x1000"),
    ("warmup_sizes", "1024x1024;512x512"),
    ("drain_delay_s", "5s"),
    ("hang_timeout_s", "-1"),
    ("load_timeout_s", ""),
    ("queue_work_limit", "0"),
    ("queue_work_limit", "1.5"),
    ("result_ttl_s", "1d"),
    ("result_limit_mb", "0"),
    ("link_ttl_s", "1h"),
    ("max_connections", "9"),
    ("head_timeout_s", "inf"),
    ("body_timeout_s", "-1"),
    ("write_timeout_s", "x"),
    ("api_keys", ""),
    ("api_keys", "a=short"),
    ("admin_keys", "secret-without-a-name"),
    ("insecure", "on"),
    ("allowed_hosts", "a.example:80"),
    ("allowed_hosts", "https://a.example"),
    ("allowed_origins", "a.example"),
    ("allowed_origins", "https://a.example/"),
    ("recover", "yes"),
    ("recover", "1"),
    ("faults", "kill"),
    ("faults", "engine.step@x=kill"),
    ("log_level", "INFO"),
    ("log_level", "trace"),
    ("otlp_endpoint", "127.0.0.1:4318"),
    ("otlp_endpoint", "http://"),
    ("otlp_endpoint", "grpc://127.0.0.1:4317"),
    ("otlp_endpoint", "http://name:secret@127.0.0.1:4318"),
    ("log_format", "JSON"),
]


def test_every_setting_has_a_case_here() -> None:
    assert list(VALID) == [setting.name for setting in settings()]
    assert {name for name, _ in WRONG} == set(VALID)


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318/"}, "http://a:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/v1/traces"}, "http://b/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "SAFELIGHT_OTLP_ENDPOINT": "http://c"}, "http://c/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
    ],
)
def test_opentelemetrys_own_variables_name_the_collector_where_no_setting_does(
    environment: dict[str, str], endpoint: str | None
) -> None:
    assert load_config({}, environment).otlp_endpoint == endpoint


def test_without_any_source_every_setting_is_its_default() -> None:
    assert load_config({}, {}) == Config()


@pytest.mark.parametrize("name", VALID)
def test_a_setting_comes_from_flag_environment_and_file_alike(name: str, tmp_path: Path) -> None:
    text, value = VALID[name]
    file = _file(tmp_path, f"{name} = '{text}'")
    for config in (
        load_config({name: text}, {}),
        load_config({}, {ENV_PREFIX + name.upper(): text}),
        load_config({}, {}, file),
    ):
        assert getattr(config, name) == value
        others = {setting.name for setting in settings()} - {name}
        assert all(getattr(config, other) == getattr(Config(), other) for other in others)


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = _file(tmp_path, 'port = 1\nhost = "file"\nmodel = "file"')
    environment = {"SAFELIGHT_PORT": "2", "SAFELIGHT_HOST": "environment"}
    config = load_config({"port": "3", "host": None}, environment, file)
    assert (config.port, config.host, config.model) == (3, "environment", "file")


def test_zero_and_the_empty_list_count_as_given(tmp_path: Path) -> None:
    file = _file(tmp_path, 'port = 8000\ngrace_period_s = 30\nwarmup_sizes = ["64x64"]')
    environment = {"SAFELIGHT_PORT": "0", "SAFELIGHT_GRACE_PERIOD_S": "0", "SAFELIGHT_WARMUP_SIZES": ""}
    config = load_config({}, environment, file)
    assert (config.port, config.grace_period_s, config.warmup_sizes) == (0, 0.0, ())


def test_a_file_may_use_toml_types(tmp_path: Path) -> None:
    file = _file(tmp_path, 'port = 8001\ngrace_period_s = 2.5\nwarmup_sizes = ["64x64", "128x64"]')
    config = load_config({}, {}, file)
    assert (config.port, config.grace_period_s, config.warmup_sizes) == (8001, 2.5, ((64, 64), (128, 64)))


@pytest.mark.parametrize(("name", "text"), WRONG, ids=lambda text: text[:20].encode("ascii", "replace").decode())
def test_a_wrong_value_names_the_key_and_the_value(name: str, text: str, tmp_path: Path) -> None:
    flag, variable = f"--{name.replace('_', '-')}", ENV_PREFIX + name.upper()
    shown = "***" if name.endswith("_keys") else repr(text)
    sources: dict[str, Callable[[], Config]] = {
        f"{flag}={shown}": lambda: load_config({name: text}, {}),
        f"{variable}={shown}": lambda: load_config({}, {variable: text}),
        f"{name}={shown}": lambda: load_config({}, {}, _file(tmp_path, f"{name} = '{text}'")),
    }
    for named, load in sources.items():
        with pytest.raises(ConfigError) as caught:
            load()
        assert named in caught.value.message
        assert caught.value.param == name


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_precision_contradicts_any_other_dtype_than_bfloat16(precision: str, dtype: str) -> None:
    environment = {f"{ENV_PREFIX}PRECISION": precision}
    with pytest.raises(ConfigError, match=f"SAFELIGHT_PRECISION='{precision}' .* not '{dtype}'") as caught:
        load_config({"dtype": dtype}, environment)
    assert caught.value.param == "precision"
    for fitting in ("auto", "bfloat16"):
        assert load_config({"dtype": fitting}, environment).precision == precision


def test_a_wrong_value_that_a_better_source_hides_does_no_harm() -> None:
    assert load_config({"port": "1"}, {"SAFELIGHT_PORT": "nonsense"}).port == 1


@pytest.mark.parametrize("line", ["port = true", "port = 80.5", "port = [80]\ndevice = []", "port = 2020-01-01"])
def test_a_toml_value_of_the_wrong_type_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"safelight\.toml: (port|device)="):
        load_config({}, {}, _file(tmp_path, line))


def test_an_unknown_key_is_refused_by_name_from_every_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SAFELIGHT_PROT is not a setting"):
        load_config({}, {"SAFELIGHT_PROT": "80"})
    with pytest.raises(ConfigError, match=r"safelight\.toml: prot is not a setting"):
        load_config({}, {}, _file(tmp_path, "prot = 80"))
    with pytest.raises(ConfigError, match=r"safelight\.toml: server is not a setting"):
        load_config({}, {}, _file(tmp_path, "[server]\nport = 80"))
    with pytest.raises(ConfigError, match="--prot is not a setting"):
        load_config({"prot": "80"}, {})


def test_other_variables_and_the_config_path_are_not_settings() -> None:
    environment = {"SAFELIGHT_CONFIG": "x.toml", "PORT": "1", "NOT_SAFELIGHT_PORT": "1"}
    assert load_config({}, environment) == Config()


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config='.*nowhere\.toml' cannot be read: No such file"):
        load_config({}, {}, tmp_path / "nowhere.toml")


def test_a_directory_is_not_a_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config({}, {}, tmp_path)


@pytest.mark.parametrize("content", [b"port", b"port = \xff", b"\x00", b"port = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "safelight.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"safelight\.toml' is not TOML"):
        load_config({}, {}, file)


def test_the_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("text", "size"), [("1024x768", (1024, 768)), ("16x16", (16, 16)), ("0064x64", (64, 64))])
def test_a_size_is_width_x_height(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1024",
        "1024X1024",
        "\uff11\uff10\uff12\uff14x1024",
        "1e3x1e3",
        "0x0",
        "1x1",
        "33x47",
        "99999x99999",
        "-64x64",
        "64x64x64",
        "64 x 64",
        "64x64\n",
        "64.0x64",
        "0x1024",
        "auto",
        "9" * 5000 + "x64",
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
def test_anything_else_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not WIDTHxHEIGHT|cannot be drawn"):
        parse_size(text)


def _file(folder: Path, content: str) -> Path:
    path = folder / "safelight.toml"
    path.write_text(content, encoding="utf-8")
    return path
