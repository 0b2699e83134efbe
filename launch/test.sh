#!/usr/bin/env bash
# Prepares an environment and runs the linter and every test.
#   bash launch/test.sh                      # makes .venv-test with PYTHON (python3.11 or newer)
#   LCM_JAX_VENV=current bash launch/test.sh # uses the interpreter on the PATH as it is, installs nothing
#   bash launch/test.sh tests/diffusion -x   # arguments go to pytest
#   bash launch/test.sh --cov=lcm_jax        # with coverage, which must be 90 %; takes a third longer
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -z "${LCM_JAX_VENV:-}" ]]; then
  LCM_JAX_VENV=.venv-test
  if [[ ! -x "$LCM_JAX_VENV/bin/python" ]]; then
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
      if [[ -n "$candidate" ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "making $LCM_JAX_VENV with $candidate"
        "$candidate" -m venv "$LCM_JAX_VENV"
        break
      fi
    done
  fi
  if [[ ! -x "$LCM_JAX_VENV/bin/python" ]]; then
    echo "no Python 3.11 or newer found; set PYTHON=/path/to/python" >&2
    exit 1
  fi
  # Installed again only when what it asks for has changed.
  wanted=$(cat setup.cfg pyproject.toml | cksum)
  if [[ "$(cat "$LCM_JAX_VENV/installed" 2>/dev/null || true)" != "$wanted" ]]; then
    echo "installing lcm_jax[test] into $LCM_JAX_VENV"
    "$LCM_JAX_VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
    echo "$wanted" > "$LCM_JAX_VENV/installed"
  fi
fi
if [[ "$LCM_JAX_VENV" == current ]]; then
  python=python
else
  python="$LCM_JAX_VENV/bin/python"
fi

export JAX_PLATFORMS=cpu OPENBLAS_NUM_THREADS=1
failed=0
"$python" -m ruff check . --output-format concise || failed=1
"$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || failed=1
exit $failed
