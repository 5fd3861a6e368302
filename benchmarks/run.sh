#!/usr/bin/env bash
# Time us and the peers in the same run and write benchmarks/RESULTS.md. Takes about ten minutes on an idle machine.
# The peers live in an environment of their own: zoarium does not depend on them.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-bench
if [ ! -e "$venv/.installed" ]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --upgrade "pip>=24" -c constraints.txt
  "$venv/bin/python" -m pip install --quiet -e ".[data]" -c constraints.txt
  "$venv/bin/python" -m pip install --quiet pyhessian==0.1 torch_cka==0.21 tqdm matplotlib -c constraints.txt
  touch "$venv/.installed"
fi
python="../$venv/bin/python"
results="$PWD/benchmarks/RESULTS.md"
draft="$(mktemp)"
cd benchmarks
cat head.md > "$draft"
"$python" demo.py --markdown >> "$draft"
"$python" growth.py --markdown "$draft" > /dev/null
"$python" transformers.py --quick --markdown "$draft" > /dev/null
"$python" hessian.py --markdown >> "$draft"
"$python" connectivity.py --markdown >> "$draft"
"$python" cka.py --markdown >> "$draft"
mv "$draft" "$results"
echo "wrote benchmarks/RESULTS.md"
