#!/usr/bin/env bash
# All that a GPU is measured by, in less than 10 minutes: the shape of Qwen3-1.7B with random weights, 128 samples of 256
# tokens, in bfloat16. Prints one table; what a part or a contender cannot do is said in it, and the rest goes on.
#
#   benchmarks/gpu.sh [FILE]        # FILE: every number of every round, as JSON
#   PYTHON=python3 benchmarks/gpu.sh
#
# Needs nsr's own packages with a torch for CUDA. vLLM is measured where it is installed. Exit status 2: there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "There is no CUDA device that $PYTHON's torch can use: nothing was measured." >&2
  exit 2
fi
# What matters most comes first. Two minutes at most for a contender to start or to answer; seven until nothing begins.
exec "$PYTHON" -m benchmarks --model qwen3-1.7b --only step learning sampling profile machine step_vllm \
  --rounds 5 --seconds 150 --within 420 --patience 120 ${1:+--json "$1"}
