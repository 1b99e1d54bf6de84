#!/usr/bin/env bash
# Everything that only a card can show, in one go: tests, then figures, the most wanted first.
#   benchmarks/card.sh [FOLDER [precision|offload|training]]     PYTHON=... picks the interpreter
# Each of the three takes under 10 minutes on an H100; without a name all run, one after another.
# Each part has a limit of its own, so that a slow one does not cost the others; logs are kept.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-output/gpu}
what=${2:-precision offload training}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    tail -n 25 "$out/$name.txt"
    [ $code -eq 0 ] || echo "   (ended with $code)"
}

native=(--only fp8_scaled int8 --computes native --profile)
if [[ $what == *precision* ]]; then
    part rates 45 "$python" -m benchmarks.rates
    part step_eager 75 "$python" -m benchmarks.precision step "${native[@]}"
    part step_compiled 120 "$python" -m benchmarks.precision step --compile "${native[@]}"
    part tests 150 "$python" -m pytest tests/flux_core/test_gpu.py -rs -s -x
    part step_dequantized 60 "$python" -m benchmarks.precision step --only fp8_scaled int8 --computes dequantize
fi
if [[ $what == *offload* ]]; then
    offload=("$python" -m benchmarks.offload --budgets 6 3)
    part offload_fp8 150 "${offload[@]}" --precision fp8_scaled --no-others
    part offload_compiled 150 "${offload[@]}" --precision fp8_scaled --compile --no-others
    part picture 150 "${offload[@]}" --precision fp8_scaled --picture --steps 4
    part offload_bf16 140 "${offload[@]}" --precision bf16 --steps 4
    if [ "$(nvidia-smi -L | wc -l)" -gt 1 ]; then part devices 200 "$python" -m benchmarks.devices; fi
fi
if [[ $what == *training* ]]; then
    part training_fp8 280 "$python" -m benchmarks.train --precision fp8_scaled
    part training_bf16 280 "$python" -m benchmarks.train --precision bf16
fi
