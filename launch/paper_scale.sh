#!/usr/bin/env bash
# Run in ten minutes, on one GPU, what fits of two studies at their papers' scale. See --help.
set -euo pipefail

usage() {
  cat <<'END_OF_USAGE'
launch/paper_scale.sh [--minutes=N] [--workdir=FOLDER] [--dry-run]

Runs two studies at their papers' scale for N minutes in all (by default 10), first one and then the other:
  batch_size    ResNet-18 of width 64 at 256, 64 and 16 pairs a batch (Lee et al. 2023, Fig. 4), for half of the time
  high_mi       ten trainings of 200 epochs (Gosch 2020, Figs. 1 to 3), for the rest

A study whose time is up stops and keeps what it has finished. The same command again continues both. FOLDER, by
default runs/paper_scale, gets a folder for each study, with its study.md. Works from this checkout's root. --dry-run
prints the commands.
END_OF_USAGE
}

fail() {
  echo "error: $*; see launch/paper_scale.sh --help" >&2
  exit 2
}

cd "$(dirname "$0")/.."
dry_run="" minutes=10 folder=runs/paper_scale
for word; do
  case $word in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --minutes=*) minutes=${word#*=} ;;
    --workdir=?*) folder=${word#*=} ;;
    *) fail "unexpected argument '$word', options are --NAME=VALUE" ;;
  esac
done
[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || fail "--minutes=$minutes, expected a whole number from 1 to 9999"

# study UNTIL FIRST TOTAL NAME ARGUMENTS…: run the study NAME until that second. If it had to stop, write the page of what
# is there by a second command for its first training alone, unless that training is not finished.
study() {
  local until=$1 first=$2 total=$3 name=$4 code=0
  local command=(python -m mirigor_jax.main "--config=configs/studies/$name.py:scale=paper,$5" "${@:6}")
  command+=("--workdir=$folder/$name")
  if [[ $dry_run ]]; then
    echo "timeout -k 30 -s TERM $until ${command[*]}"
    return
  fi
  timeout -k 30 -s TERM $((until > SECONDS ? until - SECONDS : 1)) "${command[@]}" || code=$?
  case $code in
    0) ;;
    124 | 137 | 143) if [[ -e $folder/$name/$first/report.json ]]; then "${command[@]}" "--config.study.only=1/$total"; fi ;;
    130) exit 130 ;; # Ctrl-C
    *) failed=$code ;;
  esac
}

failed=0
study $((minutes * 30)) resnet18-k=256-seed=0 3 batch_size encoders=resnet18,k=256+64+16,seeds=1

trainings=(fig1d-mine-512-shuffle-elu fig3-js-512-0.0005-shuffle-elu fig2a-nwj-512-0.0005-shuffle-elu
  fig1-mine-1024-shuffle-elu fig1-mine-256-shuffle-elu fig3-js-regularized-0.0005-shuffle-elu fig2b-nwj-256-shuffle-elu
  fig2b-nwj-1024-shuffle-elu fig2b-nwj-4096-shuffle-elu fig2b-nwj-64-shuffle-elu)
only=$(IFS=+ && echo "${trainings[*]}")
study $((minutes * 60)) "${trainings[0]}" "${#trainings[@]}" high_mi "only=$only" --config.run.epochs=200
exit "$failed"
