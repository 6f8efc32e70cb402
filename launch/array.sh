#!/usr/bin/env bash
# Spread a study's runs over a SLURM array or over several TPU VMs. See --help.
set -euo pipefail

usage() {
  cat <<'END'
launch/array.sh --config=configs/studies/STUDY.py [--config.KEY=VALUE …] [--workdir=FOLDER] [--tensorboard] [--profile]
                [--dry-run] OPTIONS

The study's runs are spread over a SLURM array or over TPU VMs. OPTIONS are those of one of these lines:

  [--nodes=N] [--gpus-per-node=G] [--SBATCH-OPTION=VALUE …]
        submit a SLURM array with one launch/slurm.sbatch job for each run, and a last job, which fits the
        study's critics, if it has any, and makes the table
  --tpu=NAME,NAME,… [--zone=ZONE] [--project=PROJECT]
        start the runs on TPU VMs that launch/tpu_vm.sh has installed; each VM does its share, one run after another
  --tpu=NAME,NAME,… --table
        fetch the results from the TPU VMs, do the missing runs and the fits of critics here, and make the table

The same command again does the missing runs. Works from this checkout's root. --dry-run prints the commands. Needs
bash 4.4.
END
}

fail() {
  echo "error: $*; see launch/array.sh --help" >&2
  exit 2
}

cd "$(dirname "$0")/.."
dry_run=() vms=() table="" options=() arguments=()
for word; do
  case $word in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=("$word") ;;
    --tpu=?*) IFS=, read -ra vms <<<"${word#*=}" ;;
    --table) table=yes ;;
    --config=?* | --config.?*=* | --workdir=?* | --tensorboard | --profile) arguments+=("$word") ;;
    --?*) options+=("$word") ;;
    *) fail "unexpected argument '$word', options are --NAME=VALUE" ;;
  esac
done
[[ ! $table || ${vms[*]} ]] || fail "--table goes with --tpu=, a SLURM array makes its table by itself"

# Count the study's runs (its own cells, and the finished runs of the studies that it reads) and find its folder.
found=$(
  python - "${arguments[@]}" <<'END'
import json, sys
from mirigor_jax import config_files, errors, files

try:
    config, name, workdir, _ = config_files.parse(config_files.split_job_flags(sys.argv[1:])[0])
    if "study" not in config:
        raise errors.InputError(f"{name} is one run, expected a study; launch/slurm.sbatch and launch/tpu_vm.sh run it")
    read = []
    for source in filter(None, config.study.get("sources", "").split(",")):
        path = files.to_path(source) / "study.json"
        try:
            read.append(json.loads(path.read_text())["rows"])
        except files.io_errors(path) as error:
            sys.exit(f"error: no {path} ({files.describe(error)}); run the studies of study.sources first")
except errors.InputError as error:
    sys.exit(f"error: {error}")
print(len(config.study.cells) + sum(map(len, read)), workdir or f"runs/studies-{name}")
END
) || exit 2
total=${found%% *} folder=${found#* }

if ((total == 0)); then # a study of fits alone, which one process makes
  [[ ! ${vms[*]} ]] || fail "this study has fits and no runs to spread; run it by launch/tpu_vm.sh run NAME"
  exec launch/slurm.sbatch "${dry_run[@]}" --parsable "${options[@]}" "${arguments[@]}"
fi
if [[ ! ${vms[*]} ]]; then
  submit() { launch/slurm.sbatch "${dry_run[@]}" --parsable "${options[@]}" "$@" "${arguments[@]}"; }
  array=$(submit --array="1-$total" --config.study.only="%a/$total")
  echo "$array"
  # afterany: the table is made even if a run has failed.
  if [[ ${dry_run[*]} ]]; then array=ARRAY; fi
  submit --dependency="afterany:${array%%;*}"
elif [[ $table ]]; then
  for vm in "${vms[@]}"; do
    [[ $folder != gs://* ]] || break # main reads the bucket itself
    launch/tpu_vm.sh fetch "$vm" "$folder" "${options[@]}" "${dry_run[@]}"
  done
  command=(python -m mirigor_jax.main "${arguments[@]}")
  if [[ ${dry_run[*]} ]]; then echo "${command[*]@Q}"; else "${command[@]}"; fi
else
  for ((i = 0; i < ${#vms[@]} && i < total; i++)); do
    share=""
    for ((run = i + 1; run <= total; run += ${#vms[@]})); do share+=,$run/$total; done
    launch/tpu_vm.sh run "${vms[i]}" --only="${share#,}" "${arguments[@]}" "${options[@]}" "${dry_run[@]}"
  done
fi
