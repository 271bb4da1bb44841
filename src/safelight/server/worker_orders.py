"""What a worker process is told when it starts: on its command line, and in its first message."""

from __future__ import annotations

from safelight.config import Config
from safelight.protocol import Load
from safelight.server.data_directory import compile_cache
from safelight.server.devices import Device


def process_options(config: Config, worker_id: int) -> list[str]:
    """The end of its command line."""
    options = [f"--log-level={config.log_level}", f"--log-format={config.log_format}", f"--worker-id={worker_id}"]
    if config.otlp_endpoint:
        options.append(f"--otlp-endpoint={config.otlp_endpoint}")
    if config.faults:
        options += [f"--faults={config.faults}", f"--faults-dir={config.data_dir / 'faults'}"]
    if config.c2pa_certificate and config.c2pa_private_key:
        options += ["--credentials", str(config.c2pa_certificate), str(config.c2pa_private_key)]
    return options


def load_message(config: Config, device: Device) -> Load:
    """What it loads, and how, by the settings that hold for the model. Touches the disk: not on the loop."""
    return Load(
        config.model,
        device.torch_name,
        config.dtype,
        list(config.warmup_sizes),
        config.precision,
        config.memory,
        config.step_cache,
        config.batch_limit,
        compile_cache(config.data_dir),
        str(config.pulled_models),
        config.base_model,
        str(config.adapters_dir),
        config.lora_cache_mb,
        config.memory_limit_mb,
    )
