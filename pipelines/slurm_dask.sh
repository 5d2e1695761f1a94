#!/bin/bash
# Tile slides, or score them with a run, by jobs that dask starts and looks after.
#
#   pipelines/slurm_dask.sh configs/slurm.yaml tile SLIDES STORE
#   pipelines/slurm_dask.sh configs/slurm.yaml heatmap SLIDES RESULTS RUN
#
# This process stays until all is done, and needs one core: where jobs are not submitted from a
# long session, submit it as a job itself (sbatch --time=1-0 pipelines/slurm_dask.sh ...).
# MPP and TILE may be set in the environment. Run it again after an interruption.
#SBATCH --job-name=wsiad-dask
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --output=wsiad-dask-%j.log
set -euo pipefail
if [ $# -lt 4 ]; then sed -n '2,9p' "$0" | cut -c3-; exit 2; fi
cluster=$1 verb=$2 slides=$3 out=$4

case $verb in
  tile)
    wsiad tile "$slides" --out "$out" --mpp "${MPP:-0.5}" --tile "${TILE:-256}" \
      --cluster "$cluster" --retries 1
    ;;
  heatmap)
    wsiad heatmap "${5:?the folder of a run}" "$slides" --out "$out" --device cpu \
      --cluster "$cluster" --retries 1
    ;;
  *)
    echo "neither tile nor heatmap: $verb" >&2
    exit 2
    ;;
esac
