#!/usr/bin/env bash
# Tile once, then train, score and evaluate each of several detectors; ends with a table.
#
#   pipelines/compare_detectors.sh TRAIN_SLIDES TEST_SLIDES REFERENCE_CSV ANNOTATIONS OUT \
#       gaussian=squeezenet1_1.safetensors knn=squeezenet1_1.safetensors dpa=vgg19.safetensors
#
# Each detector is given with the weights file that it uses (or "imagenet" for torchvision's).
# MPP, TILE and WORKERS may be set in the environment, and OPTIONS_dpa="--max-minutes 30" and the
# like for what `wsiad train` is to be given with one detector. Run it again after an
# interruption: what is whole is not made again.
set -euo pipefail
if [ $# -lt 6 ]; then sed -n '2,10p' "$0" | cut -c3-; exit 2; fi
train=$1 test=$2 reference=$3 annotations=$4 out=$5
shift 5

wsiad tile "$train" --out "$out/store" --mpp "${MPP:-0.972}" --tile "${TILE:-96}" \
  --workers "${WORKERS:-1}"
for pair in "$@"; do
  detector=${pair%%=*} weights=${pair#*=}
  arguments=()
  [ "$weights" = imagenet ] || arguments+=(--weights "$weights")
  options=OPTIONS_$detector
  # shellcheck disable=SC2206  # several words in one variable
  arguments+=(${!options:-})
  wsiad train "$out/store" --out "$out/run_$detector" --detector "$detector" "${arguments[@]}"
  wsiad heatmap "$out/run_$detector" "$test" --out "$out/results_$detector" \
    --workers "${WORKERS:-1}"
  wsiad evaluate "$out/results_$detector" --reference "$reference" --annotations "$annotations"
done

results=()
for pair in "$@"; do results+=("${pair%%=*}=$out/results_${pair%%=*}"); done
"$(dirname "$0")/evaluation_table.py" "${results[@]}"
