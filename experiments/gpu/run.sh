#!/usr/bin/env bash
# One visit to a machine with a GPU: experiments/gpu/run.sh MINUTES [--tiny] [flags of visit.py]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m experiments.gpu.visit --minutes="${1:?usage: experiments/gpu/run.sh MINUTES [--tiny]}" "${@:2}"
