"""The launch scripts: the commands that they print, written here by hand, and runs with fakes of SLURM and gcloud."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("tpu_vm.sh", "slurm.sbatch", "array.sh", "paper_scale.sh")
STUDY = "--config=configs/studies/batch_size.py:encoders=resnet18,k=2+8,seeds=2"  # four runs
CRITICS = "--config=configs/studies/high_mi.py:only=nwj-in-batch+js-in-batch"  # trainings of another kind of study
PAPER_TRAININGS = (
    "scale=paper,only=fig1d-mine-512-shuffle-elu+fig3-js-512-0.0005-shuffle-elu+fig2a-nwj-512-0.0005-shuffle-elu+"
    "fig1-mine-1024-shuffle-elu+fig1-mine-256-shuffle-elu+fig3-js-regularized-0.0005-shuffle-elu+"
    "fig2b-nwj-256-shuffle-elu+fig2b-nwj-1024-shuffle-elu+fig2b-nwj-4096-shuffle-elu+fig2b-nwj-64-shuffle-elu"
)
SSH = "gcloud compute tpus tpu-vm ssh"
SCP = "gcloud compute tpus tpu-vm scp"
FETCH = (
    "git checkout -q --detach FETCH_HEAD; python3 -m pip install -q --user uv; "
    "python3 -m uv venv -q --allow-existing --python=3.11 .venv; "
    "python3 -m uv pip install -q --python=.venv -e .[tpu,gcs,tensorboard]'"
)
SHARE = (
    f"{SSH} {{}} --zone=us-west4-a --worker=all '--command=cd mirigor_jax || exit; printf '\\''%s\\n'\\'' {{}} | "
    f"nohup xargs -I{{{{}}}} .venv/bin/python -m mirigor_jax.main --verbose {STUDY} --config.study.only={{{{}}}} "
    ">>run.log 2>&1 &'"
)


def launch(command: str, *, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of launch/ from another folder than the root. Only the arguments can place it in a SLURM job."""
    remaining = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{Path(sys.executable).parent}:{remaining['PATH']}"
    script, *arguments = command.split()
    return subprocess.run(
        ["bash", root / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=root / "tests" if root == ROOT else root,
        env={**remaining, "PATH": path, "PYTHONPATH": str(ROOT)} | environment,
    )


def fake(folder: Path, **programs: str) -> str:
    """A PATH on which these programs are our own shell scripts."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


DRY = {
    "tpu_vm.sh create mi --accelerator-type=v5litepod-16 --zone=us-west4-a --spot": [
        "gcloud compute tpus queued-resources create mi --node-id=mi --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    ],
    "tpu_vm.sh create mi --accelerator-type=v5p-8": [
        "gcloud compute tpus queued-resources create mi --node-id=mi "
        "--accelerator-type=v5p-8 --runtime-version=v2-alpha-tpuv5"
    ],
    "tpu_vm.sh create mi --accelerator-type=v6e-8 --runtime-version=newest --project=lab": [
        "gcloud compute tpus queued-resources create mi --node-id=mi --project=lab "
        "--accelerator-type=v6e-8 --runtime-version=newest"
    ],
    "tpu_vm.sh install mi": [
        "mkdir -p build",
        "git bundle create --quiet build/mirigor_jax.bundle HEAD",
        f"{SCP} build/mirigor_jax.bundle mi: --worker=all",
        f"{SSH} mi --worker=all '--command=set -e; git init -q mirigor_jax; cd mirigor_jax; "
        f"git fetch -q ../mirigor_jax.bundle HEAD; {FETCH}",
    ],
    "tpu_vm.sh install mi --git=https://example.org/mirigor_jax": [
        f"{SSH} mi --worker=all '--command=set -e; git init -q mirigor_jax; cd mirigor_jax; "
        f"git fetch -q https://example.org/mirigor_jax HEAD; {FETCH}",
    ],
    "tpu_vm.sh run mi --zone=us-west4-a --config=configs/cdp.py:k=4096 --config.train.steps=10": [
        f"{SSH} mi --zone=us-west4-a --worker=all '--command=cd mirigor_jax || exit; nohup .venv/bin/python -m "
        "mirigor_jax.main --verbose --config=configs/cdp.py:k=4096 --config.train.steps=10 </dev/null >>run.log 2>&1 &'"
    ],
    "tpu_vm.sh run mi --config=configs/cdp.py --tensorboard": [
        f"{SSH} mi --worker=all '--command=cd mirigor_jax || exit; nohup .venv/bin/python -m mirigor_jax.main "
        "--verbose --config=configs/cdp.py --tensorboard </dev/null >>run.log 2>&1 &'"
    ],
    "tpu_vm.sh logs mi --worker=3": [f"{SSH} mi --worker=3 '--command=tail -n 100 -F mirigor_jax/run.log'"],
    "tpu_vm.sh fetch mi runs/cdp": ["mkdir -p runs", f"{SCP} --recurse mi:mirigor_jax/runs/cdp runs --worker=0"],
    "tpu_vm.sh fetch mi /data/cdp": ["mkdir -p /data", f"{SCP} --recurse mi:/data/cdp /data --worker=0"],
    "tpu_vm.sh fetch mi gs://lab/cdp": ["mkdir -p runs", "gcloud storage cp --recursive gs://lab/cdp runs"],
    "tpu_vm.sh delete mi --zone=us-west4-a": [
        "gcloud compute tpus queued-resources delete mi --zone=us-west4-a --force"
    ],
    "slurm.sbatch --nodes=2 --gpus-per-node=h100:4 --time=12:00:00 --config=configs/cdp.py --workdir=runs/two": [
        "sbatch --nodes=2 --gpus-per-node=h100:4 --time=12:00:00 --ntasks-per-node=4 launch/slurm.sbatch "
        "--config=configs/cdp.py --workdir=runs/two",
        "srun --kill-on-bad-exit=0 python -m mirigor_jax.main --verbose --config=configs/cdp.py --workdir=runs/two",
    ],
    "slurm.sbatch --cpus-per-task=8 --config=configs/cdp.py --profile": [
        "sbatch --cpus-per-task=8 --ntasks-per-node=1 launch/slurm.sbatch --config=configs/cdp.py --profile",
        "srun --kill-on-bad-exit=0 --cpus-per-task=8 python -m mirigor_jax.main --verbose --config=configs/cdp.py "
        "--profile",
    ],
    f"array.sh {STUDY} --gpus-per-node=1": [
        "sbatch --parsable --gpus-per-node=1 --array=1-4 --ntasks-per-node=1 launch/slurm.sbatch "
        f"--config.study.only=%a/4 {STUDY}",
        f"srun --kill-on-bad-exit=0 python -m mirigor_jax.main --verbose --config.study.only=%a/4 {STUDY}",
        "sbatch --parsable --gpus-per-node=1 --dependency=afterany:ARRAY --ntasks-per-node=1 launch/slurm.sbatch "
        f"{STUDY}",
        f"srun --kill-on-bad-exit=0 python -m mirigor_jax.main --verbose {STUDY}",
    ],
    f"array.sh {CRITICS} --gpus-per-node=1 --config.seed=1": [
        "sbatch --parsable --gpus-per-node=1 --array=1-2 --ntasks-per-node=1 launch/slurm.sbatch "
        f"--config.study.only=%a/2 {CRITICS} --config.seed=1",
        f"srun --kill-on-bad-exit=0 python -m mirigor_jax.main --verbose --config.study.only=%a/2 {CRITICS} "
        "--config.seed=1",
        "sbatch --parsable --gpus-per-node=1 --dependency=afterany:ARRAY --ntasks-per-node=1 launch/slurm.sbatch "
        f"{CRITICS} --config.seed=1",
        f"srun --kill-on-bad-exit=0 python -m mirigor_jax.main --verbose {CRITICS} --config.seed=1",
    ],
    "array.sh --config=configs/studies/label_noise.py --gpus-per-node=1": [
        "sbatch --parsable --gpus-per-node=1 --ntasks-per-node=1 launch/slurm.sbatch "
        "--config=configs/studies/label_noise.py",
        "srun --kill-on-bad-exit=0 python -m mirigor_jax.main --verbose --config=configs/studies/label_noise.py",
    ],
    f"array.sh {CRITICS} --tpu=a,b --table": [
        "mkdir -p runs",
        f"{SCP} --recurse a:mirigor_jax/runs/studies-high_mi-{CRITICS.partition(':')[2]} runs --worker=0",
        "mkdir -p runs",
        f"{SCP} --recurse b:mirigor_jax/runs/studies-high_mi-{CRITICS.partition(':')[2]} runs --worker=0",
        f"'python' '-m' 'mirigor_jax.main' '{CRITICS}'",
    ],
    f"array.sh {STUDY} --tpu=a,b,c --zone=us-west4-a": [
        SHARE.format("a", "1/4 4/4"),
        SHARE.format("b", "2/4"),
        SHARE.format("c", "3/4"),
    ],
    f"array.sh {STUDY} --tpu=a,b --table --workdir=runs/study": [
        "mkdir -p runs",
        f"{SCP} --recurse a:mirigor_jax/runs/study runs --worker=0",
        "mkdir -p runs",
        f"{SCP} --recurse b:mirigor_jax/runs/study runs --worker=0",
        f"'python' '-m' 'mirigor_jax.main' '{STUDY}' '--workdir=runs/study'",
    ],
    f"array.sh {STUDY} --tpu=a,b --table --workdir=gs://lab/study --tensorboard": [
        f"'python' '-m' 'mirigor_jax.main' '{STUDY}' '--workdir=gs://lab/study' '--tensorboard'",
    ],
    "paper_scale.sh --minutes=20 --workdir=x": [
        "timeout -k 30 -s TERM 600 python -m mirigor_jax.main --config=configs/studies/batch_size.py:"
        "scale=paper,encoders=resnet18,k=256+64+16,seeds=1 --workdir=x/batch_size",
        f"timeout -k 30 -s TERM 1200 python -m mirigor_jax.main --config=configs/studies/high_mi.py:{PAPER_TRAININGS} "
        "--config.run.epochs=200 --workdir=x/high_mi",
    ],
}

WRONG = {
    "tpu_vm.sh": "unknown verb '', expected create, install, run, logs, fetch or delete",
    "tpu_vm.sh start mi": "unknown verb 'start'",
    "tpu_vm.sh create": "give one name of a TPU VM: create NAME",
    "tpu_vm.sh create mi": "create needs --accelerator-type=",
    "tpu_vm.sh create mi --accelerator=v5p-8": "unknown option '--accelerator=v5p-8'",
    "tpu_vm.sh run mi --config.train.steps=3": "run needs --config=CONFIG",
    f"tpu_vm.sh run mi {STUDY} --only=1-4": "--only=1-4, expected cells such as 1/20,4/20",
    "tpu_vm.sh fetch mi": "fetch NAME FOLDER",
    "slurm.sbatch --nodes=2": "give --config=CONFIG",
    "slurm.sbatch --confg=x --config=configs/cdp.py 2": "unexpected argument '2'",
    "slurm.sbatch --config configs/cdp.py": "unknown option '--config'",
    "slurm.sbatch --gpus-per-node=h100 --config=configs/cdp.py": "--gpus-per-node ends with 'h100', expected a number",
    "array.sh": "give one --config=FILE",
    "array.sh --config=configs/cdp.py": "cdp is one run, expected a study",
    f"array.sh {STUDY} --table": "--table goes with --tpu=",
    "array.sh --config=configs/studies/label_noise.py --tpu=a,b": "this study has fits and no runs to spread",
    f"array.sh {STUDY} --tpu=a --nodes=2": "unknown option '--nodes=2'",
    "array.sh --config=configs/studies/certified.py --config.study.sources=nowhere": "no nowhere/study.json",
    "paper_scale.sh --minutes=0": "--minutes=0, expected a whole number from 1 to 9999",
    "paper_scale.sh --config=configs/cdp.py": "unexpected argument '--config=configs/cdp.py'",
}


@pytest.mark.parametrize("command", DRY)
def test_dry_run(command):
    done = launch(f"{command} --dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    # The script's own path is the one that it was called by.
    assert done.stdout.replace(f"{ROOT}/launch", "launch").splitlines() == DRY[command]


@pytest.mark.parametrize("command", WRONG)
def test_wrong_commands_are_told_in_one_line(command):
    done = launch(f"{command} --dry-run")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert WRONG[command] in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = launch(f"{script} --help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"launch/{script} ")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck():
    subprocess.run(["shellcheck", *(ROOT / "launch" / script for script in SCRIPTS)], check=True)


@pytest.mark.parametrize(("ends", "code"), [("exit 0", 0), ("exit 1", 1), ("kill $$", 0)])
def test_a_job_goes_back_into_the_queue_only_if_it_was_stopped(tmp_path, ends, code):
    path = fake(tmp_path, srun=f'echo "srun $*"\n{ends}', scontrol='echo "scontrol $*"')
    inside = {"PATH": path, "SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "8"}
    done = launch(f"slurm.sbatch {STUDY} --config.study.only=%a/4", **inside)
    assert done.returncode == code
    assert done.stdout.splitlines() == [
        f"srun --kill-on-bad-exit=0 --cpus-per-task=8 python -m mirigor_jax.main --verbose {STUDY} "
        "--config.study.only=3/4",
        *(["scontrol requeue 77"] if ends == "kill $$" else []),
    ]
    done = launch(f"slurm.sbatch --nodes=2 {STUDY}", **inside)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--nodes=2' inside job 77" in done.stderr


def test_the_papers_scale_writes_the_pages_of_what_its_time_allowed(tmp_path):
    first = tmp_path / "x" / "batch_size" / "resnet18-k=256-seed=0" / "report.json"
    first.parent.mkdir(parents=True)
    first.touch()  # of the other study no training is finished
    path = fake(tmp_path / "bin", timeout="exit 124", python='echo "$*"')
    done = launch(f"paper_scale.sh --workdir={tmp_path}/x", PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    (page,) = done.stdout.splitlines()
    assert page.endswith(f"seeds=1 --workdir={tmp_path}/x/batch_size --config.study.only=1/3")
    path = fake(tmp_path / "bin", timeout='echo "$1 $2 $3"; exit 2')
    done = launch("paper_scale.sh", PATH=path)
    assert (done.returncode, done.stdout) == (2, "-k 30 -s\n" * 2)  # a study that failed does not stop the other


def test_the_table_waits_for_the_array(tmp_path):
    path = fake(tmp_path, sbatch=f'echo "$*" >>{tmp_path}/calls\necho "1234;cluster"')
    assert launch(f"array.sh {STUDY}", PATH=path).returncode == 0
    array, table = (tmp_path / "calls").read_text().splitlines()
    assert "--array=1-4" in array
    assert "--dependency=afterany:1234 " in table


def test_a_worker_gets_the_commit_and_runs_detached(tmp_path):
    """A fake gcloud gives the workers' commands to bash, in one home folder here."""
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    (checkout / "launch").mkdir(parents=True)
    home.mkdir()
    shutil.copy(ROOT / "launch" / "tpu_vm.sh", checkout / "launch")
    git = ("git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(checkout))
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *arguments], check=True)
    here = subprocess.check_output([*git, "rev-parse", "HEAD"])
    last = 'last="${*: -1}"; bash -c "${last#--command=}"'
    gcloud = f'if [[ $4 == scp ]]; then cp "$5" {home}; else cd {home} && {{ {last}; }}; fi'
    path = fake(tmp_path / "bin", gcloud=gcloud, python3="exit 0")
    for _ in range(2):  # a second time brings it up to date
        done = launch("tpu_vm.sh install mi", root=checkout, PATH=path)
        assert (done.returncode, done.stderr) == (0, "")
    worker = home / "mirigor_jax"
    assert subprocess.check_output(["git", "-C", worker, "rev-parse", "HEAD"]) == here

    (worker / ".venv").mkdir()
    waits = "for _ in {1..400}; do [[ -e go ]] && break; sleep 0.05; done"
    fake(worker / ".venv" / "bin", python=f'{waits}\necho "$*"\n[[ $* != *=1/4 ]]')
    assert launch(f"tpu_vm.sh run mi {STUDY} --only=1/4,3/4", root=checkout, PATH=path).returncode == 0
    assert launch("tpu_vm.sh run mi --config=configs/cdp.py", root=checkout, PATH=path).returncode == 0
    log = worker / "run.log"
    assert not log.exists() or log.read_text() == ""  # both run on
    (worker / "go").touch()
    shares = [f"-m mirigor_jax.main --verbose {STUDY} --config.study.only={run}/4" for run in (1, 3)]
    wanted = {*shares, "-m mirigor_jax.main --verbose --config=configs/cdp.py"}
    until = time.monotonic() + 30
    while time.monotonic() < until and len(log.read_text().splitlines()) < len(wanted):
        time.sleep(0.05)
    lines = log.read_text().splitlines()
    assert set(lines) == wanted
    assert [line for line in lines if line in shares] == shares  # in turn, also behind one that failed
