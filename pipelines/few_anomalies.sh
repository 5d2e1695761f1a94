#!/usr/bin/env bash
# How many anomalous tiles, of how many slides, are needed to choose a detector's options?
# (the study of Figure 5 of Shvetsova et al. 2021)
#
#   pipelines/few_anomalies.sh STORE VALIDATION_STORE TEST_STORE OUT CONFIG.yaml CONFIG.yaml ...
#
# Each CONFIG is one for `wsiad train`, such as those of the trials of `wsiad tune`
# (tuned/trials/*/train.yaml). It is trained on STORE and scores the other two stores once;
# pipelines/few_anomalies.py then draws samples of the validation's anomalous tiles and tells how
# good the setting is that each sample would have chosen. The three stores must share no slide; the
# tiles of validation and test carry labels. SAMPLES="--types 1 2 4 --tiles 5 20" in the
# environment goes to that script, TRAIN="--weights FILE" to `wsiad train`. Run it again after an
# interruption: what is whole is not made again.
set -euo pipefail
if [ $# -lt 6 ]; then sed -n '2,15p' "$0" | cut -c3-; exit 2; fi
# shellcheck disable=SC2034  # the loop reads validation and test by their names
store=$1 validation=$2 test=$3 out=$4
shift 4

for config in "$@"; do
  path=$(realpath "$config")
  name=$(basename "$(dirname "$path")")-$(basename "$path" .yaml)
  # shellcheck disable=SC2086  # several words in one variable
  [ -e "$out/$name/run/run.json" ] || \
    wsiad train "$store" --config "$config" --out "$out/$name/run" ${TRAIN:-}
  for part in validation test; do
    [ -e "$out/$name/$part/evaluation.json" ] || \
      wsiad score-tiles "$out/$name/run" "${!part}" --out "$out/$name/$part"
  done
done

# shellcheck disable=SC2086
"${PYTHON:-python3}" "$(dirname "$0")/few_anomalies.py" "$out" --out "$out" ${SAMPLES:-}
