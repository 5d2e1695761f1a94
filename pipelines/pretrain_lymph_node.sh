#!/usr/bin/env bash
# The network that comes with wsiad: it has learnt, on healthy PatchCamelyon tiles (CC0) and without labels, what
# ImageNet's DenseNet121 (BSD) and SqueezeNet 1.1 (Apache-2.0) see in them.
#
#   pipelines/pretrain_lymph_node.sh train_normal.tar lymph_node/ densenet121.safetensors squeezenet1_1.safetensors
#
# The same machine and versions give the same weights; the file is lymph_node/network/weights.safetensors.
set -euo pipefail
if [ $# -ne 4 ]; then sed -n '2,7p' "$0" | cut -c3-; exit 2; fi
tiles=$1
out=$2

wsiad import-tiles "$tiles" --out "$out/store" --mpp 0.972 --label normal
OMP_NUM_THREADS=1 wsiad pretrain "$out/store" --out "$out/network" --teacher "$3" "$4" --max-steps 3000 \
  --option 'views={view_px: 64, exact: 0.5}' --option batch=64 --option learning_rate=2e-3 \
  --option precision=bfloat16 --option val_interval=500 --option val_tiles=512
