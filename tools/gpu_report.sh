#!/usr/bin/env bash
# Everything that only a card can show, in one go: tests, then figures, the most wanted first.
#   tools/gpu_report.sh [FOLDER]     PYTHON=... picks the interpreter; under 10 minutes on an H100
# Each part has a limit of its own, so that a slow one does not cost the others; logs are kept.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-output/gpu}
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

part tests 120 "$python" -m pytest tests/flux_core/test_gpu.py -q -rs -s
part step_compiled 200 "$python" -m tools.bench_precision step --compile --only fp8_scaled int8
part step_eager 60 "$python" -m tools.bench_precision step --only fp8_scaled int8
part layers_compiled 90 "$python" -m tools.bench_precision layers --compile
part forward 60 "$python" -m tools.bench_forward --device cuda --full
part errors 60 "$python" -m tools.compare_errors
