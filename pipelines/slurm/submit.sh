#!/bin/bash
# Submit commands of wsiad to SLURM, as one would type them, each after the one before.
#
#   pipelines/slurm/submit.sh tile slides/ --out store/ --mpp 0.5 --tile 256
#   pipelines/slurm/submit.sh train store/ --out run/ then heatmap run/ test/ --out results/ \
#     then evaluate results/ --reference reference.csv
#
# Fill in pipelines/slurm/site.sh first. tile and heatmap become arrays of jobs, train has a GPU and
# ends before its walltime; whatever the walltime stops is queued again. It prints the jobs' numbers.
set -euo pipefail
usage() { sed -n '2,9p' "${BASH_SOURCE[0]}" | cut -c3-; }
case ${1-} in
  '') usage; exit 2 ;;
  -h | --help) usage; exit 0 ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=pipelines/slurm/site_check.sh
source "$here/site_check.sh"
read_site "$(realpath -m "${SITE:-$here/site.sh}")"

# out_of ARGUMENTS: the folder that a command writes.
out_of() {
  local out
  out=$(value_of --out "$@")
  echo "${out:-$(configured out "$@")}"
}

# wsiad itself checks the options, where it can be called on this machine.
here_too=''
if missing=$( (enter_environment) 2>&1 > /dev/null); then
  enter_environment
  here_too=yes
else
  echo "wsiad on SLURM: misspelt options are not found before the jobs run, because wsiad cannot be" \
    "called here (${missing#wsiad on SLURM: })" >&2
fi

needs=()     # dependencies of the coming command: it waits for all before it
complete=()  # folders in which no slide may be left when it begins

# plan VERB ARGUMENTS: set what sbatch is asked for, and among how many jobs the slides are divided.
plan() {
  shards=1
  if distant "$@"; then
    asked=("${CLUSTER[@]}")
    return
  fi
  case $1 in
    tile) asked=("${TILE[@]}") shards=$TILE_JOBS ;;
    heatmap) asked=("${HEATMAP[@]}") shards=$HEATMAP_JOBS ;;
    train | tune | pretrain) asked=("${TRAIN[@]}") ;;
    *) asked=("${OTHER[@]}") ;;
  esac
}

# check_options VERB ARGUMENTS: refuse options that wsiad does not know.
check_options() {
  local said code=0
  said=$("${wsiad[@]}" "$@" --check-options 2>&1 > /dev/null) || code=$?
  [ "$code" -ne 2 ] || { echo "$said" >&2; exit 2; }
}

outputs=() # of the commands that were checked

# check VERB ARGUMENTS: refuse a command that would wait in the queue and then fail.
check() {
  [ $# -gt 0 ] || fail "a command is missing beside 'then'. Write VERB ARGUMENTS there."
  local verb=$1 option out flag
  case " $VERBS " in
    *" $verb "*) ;;
    *) fail "'$verb' stands where a verb is expected. The verbs are ${VERBS// /, }." ;;
  esac
  plan "$@"
  case $verb in
    train | tune | pretrain)
      for option in "${asked[@]}"; do
        [[ $option != --time=* ]] || training_minutes "${option#--time=}" > /dev/null
      done ;;
    tile | heatmap)
      out=$(out_of "$@")
      [ -n "$out" ] || fail "$verb: --out is missing. Add it."
      out=$(realpath -m -- "$out")
      if [ "$shards" -gt 1 ]; then
        for flag in shard only record; do
          ! sets "$flag" "$@" || fail "$verb: --$flag is for a single call, but this command becomes" \
            "$shards. Leave it out, also of a --config, or set ${verb^^}_JOBS=1 in $site."
        done
        for option in "${outputs[@]}"; do
          [ "$option" != "$out" ] || fail "$verb: --out $out is that of a command before it. Pass the" \
            "slides of both to one command."
        done
      fi
      outputs+=("$out") ;;
  esac
  [ -z "$here_too" ] || check_options "$@"
}

# submit VERB ARGUMENTS: one command, as a job or an array of jobs.
submit() {
  local verb=$1 shards asked out words option number
  plan "$@"
  words=(--parsable --job-name="wsiad-$verb" --requeue --open-mode=append
    --signal="B:USR1@$SIGNAL_SECONDS" --account="$ACCOUNT" "${asked[@]}")
  if [ "$shards" -gt 1 ]; then
    words+=(--array="1-$shards" --output="$LOGS/%x-%A-%a.log")
  else
    words+=(--output="$LOGS/%x-%j.log")
  fi
  if [ ${#needs[@]} -gt 0 ]; then
    words+=(--dependency="$(IFS=,; echo "${needs[*]}")" --kill-on-invalid-dep=yes)
  fi
  local given=()
  for option in "${words[@]}"; do
    # What the site leaves empty is left to SLURM.
    case $option in
      --partition= | --account=) ;;
      *) given+=("$option") ;;
    esac
  done
  mkdir -p "$LOGS"
  number=$(sbatch "${given[@]}" "$here/job.sbatch" "$here" "$site" "$shards" \
    "${#complete[@]}" "${complete[@]}" "$@")
  number=${number%%;*}
  echo "$verb: job $number"
  case $verb in
    tile | heatmap)
      # Their exit code is 1 when a slide failed, which must not stop what follows on the others.
      complete+=("$(out_of "$@")")
      needs+=("afterany:$number") ;;
    *) needs+=("afterok:$number") ;;
  esac
}

# All commands are looked at before the first is submitted.
command=()
for word in "$@" "then"; do
  if [ "$word" != "then" ]; then
    command+=("$word")
    continue
  fi
  check "${command[@]}"
  command=()
done
for word in "$@" "then"; do
  if [ "$word" = "then" ]; then
    submit "${command[@]}"
    command=()
  else
    command+=("$word")
  fi
done
