#!/usr/bin/env bash
# Distils the shipped emoji teacher into a 1-4 step generator, scores it and exports it: about a quarter of an
# hour on two cores, no GPU. Run it again and it goes on with what is there.
#   bash launch/quickstart.sh [RUN_FOLDER]        # default runs/quickstart
#   PYTHON=python3.12 bash launch/quickstart.sh   # with this interpreter (3.11 or newer)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/quickstart}
venv=.venv

say() { printf '\n== %s\n' "$*"; }

if [[ ! -x $venv/bin/python ]]; then
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      say "making $venv with $candidate"
      "$candidate" -m venv "$venv" || { echo "no venv module: install your system's python3-venv package" >&2; exit 1; }
      break
    fi
  done
  [[ -x $venv/bin/python ]] || { echo "no Python 3.11 or newer found; set PYTHON=/path/to/python" >&2; exit 1; }
fi
python=$venv/bin/python
wanted=$(cat setup.cfg pyproject.toml | cksum)
if [[ "$(cat $venv/installed 2>/dev/null || true)" != "$wanted" ]]; then
  say "installing lcm_jax"
  $python -m pip install --quiet --disable-pip-version-check --editable '.[data]'
  echo "$wanted" > $venv/installed
fi
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

say "encoding the emoji"
$python -m launch.encode --reader twemoji --model emoji-teacher --out data/emoji
say "drawing what no emoji shows"
$python -m launch.synthesize --model emoji-teacher --reader twemoji --recombined 2048 --steps 8 --w 0 --out data/emoji_drawn
say "distilling the teacher"
$python -m launch.train --config configs/quickstart.py --run "$run"
say "exporting the weights"
$python -m launch.export --checkpoint "$run" --out "$run/exported" --overwrite
say "scoring"
$python -m launch.evaluate --model "$run/exported" --teacher emoji-teacher --data data/emoji --reader twemoji \
  --out "$run/evaluation" --quick
say "drawing"
$python -m launch.compare --model "$run/exported" --teacher emoji-teacher --w 1 --out "$run/grid.png"
say "done"
cat "$run/evaluation/table.md"
echo "pictures: $run/grid.png"
echo "weights:  $run/exported"
