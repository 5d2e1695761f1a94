# shellcheck shell=bash
# Read by submit.sh and job.sbatch: the settings of the site, whether they are filled in, and what they
# know of wsiad's commands.
# shellcheck disable=SC2034

# The verbs, and those of them that compute on a device.
VERBS="tile embed train detectors tune pretrain heatmap list-slides status export refine extend"
VERBS+=" significance evaluate compare view suggest import-tiles import-features score-tiles"
VERBS+=" export-tiles demo doctor"
ON_DEVICE="embed train tune pretrain heatmap refine extend suggest score-tiles"

# One line: what is wrong, with what, and what to do about it.
fail() {
  echo "wsiad on SLURM: $*" >&2
  exit 2
}

# has FLAG ARGUMENTS: a command has this flag.
has() {
  local flag=$1 word
  shift
  for word in "$@"; do
    case $word in "$flag" | "$flag="*) return 0 ;; esac
  done
  return 1
}

# value_of FLAG ARGUMENTS: what stands behind a flag, or nothing.
value_of() {
  local flag=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "$flag") echo "${2-}"; return ;;
      "$flag"=*) echo "${1#"$flag"=}"; return ;;
    esac
    shift
  done
}

# configured KEY ARGUMENTS: the value of a key in the command's --config, or nothing; of a list, a word.
configured() {
  local key=$1 file
  shift
  file=$(value_of --config "$@")
  [ -r "$file" ] || return 0
  awk -v key="$key" '
    {
      sub(/\r$/, "")
      line = $0
      sub(/^["\047]?/, "", line)
    }
    index(line, key) == 1 && substr(line, length(key) + 1) ~ /^["\047]?[ \t]*:([ \t]|$)/ {
      found = substr(line, length(key) + 1)
      sub(/^[^:]*:[ \t]*/, "", found)
      sub(/(^|[ \t]+)#.*/, "", found)
      sub(/[ \t]+$/, "", found)
      if (found ~ /^".*"$/ || found ~ /^\047.*\047$/) found = substr(found, 2, length(found) - 2)
      below = found == ""
      if (found == "null" || found == "~" || found == "[]") found = ""
      next
    }
    below && /^[ \t]*-[ \t]/ { found = "a list" }
    /^[^ \t#-]/ { below = 0 }
    END { print found }
  ' "$file"
}

# sets KEY ARGUMENTS: a command has this option, as a flag or in its --config.
sets() {
  local key=$1
  shift
  has "--$key" "$@" || [ -n "$(configured "$key" "$@")" ]
}

# distant ARGUMENTS: a command only looks after work that is done elsewhere.
distant() { sets cluster "$@" || sets scheduler "$@"; }

# filled_in NAME WHAT: the setting of this name has a value of the site.
filled_in() {
  local -n value=$1
  [ "${value-}" != CHANGE-ME ] || fail "$site: $1 is not filled in. Write $2."
}

# whole_number NAME: the setting of this name is a number of at least 1.
whole_number() {
  local -n value=$1
  [[ ${value-} =~ ^[1-9][0-9]*$ ]] || fail "$site: $1 is '${value-}'. Write a whole number from 1."
}

# read_site FILE: source the settings and check them.
read_site() {
  site=$1
  [ -r "$site" ] || fail "$site: there is no such file of settings. Copy pipelines/slurm/site.sh."
  # shellcheck source=pipelines/slurm/site.sh
  source "$site"
  filled_in PARTITION "the partition of jobs without a GPU, or nothing for the site's default"
  filled_in GPU_PARTITION "the partition of jobs with a GPU, or nothing for the site's default"
  filled_in ACCOUNT "the account that jobs are charged to, or nothing for the default"
  filled_in ENVIRONMENT "venv, conda, module or apptainer: where wsiad is"
  case $ENVIRONMENT in
    venv) filled_in VENV "the folder of the virtual environment" ;;
    conda) filled_in CONDA "the folder that 'conda info --base' prints" ;;
    module) filled_in MODULES "the modules that have wsiad" ;;
    apptainer) filled_in IMAGE "the path of the image" ;;
    *) fail "$site: ENVIRONMENT is '$ENVIRONMENT'. Write venv, conda, module or apptainer." ;;
  esac
  local name
  for name in RESERVE_MINUTES SIGNAL_SECONDS MOST_REQUEUES TILE_JOBS HEATMAP_JOBS; do
    whole_number "$name"
  done
  [ $((RESERVE_MINUTES * 60)) -gt "$SIGNAL_SECONDS" ] \
    || fail "$site: RESERVE_MINUTES is $RESERVE_MINUTES, within SIGNAL_SECONDS ($SIGNAL_SECONDS)." \
      "Raise it: a training would be stopped before it ends by itself."
}

# enter_environment: set `wsiad` to the words that call it in the environment of the site.
enter_environment() {
  wsiad=(wsiad)
  set +u # scripts of sites read variables that are not set
  case $ENVIRONMENT in
    venv)
      [ -x "$VENV/bin/wsiad" ] || fail "$VENV/bin/wsiad: not on node $(hostname). Correct VENV in $site."
      PATH=$VENV/bin:$PATH ;;
    conda)
      # shellcheck disable=SC1091
      { source "$CONDA/etc/profile.d/conda.sh" && conda activate "$CONDA_ENVIRONMENT"; } \
        || fail "$CONDA: no conda with $CONDA_ENVIRONMENT on node $(hostname). Correct CONDA in $site." ;;
    module)
      module load "${MODULES[@]}" \
        || fail "${MODULES[*]}: cannot be loaded on node $(hostname). Correct MODULES in $site." ;;
    apptainer)
      [ -r "$IMAGE" ] || fail "$IMAGE: no image on node $(hostname). Correct IMAGE in $site."
      wsiad=(apptainer run "${IMAGE_OPTIONS[@]}" "$IMAGE") ;;
  esac
  set -u
  command -v "${wsiad[0]}" > /dev/null \
    || fail "${wsiad[0]}: not found on node $(hostname). Correct ENVIRONMENT in $site."
}

# training_minutes LIMIT: the --max-minutes of a job with this time limit, as SLURM writes it (MM,
# MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS); nothing where the limit is UNLIMITED.
training_minutes() {
  local limit=$1 days=0 rest first second third minutes
  [ "$limit" != UNLIMITED ] || return 0
  [[ $limit =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] \
    || fail "the time limit '$limit' is not one of SLURM's. Pass --max-minutes after the verb."
  rest=$limit
  if [[ $limit == *-* ]]; then
    days=${limit%%-*} rest=${limit#*-}
    [[ $rest == *:* ]] || rest=$rest:00
    [[ $rest == *:*:* ]] || rest=$rest:00
  fi
  IFS=: read -r first second third <<< "$rest"
  if [ -n "$third" ]; then
    minutes=$((10#$days * 1440 + 10#$first * 60 + 10#$second))
  else
    minutes=$((10#$first))
  fi
  [ "$minutes" -gt "$RESERVE_MINUTES" ] \
    || fail "the time limit of a training, $limit, is not more than RESERVE_MINUTES ($RESERVE_MINUTES)." \
      "Raise its --time in $site, or lower the reserve."
  echo $((minutes - RESERVE_MINUTES))
}
