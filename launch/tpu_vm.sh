#!/usr/bin/env bash
# Request a TPU VM or a multi-host slice, run on it and fetch the results, by gcloud commands. See --help.
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_vm.sh VERB NAME [--zone=ZONE] [--project=PROJECT] [--dry-run]     zone, project: gcloud's default if left out

  create NAME --accelerator-type=v5litepod-16 [--runtime-version=VERSION] [--spot]
                            request it; `gcloud compute tpus queued-resources describe NAME` says when it is ACTIVE
  install NAME [--git=URL]  install the commit that is checked out here, or URL's HEAD, on all workers, with Python 3.11
  run NAME --config=CONFIG [--config.KEY=VALUE …] [--workdir=FOLDER] [--tensorboard] [--profile] [--only=1/20,4/20]
                            start a run on all workers and return; the same command again continues it.
                            The log of worker 0 has all progress lines (--verbose).
                            --only=1/20,4/20 runs these cells of a study, one after another
  logs NAME [--worker=0]    follow the output of a worker
  fetch NAME FOLDER         copy the run folder that the log names to the same path here, or from gs:// into runs
  delete NAME               delete the VM, all that is on it, and the request

Works from this checkout's root. --dry-run prints the commands. Needs bash 4.4.
END
}

fail() {
  echo "error: $*; see launch/tpu_vm.sh --help" >&2
  exit 2
}

quoted() { # the words, quoted for a shell
  local word line=()
  for word; do
    [[ $word =~ ^[[:alnum:]_./:=,%+@-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  echo "${line[*]}"
}

go() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

cd "$(dirname "$0")/.."
dry_run="" type="" version="" spot=() url="" only="" worker=0 where=() arguments=() words=()
for word; do
  case $word in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --zone=?* | --project=?*) where+=("$word") ;;
    --accelerator-type=?*) type=${word#*=} ;;
    --runtime-version=?*) version=${word#*=} ;;
    --spot) spot=("$word") ;;
    --git=?*) url=${word#*=} ;;
    --only=?*) only=${word#*=} ;;
    --worker=?*) worker=${word#*=} ;;
    --config=?* | --config.?*=* | --workdir=?* | --tensorboard | --profile) arguments+=("$word") ;;
    -*) fail "unknown option '$word'" ;;
    *) words+=("$word") ;;
  esac
done
verb=${words[0]-} name=${words[1]-} folder=${words[2]-}
case $verb in
  fetch) [[ ${#words[@]} == 3 ]] || fail "give the TPU VM's name and the run folder: fetch NAME FOLDER" ;;
  create | install | run | logs | delete) [[ ${#words[@]} == 2 ]] || fail "give one name of a TPU VM: $verb NAME" ;;
  *) fail "unknown verb '$verb', expected create, install, run, logs, fetch or delete" ;;
esac

on() { # WORKERS COMMAND
  go gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

case $verb in
  create)
    [[ $type ]] || fail "create needs --accelerator-type=, for example v5litepod-16"
    case $type in
      v5lite*) image=v2-alpha-tpuv5-lite ;;
      v5p*) image=v2-alpha-tpuv5 ;;
      v6e*) image=v2-alpha-tpuv6e ;;
      *) image=tpu-ubuntu2204-base ;;
    esac
    go gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
      --accelerator-type="$type" --runtime-version="${version:-$image}" "${spot[@]}"
    ;;
  install)
    if [[ ! $url ]]; then
      # A bundle and not a tarball, because reports name the commit of the code.
      url=../mirigor_jax.bundle
      go mkdir -p build
      go git bundle create --quiet build/mirigor_jax.bundle HEAD
      go gcloud compute tpus tpu-vm scp build/mirigor_jax.bundle "$name": "${where[@]}" --worker=all
    fi
    on all "set -e; git init -q mirigor_jax; cd mirigor_jax; git fetch -q $(quoted "$url") HEAD; \
git checkout -q --detach FETCH_HEAD; python3 -m pip install -q --user uv; \
python3 -m uv venv -q --allow-existing --python=3.11 .venv; \
python3 -m uv pip install -q --python=.venv -e .[tpu,gcs,tensorboard]"
    ;;
  run)
    [[ " ${arguments[*]}" == *" --config="* ]] || fail "run needs --config=CONFIG"
    main=".venv/bin/python -m mirigor_jax.main --verbose $(quoted "${arguments[@]}")"
    if [[ $only ]]; then
      [[ $only =~ ^[0-9]+/[0-9]+(,[0-9]+/[0-9]+)*$ ]] || fail "--only=$only, expected cells such as 1/20,4/20"
      # One cell after another, even if one fails.
      main="printf '%s\n' ${only//,/ } | nohup xargs -I{} $main --config.study.only={}"
    else
      main="nohup $main </dev/null"
    fi
    on all "cd mirigor_jax || exit; $main >>run.log 2>&1 &"
    ;;
  logs) on "$worker" "tail -n 100 -F mirigor_jax/run.log" ;;
  fetch)
    into=$(dirname "$folder")
    [[ $folder != gs://* ]] || into=runs
    go mkdir -p "$into"
    case $folder in
      gs://*) go gcloud storage cp --recursive "$folder" "$into" ;;
      /*) go gcloud compute tpus tpu-vm scp --recurse "$name:$folder" "$into" "${where[@]}" --worker=0 ;;
      *) go gcloud compute tpus tpu-vm scp --recurse "$name:mirigor_jax/$folder" "$into" "${where[@]}" --worker=0 ;;
    esac
    ;;
  delete) go gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force ;;
esac
