#!/usr/bin/env bash
# All stages of the GPU bundle, in nine minutes at most:
#
#   bash run.sh --out DIR [--device cpu] [--smoke] [--only a] [--only b] [--seconds 560]
#
# DIR gets report.md, a JSON file for each stage, profile.txt and log.txt. See docs/gpu.md.
set -eu -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_root=$(cd "$here/../.." && pwd)
bundle=$(dirname "$source_root")
out=
previous=
for argument in "$@"; do
  [ "$previous" = --out ] && out=$argument
  previous=$argument
done
[ -n "$out" ] || { echo "usage: run.sh --out DIR [options]" >&2; exit 2; }
mkdir -p "$out"
work=${DP_RAY_GPU_WORK:-$(mktemp -d)}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
python=${PYTHON:-python3}
if [ -d "$bundle/wheels" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --disable-pip-version-check --root-user-action=ignore \
    --target "$work/site" "$bundle"/wheels/*.whl
  export PYTHONPATH=$source_root:$work/site:$here:$source_root/benchmarks
else
  export PYTHONPATH=$source_root:$here:$source_root/benchmarks${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" "$here/run.py" --work "$work" --bundle "$bundle" "$@" 2>&1 | tee "$out/log.txt"
