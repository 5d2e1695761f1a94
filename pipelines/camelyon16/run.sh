#!/usr/bin/env bash
# CAMELYON16 from the folder as downloaded to tile AUROC, slide AUC and FROC beside published figures.
#
#   pipelines/camelyon16/run.sh CAMELYON16/ out/
#
# In the environment: CONFIG (of `wsiad train`; default the Deep Perceptual Autoencoder's final setting),
# WEIGHTS (a file, or imagenet), TUNE (a config of `wsiad tune`: options are chosen by the tiles of four
# tumour slides, in place of CONFIG), WORKERS, CLUSTER (a file of configs/: tiles and heatmaps are made by
# jobs), STAGE_DIR (a disk of the node), SEED, TRAIN and HEATMAP (further flags of those verbs).
# Run it again after an interruption: what is whole is not made again. What it makes is said in docs/camelyon16.md.
set -euo pipefail
if [ $# -ne 2 ]; then sed -n '2,10p' "$0" | cut -c3-; exit 2; fi
root=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
configs=$here/../../configs/camelyon16
workers=${WORKERS:-1}
python=${PYTHON:-python3}
failed=0

spread=(--workers "$workers")
device=()
if [ -n "${CLUSTER:-}" ]; then
  spread=(--cluster "$CLUSTER" --retries 1)
  device=(--device cpu)  # jobs of tiles and heatmaps have none
fi
[ -z "${STAGE_DIR:-}" ] || spread+=(--stage-dir "$STAGE_DIR")
train=(--config "${CONFIG:-$configs/train-dpa.yaml}" --seed "${SEED:-0}")
[ -z "${WEIGHTS:-}" ] || train+=(--weights "$WEIGHTS")
read -ra more_train <<< "${TRAIN:-}"
read -ra more_heatmap <<< "${HEATMAP:-}"

"$python" "$here/dataset.py" "$root" "$out"
# A slide that fails is reported by each step; the others go on, and the exit code is 1.
"$python" "$here/draw.py" "$out" --workers "$workers" || failed=1
target=()
[ ! -f "$out/stain_target.png" ] || target=(--stain-target "$out/stain_target.png")
for part in train tune test; do
  [ "$(wc -l < "$out/lists/tiles_$part.csv")" -gt 1 ] || continue  # nobody is in it
  wsiad tile "$out/lists/tiles_$part.csv" --coords "$out/coordinates/$part" --out "$out/store_$part" \
    --config "$configs/tile.yaml" "${target[@]}" "${spread[@]}" || failed=1
done
if [ -n "${TUNE:-}" ]; then
  weights=()
  [ -z "${WEIGHTS:-}" ] || weights=(--weights "$WEIGHTS")
  wsiad tune "$out/store_train" --anomalies "$out/store_tune" --out "$out/tuned" --config "$TUNE" \
    --seed "${SEED:-0}" "${weights[@]}"
  train=(--config "$out/tuned/best.yaml")
fi
wsiad train "$out/store_train" --out "$out/run" "${train[@]}" "${more_train[@]}"
wsiad score-tiles "$out/run" "$out/store_test" --out "$out/tiles" --tumour tumor
wsiad heatmap "$out/run" "$out/lists/test.csv" --out "$out/results" "${spread[@]}" "${device[@]}" \
  "${more_heatmap[@]}" || failed=1
evaluate=(--annotations "$out/annotations")
[ ! -s "$out/lists/not_in_froc.txt" ] \
  || evaluate+=(--exclude-from-froc "$(cat "$out/lists/not_in_froc.txt")")
wsiad evaluate "$out/results" --reference "$out/lists/reference.csv" "${evaluate[@]}"
"$python" "$here/table.py" "$out"
exit $failed
