#!/bin/sh
# The recipe of the shipped weights at full width, for a machine with a GPU: docs/pilots.md, "On a GPU".
#
#     sh benchmarks/gpu.sh PIECES WORK OUT [--config.FIELD=VALUE …]
#
# PIECES  folder that `python -m benchmarks pieces` wrote
# WORK    folder that stays on the machine: the pack and the run
# OUT     folder to bring home: log, metrics, and at the end the weights with their model card, as pieces of 12 MB:
#         `cat OUT/weights.tar.* | tar x` joins them
#
# It trains for MINUTES (9, from the environment), saves and stops with status 143; the same command goes on.
set -eu
pieces=$1 work=$2 out=$3
shift 3
mkdir -p "$work" "$out"
[ -d "$work/pack" ] || python -m benchmarks pieces --join="$pieces" --out="$work/pack"
status=0
timeout --preserve-status --signal=TERM "${MINUTES:-9}m" python -m colorjax train \
    --config=configs/food101_small.py --config.model.width=1 --config.data.dir="$work/pack" \
    --config.loss.teacher_weight=0 --workdir="$work/run" "$@" >>"$out/train.log" 2>&1 || status=$?
for stage in pretrain joint; do
    [ ! -f "$work/run/$stage/metrics.jsonl" ] || cp "$work/run/$stage/metrics.jsonl" "$out/$stage.jsonl"
done
if [ "$status" = 0 ]; then
    # At full width the weights are too large for the package.
    python -m benchmarks ship --checkpoint="$work/run" --data-dir="$work/pack" --out="$work/weights"
    tar -C "$work" -c weights | split -b 12m - "$out/weights.tar."
fi
exit "$status"
