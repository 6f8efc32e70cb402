"""Run folders on gs://, through Google's own clients, on an emulator of its service."""

import http.server
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from small import batch_size, cdp, quick_environment
from small import report as read_report
from test_monitoring import scalars

from mirigor_jax import config_files, files, kinds
from mirigor_jax.data import array_files
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError
from mirigor_jax.runs.folder import RunFolder

pytestmark = pytest.mark.compiles

JOB, WATCHED = cdp(), ("--tensorboard", "--profile")
STUDY = [option for option in batch_size(Path()) if not option.startswith("--workdir")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def of_server(url: str) -> dict[str, str]:
    """The environment that gives gcsfs and TensorStore the service's address and credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google's own service of each bucket's kind
    }


@pytest.fixture(scope="module")
def server():
    """The address of an emulator that has the bucket `bucket`; this process's clients go there."""
    url = f"http://localhost:{(port := free_port())}"
    options = [f"--port={port}", "--in-memory", "--default-bucket=bucket", "--quiet"]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in of_server(url).items():
                patch.setenv(name, value)
            for _ in range(200):
                try:
                    objects(url)
                    break
                except OSError:
                    time.sleep(0.1)
            yield url
        process.kill()


def objects(url: str, prefix: str = "") -> list[str]:
    """The names of the bucket's objects, as the server itself lists them."""
    with urllib.request.urlopen(f"{url}/storage/v1/b/bucket/o?prefix={urllib.parse.quote(prefix)}") as answer:
        return [item["name"] for item in json.load(answer).get("items", [])]


def put(url: str, name: str, data: bytes) -> None:
    """Write an object as another client."""
    where = f"{url}/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
    urllib.request.urlopen(urllib.request.Request(where, data, method="POST")).close()


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """Start `main` in its own process, on one device."""
    environment = quick_environment() | environment
    warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]  # aiohttp's, of what gcsfs sends at once
    command = [sys.executable, *warnings, "-m", "mirigor_jax.main", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, **environment)
    output, errors = process.communicate(timeout=500)
    return process.returncode, output, errors


def report(folder: str) -> dict:
    return read_report(files.to_path(folder))


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> str:
    """The folder of the same job, run locally and without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "local"
    code, _, errors = run(*JOB, *WATCHED, f"--workdir={folder}")
    assert code == 0, errors
    return str(folder)


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_and_continued_is_the_local_one(server, local, tmp_path):
    with start(*JOB, *WATCHED, "--workdir=gs://bucket/runs/one") as process:
        while not objects(server, "runs/one/train/2/commit_success.txt"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not objects(server, "runs/one/report.json")
    code, output, errors = run(*JOB, *WATCHED, "--workdir=gs://bucket/runs/one")
    assert code == 0, errors
    assert "train continues from step" in output
    assert "report: gs://bucket/runs/one/report.md" in output
    assert report("gs://bucket/runs/one") == report(local)
    stored = {name.removeprefix("runs/one/") for name in objects(server, "runs/one/")}
    on_disk = {path.relative_to(local).as_posix() for path in Path(local).rglob("*") if path.is_file()}
    # Checkpoints have files of their own names, and more where a rename can't say that they are whole.
    outside = {name for name in stored | on_disk if not name.startswith(("train/", "estimates/color/critic/"))}
    assert outside & stored == (outside & on_disk) - {".lock"}
    events = [name for name in stored if name.startswith("tensorboard/train/")]
    assert len(events) == 6
    for name in events:
        (tmp_path / Path(name).name).write_bytes(files.to_path(f"gs://bucket/runs/one/{name}").read_bytes())
    assert scalars(tmp_path) == scalars(Path(local) / "tensorboard" / "train")
    again, output, _ = run(*JOB, "--workdir=gs://bucket/runs/one")
    assert (again, output.count("finished before, skipped")) == (0, 4)


@pytest.mark.slow
def test_an_encoder_in_a_bucket_is_re_estimated(server, local):
    config = "--config=configs/estimate.py:pairing=none,k_est=32"
    code, _, errors = run(*JOB, "--workdir=gs://bucket/runs/two")
    assert code == 0, errors
    for folder in ("gs://bucket/runs/two", local):
        code, output, errors = run(config, f"--config.restore={folder}")
        assert (code, "train:" in output) == (0, False), errors
    contents = report("gs://bucket/runs/two")
    assert set(contents["estimates"]) == {"color", "none-k=32"}
    assert contents == report(local)


@pytest.mark.slow
def test_processes_share_a_run_in_a_bucket(server, local):
    port = free_port()
    peers = (f"--coordinator=localhost:{port}", "--processes=2")
    each = [start(*JOB, *peers, f"--process={i}", "--workdir=gs://bucket/runs/both") for i in (0, 1)]
    output = [process.communicate(timeout=500) for process in each]
    assert [process.returncode for process in each] == [0, 0], output
    both, one = report("gs://bucket/runs/both"), report(local)
    for name in ("info_nce_bits", "lower_bits", "nt_xent_bits"):
        assert both["estimate"][name] == pytest.approx(one["estimates"]["color"][name], rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_a_study_in_a_bucket_gathers_the_cells_of_several_jobs(server):
    folder = "--workdir=gs://bucket/studies/batch_size"
    for cell in ("1/2", "2/2"):
        code, _, errors = run(*STUDY, folder, f"--config.study.only={cell}")
        assert code == 0, errors
    code, output, errors = run(*STUDY, folder)
    assert code == 0, errors
    assert "2 runs, 2 asked for, 2 of these finished before" in output
    report = json.loads(files.to_path("gs://bucket/studies/batch_size/study.json").read_text())
    assert [row["cell"] for row in report["rows"]] == ["resnet18-k=2-seed=0", "resnet18-k=4-seed=0"]
    table = files.to_path("gs://bucket/studies/batch_size/study.md").read_text()
    assert "2 of 2 runs finished." in table
    assert "![batch_size](figures/batch_size.png)" in table


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_may_not_be_read_is_named_in_one_line(status):
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status, "not for you")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Refuse) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        url = of_server(f"http://localhost:{refusing.server_port}")
        commands = {
            "run folder 'gs://bucket/run'": (*JOB, "--workdir=gs://bucket/run"),
            "run folder 'gs://bucket/study'": (*STUDY, "--workdir=gs://bucket/study"),
            "config.restore='gs://bucket/run'": ("--config=configs/estimate.py", "--config.restore=gs://bucket/run"),
        }
        ends = {folder: run(*command, **url) for folder, command in commands.items()}
        refusing.shutdown()
    for folder, (code, _, errors) in ends.items():
        assert (code, errors.count("\n")) == (2, 1), errors
        assert errors.startswith(f"error: {folder} cannot be read (")


WRONG = {
    "gs://none/run": (*JOB, "--workdir=gs://none/run"),
    "gs://none/again": ("--config=configs/estimate.py", "--config.restore=gs://none/again"),
    "gs://bucket/nothing": ("--config=configs/estimate.py", "--config.restore=gs://bucket/nothing"),
    "s3://bucket/run": (*JOB, "--workdir=s3://bucket/run"),
    "gs://": (*JOB, "--workdir=gs://"),
    "gs://bucket/x.npy": ("--config=configs/arrays.py", "--config.x=gs://bucket/x.npy", "--config.labels=none.npy"),
    "gs://bucket/h.npz": ("--config=configs/encoder.py", "--config.data.source=features:gs://bucket/h.npz"),
    "gs://bucket/study": (*STUDY, "--workdir=gs://bucket/other", "--config.study.sources=gs://bucket/study"),
}


@pytest.mark.parametrize("named", WRONG)
def test_what_is_not_in_a_bucket_is_named_in_one_line(server, named):
    config, name, workdir, given = config_files.parse([*WRONG[named]])
    with pytest.raises(InputError, match=re.escape(named)) as raised:
        kinds.run(config, name, workdir, given=given)
    assert "\n" not in str(raised.value)
    assert objects(server, "run/") == objects(server, "other/") == []


def test_without_gcsfs_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'gs://bucket/run'.*pip install -e '\.\[gcs\]'"):
        files.to_path("gs://bucket/run")
    assert files.to_path("run") == Path("run")


def test_an_object_is_replaced_whole_or_not_at_all(server):
    path = files.to_path("gs://bucket/files/config.json")
    files.write_json(path, {"seed": 1})

    def fail(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files._write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"seed": 1}
    files.write_arrays(path.parent / "h.npz", {"h": np.arange(6.0).reshape(2, 3)})
    np.testing.assert_array_equal(files.read_arrays(path.parent / "h.npz")["h"], [[0, 1, 2], [3, 4, 5]])
    files.write_figure(path.parent / "bars.png", Figure())
    assert (path.parent / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(objects(server, "files/")) == [f"files/{name}" for name in ("bars.png", "config.json", "h.npz")]
    files.remove_tree(path.parent)
    assert objects(server, "files/") == []


def test_what_another_client_wrote_is_seen_at_once(server):
    folder = files.to_path("gs://bucket/shared")
    files.write_text(folder / "mine", "")
    assert [path.name for path in folder.iterdir()] == ["mine"]
    put(server, "shared/theirs", b"new")
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "theirs"]
    assert (folder / "theirs").exists()


def test_samples_and_features_are_read_from_a_bucket(server):
    whole = io.BytesIO()
    np.savez(whole, h=np.ones((4, 2), np.float32), labels=np.array([0, 1, 0, 1]))
    put(server, "data/h.npz", whole.getvalue())
    put(server, "data/x.csv", "a,b\n1,2\n3,4\n".encode("utf-8-sig"))
    np.testing.assert_array_equal(array_files.read("gs://bucket/data/x.csv", "x"), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(array_files.read("gs://bucket/data/h.npz:h", "x"), np.ones((4, 2)))
    assert len(labeled("features:gs://bucket/data/h.npz")["train"]) > 0


@pytest.mark.parametrize("text", ["gs://bucket/locked", ""])
def test_a_bucket_has_no_lock(server, tmp_path, text):
    folder = RunFolder.at(text or str(tmp_path))
    with folder.lock(), nullcontext() if text else pytest.raises(InputError), folder.lock():
        pass
