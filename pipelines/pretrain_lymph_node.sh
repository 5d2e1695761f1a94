#!/usr/bin/env bash
# The network that comes with wsiad: trained on healthy PatchCamelyon tiles (CC0), without labels.
#
#   pipelines/pretrain_lymph_node.sh train_normal.tar lymph_node/
#
# 10,000 tiles of 96 px at 0.972 µm/px (1,000 of them held out) took 44 minutes on one core of a CPU with AMX. The same
# machine and versions give the same weights; the file is lymph_node/network/weights.safetensors.
set -euo pipefail
if [ $# -ne 2 ]; then sed -n '2,7p' "$0" | cut -c3-; exit 2; fi
tiles=$1
out=$2

wsiad import-tiles "$tiles" --out "$out/store" --mpp 0.972 --label normal
OMP_NUM_THREADS=1 wsiad pretrain "$out/store" --out "$out/network" --max-steps 2000 \
  --option precision=bfloat16 --option val_interval=200 --option val_tiles=1024
