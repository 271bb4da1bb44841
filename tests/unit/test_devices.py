"""Which devices get a worker: a fake /dev and CUDA_VISIBLE_DEVICES decide, torch is not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.server.devices import Device, resolve_devices


def _dev(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def _names_and_gpus(devices: list[Device]) -> list[tuple[str, str]]:
    assert all(
        device.torch_name == device.name.split(":")[0] + (":0" if ":" in device.name else "") for device in devices
    )
    return [(device.name, device.environment["CUDA_VISIBLE_DEVICES"]) for device in devices]


@pytest.fixture(autouse=True)
def _nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_auto_is_the_cpu_without_a_gpu_and_hides_any(tmp_path: Path) -> None:
    assert resolve_devices("auto", _dev(tmp_path, "null", "nvidiactl", "nvidia-uvm")) == [
        Device("cpu", "cpu", {"CUDA_VISIBLE_DEVICES": ""})
    ]


def test_auto_takes_every_gpu(tmp_path: Path) -> None:
    dev = _dev(tmp_path, "nvidiactl", "nvidia-uvm", "nvidia-modeset", *(f"nvidia{i}" for i in range(11)))
    assert _names_and_gpus(resolve_devices("auto", dev)) == [(f"cuda:{i}", str(i)) for i in range(11)]


def test_cpu_is_the_cpu_whatever_there_is(tmp_path: Path) -> None:
    assert _names_and_gpus(resolve_devices("cpu", _dev(tmp_path, "nvidia0"))) == [("cpu", "")]


def test_cuda_without_a_gpu_gets_a_worker_that_will_say_so(tmp_path: Path) -> None:
    assert _names_and_gpus(resolve_devices("cuda", tmp_path)) == [("cuda:0", "0")]


def test_named_gpus_get_a_worker_each(tmp_path: Path) -> None:
    dev = _dev(tmp_path, "nvidia0", "nvidia1", "nvidia2")
    assert _names_and_gpus(resolve_devices("cuda:2,0", dev)) == [("cuda:2", "2"), ("cuda:0", "0")]
    assert _names_and_gpus(resolve_devices("cuda:1,cuda:2", dev)) == [("cuda:1", "1"), ("cuda:2", "2")]


def test_a_container_that_was_given_the_third_gpu_has_cuda_0(tmp_path: Path) -> None:
    assert _names_and_gpus(resolve_devices("auto", _dev(tmp_path, "nvidia2"))) == [("cuda:0", "0")]


@pytest.mark.parametrize(
    ("visible", "setting", "expected"),
    [
        ("2,3", "auto", [("cuda:0", "2"), ("cuda:1", "3")]),
        ("2,3", "cuda", [("cuda:0", "2"), ("cuda:1", "3")]),
        (" 2 , 3 ", "cuda:1", [("cuda:1", "3")]),
        ("GPU-8d1f,MIG-77aa", "cuda", [("cuda:0", "GPU-8d1f"), ("cuda:1", "MIG-77aa")]),
        ("", "auto", [("cpu", "")]),
        ("-1", "auto", [("cpu", "")]),
        ("1,-1,2", "auto", [("cuda:0", "1")]),
        ("", "cuda:0", [("cuda:0", "")]),
        ("2,3", "cuda:5", [("cuda:5", "")]),
        ("2,3", "cpu", [("cpu", "")]),
    ],
)
def test_a_hidden_gpu_stays_hidden(
    visible: str, setting: str, expected: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    dev = _dev(tmp_path, *(f"nvidia{i}" for i in range(8)))
    assert _names_and_gpus(resolve_devices(setting, dev)) == expected
