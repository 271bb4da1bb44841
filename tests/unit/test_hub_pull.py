"""Pulling a model from a server that speaks the hub's protocol: what is taken, kept, tried again and refused."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from safelight.checkpoint import open_checkpoint
from safelight.cli import main
from safelight.errors import CheckpointInvalid, CheckpointNotFound
from safelight.hub import client
from safelight.hub.manifest import MANIFEST_NAME, read_manifest
from safelight.hub.model_name import ModelName
from safelight.hub.snapshots import find_snapshot
from safelight.hub.verification import VERDICTS_NAME, verify
from tests.hub_server import TOKEN, HubServer, Trouble, folder_content
from tests.plain_http import NO_CERTIFICATES
from tests.unit.fake_checkpoint import TRANSFORMER_FILE, write_checkpoint
from tests.unit.fake_transformer import shapes_of, write_base, write_transformer

MODEL = "acme/tiny"
SHARD = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
VAE = f"vae/{TRANSFORMER_FILE}"
NOT_NEEDED = {
    "README.md": b"# a model",
    "grid.jpg": b"\xff\xd8",
    "flux1.safetensors": b"the same weights again",
    "pipeline.py": b"import os",
    "transformer/pipeline.py": b"import os",
    "transformer/diffusion_pytorch_model.safetensors": b"the same weights in one file",
    "text_encoder/pytorch_model.bin": b"\x80\x02",
    "text_encoder/model.fp16.safetensors": b"a variant",
    "vae/diffusion_pytorch_model.safetensors.index.fp16.json": b"{}",
    "safety_checker/model.safetensors": b"another component",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """It has one model, in which every needed file can be told from what is not needed."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_TOKEN_PATH", "SAFELIGHT_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "_BACK_OFF_S", 0.001)
    monkeypatch.setattr(httpx, "Client", functools.partial(httpx.Client, verify=NO_CERTIFICATES))
    with HubServer() as server:
        server.add(MODEL, folder_content(write_checkpoint(tmp_path / "source")) | NOT_NEEDED)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def pull(models: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(model: str = MODEL, *options: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["pull", model, "--models-dir", str(models), *options])
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return code, out if code == 0 else err.splitlines()[-1]

    return run


Pull = Callable[..., tuple[int, str]]


def _tree(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in folder_content(folder).items() if "safelight-" not in name}


def _content(hub: HubServer, commit: str) -> dict[str, bytes]:
    return {name: data for name, data in hub.repositories[MODEL].commits[commit].items() if name not in NOT_NEEDED}


def _commit(hub: HubServer) -> str:
    return hub.repositories[MODEL].branches["main"]


def test_what_a_checkpoint_needs_comes_and_nothing_else(hub: HubServer, models: Path, pull: Pull) -> None:
    code, out = pull()
    commit = _commit(hub)
    folder = models / MODEL / commit
    assert code == 0
    assert f"{MODEL}@{commit}" in out
    assert f"safelight serve --model {MODEL}" in out
    assert _tree(folder) == _content(hub, commit)
    assert open_checkpoint(MODEL, models).path == folder
    assert not {asked.path.rpartition(f"{commit}/")[2] for asked in hub.asked} & set(NOT_NEEDED)
    assert sorted(path.name for path in (models / MODEL).iterdir()) == [".lock", commit]


def test_the_manifest_has_commit_endpoint_sizes_and_hashes(hub: HubServer, models: Path, pull: Pull) -> None:
    pull()
    commit = _commit(hub)
    manifest = read_manifest(models / MODEL / commit)
    assert manifest is not None
    assert (manifest.repository, manifest.commit, manifest.revision) == (MODEL, commit, "main")
    assert manifest.endpoint == hub.url
    assert {name: (record.size_bytes, record.sha256) for name, record in manifest.files.items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in _content(hub, commit).items()
    }


def test_models_are_for_their_user_only(hub: HubServer, models: Path, pull: Pull) -> None:
    before = os.umask(0)
    try:
        pull()
    finally:
        os.umask(before)
    for path in (models / MODEL).rglob("*"):
        is_private = path.stat().st_mode & 0o077 == 0
        assert is_private or path.name in (MANIFEST_NAME, VERDICTS_NAME), path
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (models / MODEL).rglob("*") if path.is_dir())


def test_pulled_again_it_is_verified_and_no_file_comes(hub: HubServer, pull: Pull) -> None:
    pull()
    asked = len(hub.asked)
    code, out = pull()
    assert (code, "all there already" in out) == (0, True)
    assert [request.path for request in hub.asked[asked:]] == [f"api/models/{MODEL}/revision/main"]


def test_a_pinned_commit_that_is_there_needs_no_hub(hub: HubServer, pull: Pull) -> None:
    pull()
    asked = len(hub.asked)
    assert pull(f"{MODEL}@{_commit(hub)}")[0] == 0
    assert len(hub.asked) == asked


def test_a_branch_is_pinned_to_the_commit_that_it_was(hub: HubServer, models: Path, pull: Pull, tmp_path: Path) -> None:
    main_commit = _commit(hub)
    other = write_checkpoint(tmp_path / "other", card=None, guidance_embeds=False)
    branch_commit = hub.add(MODEL, other, branch="refs/pr/1")
    assert pull(f"{MODEL}@refs/pr/1")[0] == 0
    assert f"api/models/{MODEL}/revision/refs/pr/1" in [asked.path for asked in hub.asked]
    assert open_checkpoint(MODEL, models).path.name == branch_commit
    assert pull()[0] == 0
    assert open_checkpoint(MODEL, models).path.name == main_commit
    for revision in ("refs/pr/1", branch_commit, branch_commit[:7]):
        found = find_snapshot(models, ModelName(MODEL, revision))
        assert found is not None and found.name == branch_commit, revision
    assert find_snapshot(models, ModelName(MODEL, "v2")) is None
    assert pull(f"{MODEL}@refs/pr/1")[0] == 0
    assert open_checkpoint(MODEL, models).path.name == branch_commit, "the one that was pulled last"


def test_of_a_new_commit_only_changed_files_come(hub: HubServer, models: Path, pull: Pull) -> None:
    pull()
    first = _commit(hub)
    changed = hub.repositories[MODEL].commits[first] | {"vae/config.json": b'{"new": 1}', "README.md": b"more"}
    second = hub.add(MODEL, changed)
    hub.sent_bytes.clear()
    assert pull()[0] == 0
    assert set(hub.sent_bytes) >= {"vae/config.json"}
    assert not [name for name in hub.sent_bytes if name.endswith(".safetensors")]
    assert _tree(models / MODEL / second) == _content(hub, second)
    assert (models / MODEL / first / SHARD).samefile(models / MODEL / second / SHARD)


def test_a_damaged_snapshot_is_repaired_by_the_file_that_is_wrong(hub: HubServer, models: Path, pull: Pull) -> None:
    pull()
    commit = _commit(hub)
    path = models / MODEL / commit / SHARD
    path.write_bytes(b"\0" * path.stat().st_size)
    (models / MODEL / commit / "scheduler" / "config.json").unlink()
    hub.sent_bytes.clear()
    assert pull()[0] == 0
    assert set(hub.sent_bytes) == {SHARD, "scheduler/config.json"}
    assert _tree(models / MODEL / commit) == _content(hub, commit)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: HubServer, models: Path, pull: Pull, tmp_path: Path
) -> None:
    hub.repositories[MODEL].is_gated = True
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert pull(MODEL, "--token-file", str(tmp_path / "token"))[0] == 0
    sent = {
        asked.host: {a.headers.get("authorization") for a in hub.asked if a.host == asked.host} for asked in hub.asked
    }
    assert sent == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}
    for path in models.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("place", ["SAFELIGHT_HUB_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "login"])
def test_a_token_is_found_where_the_hubs_own_tools_keep_it(
    place: str, hub: HubServer, pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[MODEL].is_private = True
    if place == "login":
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(TOKEN)
    else:
        monkeypatch.setenv(place, TOKEN)
    assert pull()[0] == 0


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(status=429, headers={"retry-after": "0"}),
        Trouble(status=503),
        Trouble(status=403),  # at the second host: the signed address is too old
        Trouble(cut_after=5),
        Trouble(cut_after=5, has_length=False),
    ],
    ids=["429", "503", "expired", "broken", "broken without length"],
)
def test_what_may_pass_is_tried_again(trouble: Trouble, hub: HubServer, models: Path, pull: Pull) -> None:
    hub.troubles[SHARD].extend([trouble] * 3)
    hub.troubles["api"].append(Trouble(status=502))
    assert pull()[0] == 0
    assert _tree(models / MODEL / _commit(hub)) == _content(hub, _commit(hub))
    if trouble.cut_after is not None:
        ranges = [asked.headers.get("range") for asked in hub.requests_of(SHARD) if asked.host == "cdn"]
        assert ranges == [None, "bytes=5-", "bytes=10-", "bytes=15-"], "it goes on where it broke"
        assert hub.sent_bytes[SHARD] == len(_content(hub, _commit(hub))[SHARD])


def test_retry_after_is_kept_to(hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client.HubClient, "pause", lambda _, seconds: waited.append(seconds))
    hub.troubles["api"].extend([Trouble(status=429, headers={"retry-after": "7"}), Trouble(status=503)])
    assert pull()[0] == 0
    assert waited[0] == 7
    assert waited[1] < 1


def test_a_retry_after_of_hours_ends_the_pull(hub: HubServer, pull: Pull) -> None:
    hub.troubles["api"].append(Trouble(status=429, headers={"retry-after": "7200"}))
    code, sentence = pull()
    assert code == 1
    assert "it asks to wait 7200 s" in sentence


def test_a_host_that_falls_silent_is_asked_again(
    hub: HubServer, models: Path, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_TIMEOUT", httpx.Timeout(0.3))
    hub.troubles[SHARD].append(Trouble(hold_after=5))
    assert pull()[0] == 0
    assert hub.requests_of(SHARD)[-1].headers["range"] == "bytes=5-"
    assert _tree(models / MODEL / _commit(hub)) == _content(hub, _commit(hub))


def test_a_host_without_ranges_begins_anew(hub: HubServer, models: Path, pull: Pull) -> None:
    hub.troubles[SHARD].extend([Trouble(cut_after=5), Trouble(ignores_range=True)])
    assert pull()[0] == 0
    assert _tree(models / MODEL / _commit(hub)) == _content(hub, _commit(hub))


def test_a_file_that_arrives_damaged_is_fetched_again(hub: HubServer, models: Path, pull: Pull) -> None:
    hub.troubles[SHARD].append(Trouble(is_damaged=True))
    hub.troubles["vae/config.json"].append(Trouble(is_damaged=True))
    assert pull()[0] == 0
    assert _tree(models / MODEL / _commit(hub)) == _content(hub, _commit(hub))


@pytest.mark.parametrize("name", [SHARD, "vae/config.json"], ids=["sha256", "git's sha1"])
def test_a_file_that_is_always_damaged_is_refused_by_name(name: str, hub: HubServer, models: Path, pull: Pull) -> None:
    hub.troubles[name].extend([Trouble(is_damaged=True)] * 5)
    code, sentence = pull()
    assert code == 1
    assert f"{name} of {MODEL} arrived damaged twice" in sentence
    assert find_snapshot(models, ModelName(MODEL)) is None


def test_what_arrived_before_an_end_is_not_asked_for_again(hub: HubServer, models: Path, pull: Pull) -> None:
    hub.troubles[SHARD].append(Trouble(cut_after=5))
    hub.troubles[SHARD].extend([Trouble(status=500)] * 5)
    code, sentence = pull()
    assert (code, "goes on where it was" in sentence) == (1, True)
    assert find_snapshot(models, ModelName(MODEL)) is None
    assert pull()[0] == 0
    assert hub.sent_bytes[SHARD] == len(_content(hub, _commit(hub))[SHARD])
    assert hub.requests_of(SHARD)[-1].headers["range"] == "bytes=5-"


def test_a_file_that_changed_meanwhile_begins_anew(hub: HubServer, models: Path, pull: Pull) -> None:
    hub.troubles[SHARD].append(Trouble(cut_after=5))
    hub.troubles[SHARD].extend([Trouble(status=500)] * 5)
    assert pull()[0] == 1
    content = hub.repositories[MODEL].commits[_commit(hub)]
    second = hub.add(MODEL, content | {SHARD: content[SHARD][:-1] + b"\1"})
    asked = len(hub.requests_of(SHARD))
    assert pull()[0] == 0
    assert "range" not in hub.requests_of(SHARD)[asked].headers
    assert _tree(models / MODEL / second) == _content(hub, second)


def _is_gated(hub: HubServer) -> str:
    hub.repositories[MODEL].is_gated = True
    return f"{MODEL} is gated: accept its conditions at {hub.url}/{MODEL}, then give a token with --token-file"


def _is_gated_for_this_token(hub: HubServer) -> str:
    hub.repositories[MODEL].is_gated = True
    hub.readers.clear()
    os.environ["HF_TOKEN"] = TOKEN
    return f"{MODEL} is gated, and the account of the token of HF_TOKEN has no access: accept its conditions"


def _is_private(hub: HubServer) -> str:
    hub.repositories[MODEL].is_private = True
    return f"has no repository {MODEL}, or it is private: check the name, or give a token with --token-file"


def _is_not_there(hub: HubServer) -> str:
    hub.repositories.clear()
    os.environ["HF_TOKEN"] = TOKEN
    return f"has no repository {MODEL} that the token of HF_TOKEN may see"


def _knows_no_such_token(hub: HubServer) -> str:
    os.environ["HF_TOKEN"] = TOKEN
    hub.known_tokens.clear()
    return f"does not accept the token of HF_TOKEN: make a new one at {hub.url}/settings/tokens"


def _has_no_such_branch(hub: HubServer) -> str:
    hub.repositories[MODEL].branches.clear()
    return f"{MODEL} has no revision 'main': name a branch, tag or commit"


def _forbids_it(hub: HubServer) -> str:
    os.environ["HF_TOKEN"] = TOKEN
    hub.troubles["api"].append(Trouble(status=403))
    return f"the token of HF_TOKEN may not read {MODEL}: allow it to read public gated repositories"


def _is_down(hub: HubServer) -> str:
    hub.troubles["api"].extend([Trouble(status=503)] * 5)
    return "cannot be reached (it answered 503): check the network and proxy"


def _answers_a_teapot(hub: HubServer) -> str:
    hub.troubles["api"].append(Trouble(status=418))
    return f"answered 418 for {MODEL}"


def _is_no_hub(hub: HubServer) -> str:
    hub.troubles["api"].append(Trouble(status=204))
    return "cannot be read: is --endpoint a Hugging Face hub?"


def _redirects_without_end(hub: HubServer) -> str:
    hub.troubles["api"].extend(
        [Trouble(status=302, headers={"location": hub.url + f"/api/models/{MODEL}/revision/main"})] * 50
    )
    return "cannot be used: TooManyRedirects"


def _has_single_files_only(hub: HubServer) -> str:
    hub.add(MODEL, {"flux1-dev.safetensors": b"1"})
    return (
        f"{MODEL} has no model_index.json: it is no checkpoint in diffusers layout; name one of its files as {MODEL}/"
    )


def _has_pickles_only(hub: HubServer) -> str:
    hub.add(MODEL, {"model_index.json": b"{}", "vae/diffusion_pytorch_model.bin": b"1"})
    return "has no weights in safetensors, and no others are loaded"


def _is_another_pipeline(hub: HubServer) -> str:
    content = hub.repositories[MODEL].commits[_commit(hub)]
    hub.add(MODEL, content | {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}'})
    return "is for StableDiffusionPipeline, not FluxPipeline"


def _leads_out_of_its_folder(hub: HubServer) -> str:
    hub.add(MODEL, {"vae/../../../../etc/cron.json": b"{}"})
    return "has a file with a name that is not safe"


def _has_a_hash_that_leads_out_of_its_folder(hub: HubServer) -> str:
    hub.lies = {"blobId": "../../../../tmp/owned", "lfs": None}
    return f"the hub names no hash for model_index.json of {MODEL}"


def _knows_no_hashes(hub: HubServer) -> str:
    hub.lies = {"blobId": "", "lfs": None}
    return "the hub names no hash for "


REFUSALS = [
    _has_a_hash_that_leads_out_of_its_folder,
    _knows_no_hashes,
    _is_gated,
    _is_gated_for_this_token,
    _is_private,
    _is_not_there,
    _knows_no_such_token,
    _has_no_such_branch,
    _forbids_it,
    _is_down,
    _answers_a_teapot,
    _is_no_hub,
    _redirects_without_end,
    _has_single_files_only,
    _has_pickles_only,
    _is_another_pipeline,
    _leads_out_of_its_folder,
]


@pytest.mark.parametrize("reason", REFUSALS, ids=lambda reason: reason.__name__.strip("_"))
def test_a_refusal_is_one_sentence_with_its_remedy(
    reason: Callable[[HubServer], str], hub: HubServer, models: Path, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    expected = reason(hub)
    code, sentence = pull()
    assert code == 1
    assert expected in sentence
    assert find_snapshot(models, ModelName(MODEL)) is None
    assert not [name for name in hub.sent_bytes if name.endswith(".safetensors")], "known before the weights come"


def test_without_a_network_it_says_so(hub: HubServer, pull: Pull) -> None:
    code, sentence = pull(MODEL, "--endpoint", "http://127.0.0.1:9")
    assert code == 1
    assert "http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused): check the network" in sentence


def test_too_little_space_is_known_before_the_first_byte(
    hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    code, sentence = pull()
    assert code == 1
    assert "GB more in" in sentence and "--models-dir" in sentence
    assert not hub.sent_bytes


def test_a_disk_that_fills_up_ends_it_in_a_sentence(
    hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safelight.hub.download._write", full)
    code, sentence = pull()
    assert (code, "no space is left in" in sentence) == (1, True)


def test_a_directory_that_cannot_be_written_is_named(hub: HubServer, pull: Pull, models: Path) -> None:
    models.write_text("a file")
    code, sentence = pull()
    assert code == 1
    assert (
        f"{models}/{MODEL} cannot be written: Not a directory: change its permissions, or choose --models-dir"
        in sentence
    )


def test_two_pulls_of_one_model_do_not_meet(hub: HubServer, pull: Pull, models: Path) -> None:
    (models / MODEL).mkdir(parents=True)
    with (models / MODEL / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, sentence = pull()
    assert (code, "another pull writes to" in sentence) == (1, True)
    assert pull()[0] == 0


@pytest.mark.parametrize(
    "model", ["tiny", "acme/tiny@", "acme/../tiny", "/acme/tiny", "acme/tiny@a..b", "a/b/c", "acme/ti ny"]
)
def test_what_is_no_name_is_refused(model: str, hub: HubServer, pull: Pull) -> None:
    code, sentence = pull(model)
    assert (code, "OWNER/NAME" in sentence) == (1, True)
    assert not hub.asked


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--endpoint", "ftp://hub"], "is not an address"),
        (["--endpoint", "https://me:secret@hub"], "user's name or password"),
        (["--token-file", "/no/such/file"], "cannot be read: No such file"),
        (["--token-file", "two words"], "holds no token"),
        (["--token-file", "token", "--endpoint", "http://hub.example.org"], "for everybody to read"),
    ],
)
def test_a_wrong_option_is_exit_code_2(
    options: list[str], sentence: str, hub: HubServer, pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two words").write_text("two words")
    Path("token").write_text(TOKEN)
    code, found = pull(MODEL, *options)
    assert (code, sentence in found, "secret" in found) == (2, True, False)


def test_half_a_snapshot_is_none(hub: HubServer, models: Path, pull: Pull) -> None:
    pull()
    folder = models / MODEL / _commit(hub)
    folder.rename(models / MODEL / f".new-{folder.name}")
    assert find_snapshot(models, ModelName(MODEL)) is None
    assert pull()[0] == 0
    (folder / MANIFEST_NAME).unlink()
    assert find_snapshot(models, ModelName(MODEL)) is None
    assert pull()[0] == 0
    assert json.loads((folder / MANIFEST_NAME).read_text())["commit"] == folder.name


FILES = "acme/files"
DEV, SCHNELL = "flux1-dev-fp8.safetensors", "more/flux1-schnell-fp8.safetensors"


@pytest.fixture
def files_hub(hub: HubServer, tmp_path: Path) -> HubServer:
    """Beside the checkpoint, a repository of single files, and one that has a checkpoint that fits them."""
    dev = write_transformer(tmp_path / "dev.safetensors", shapes_of(1, 1)).read_bytes()
    schnell = write_transformer(tmp_path / "schnell.safetensors", shapes_of(1, 1, guidance=False)).read_bytes()
    hub.add(FILES, {DEV: dev, SCHNELL: schnell, "README.md": b"files", "a.gguf": b"GGUF"})
    hub.add("acme/base", folder_content(write_base(tmp_path / "base")) | {"flux1.safetensors": dev})
    return hub


def test_one_file_comes_alone_and_is_served_with_a_base(files_hub: HubServer, models: Path, pull: Pull) -> None:
    code, out = pull(f"{FILES}/{DEV}")
    assert code == 0
    assert f"safelight serve --model {FILES}/{DEV} --base-model MODEL" in out
    commit = files_hub.repositories[FILES].branches["main"]
    assert set(_tree(models / FILES / commit)) == {DEV}
    assert pull("acme/base")[0] == 0
    for name in (f"{FILES}/{DEV}", f"{FILES}/{DEV}@main", f"{FILES}/{DEV}@{commit[:9]}"):
        checkpoint = open_checkpoint(name, models, "acme/base")
        assert (checkpoint.path, checkpoint.card.id) == (models / FILES / commit / DEV, f"{FILES}/{DEV}")


def test_files_of_one_commit_are_kept_beside_each_other(files_hub: HubServer, models: Path, pull: Pull) -> None:
    pull(f"{FILES}/{DEV}")
    pull(f"{FILES}/{SCHNELL}")
    (folder,) = (path for path in (models / FILES).iterdir() if path.is_dir())
    assert set(_tree(folder)) == {DEV, SCHNELL}
    manifest = read_manifest(folder)
    assert manifest is not None and set(manifest.files) == {DEV, SCHNELL}
    asked = len(files_hub.requests_of(DEV))
    assert pull(f"{FILES}/{DEV}")[0] == pull(f"{FILES}/{DEV}@{folder.name}")[0] == 0
    assert len(files_hub.requests_of(DEV)) == asked


def test_a_whole_checkpoint_and_a_single_file_of_its_repository_go_together(
    files_hub: HubServer, models: Path, pull: Pull
) -> None:
    commit = files_hub.repositories["acme/base"].branches["main"]
    assert pull("acme/base/flux1.safetensors")[0] == 0
    with pytest.raises(CheckpointNotFound):
        open_checkpoint("acme/base", models)
    assert pull(f"acme/base@{commit}")[0] == 0
    assert open_checkpoint("acme/base", models).path == models / "acme" / "base" / commit
    single = open_checkpoint("acme/base/flux1.safetensors", models, "acme/base")
    assert list(single.folders) == [models / "acme" / "base" / commit]
    (is_used,) = single.folders.values()
    assert is_used("flux1.safetensors") and is_used("vae/config.json") and not is_used("transformer/config.json")


def test_a_base_comes_without_its_transformer_which_may_follow(files_hub: HubServer, models: Path, pull: Pull) -> None:
    code, out = pull("acme/base", "--base-only")
    commit = files_hub.repositories["acme/base"].branches["main"]
    assert code == 0 and "safelight serve --model FILE --base-model acme/base" in out
    assert not (models / "acme" / "base" / commit / "transformer").exists()
    pull(f"{FILES}/{DEV}")
    assert open_checkpoint(f"{FILES}/{DEV}", models, "acme/base").components
    before = len(files_hub.requests_of(VAE))
    assert pull(f"acme/base@{commit}")[0] == 0
    assert open_checkpoint("acme/base", models).components
    assert len(files_hub.requests_of(VAE)) == before


def test_damage_to_other_files_of_a_snapshot_is_no_matter(files_hub: HubServer, models: Path, pull: Pull) -> None:
    pull(f"{FILES}/{DEV}")
    pull(f"{FILES}/{SCHNELL}")
    pull("acme/base", "--base-only")
    folder = models / FILES / files_hub.repositories[FILES].branches["main"]
    (folder / SCHNELL).write_bytes(b"")
    checkpoint = open_checkpoint(f"{FILES}/{DEV}", models, "acme/base")
    for used, is_used in checkpoint.folders.items():
        verify(used, is_used=is_used)
    data = bytearray((folder / DEV).read_bytes())
    data[-1] ^= 1
    (folder / DEV).write_bytes(data)
    with pytest.raises(CheckpointInvalid, match=DEV):
        for used, is_used in checkpoint.folders.items():
            verify(used, is_used=is_used)
    assert pull(f"{FILES}/{DEV}")[0] == 0
    assert set(_tree(folder)) == {DEV}, "what was damaged is not taken along"


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (f"{FILES}/no.gguf", (), f"{FILES} has no file no.gguf; name one of its files as {FILES}/FILE: a.gguf, {DEV}"),
        (FILES, (), f"{FILES} has no model_index.json: it is no checkpoint in diffusers layout; name one of its files"),
        (f"{FILES}/a.gguf", (), "a.gguf is truncated in its header"),
        (f"{FILES}/{DEV}", ("--base-only",), "is a single file"),
        (f"{FILES}/README.md", (), "is no model of the hub: OWNER/NAME or OWNER/NAME/FILE"),
        (f"{FILES}/../x.gguf", (), "is no model of the hub"),
    ],
)
def test_what_is_no_single_file_is_said(
    model: str, options: tuple[str, ...], sentence: str, files_hub: HubServer, pull: Pull
) -> None:
    code, message = pull(model, *options)
    assert code == 1
    assert sentence in message
