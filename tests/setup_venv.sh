#!/usr/bin/env bash
# Makes .venv with tunerun, its gguf, tensorboard, quant, deepspeed and sweep extras and the development tools. The
# wheel of llama-cpp-python, which has to be compiled (some minutes on 2 cores), is built once and kept in the user's
# cache.
set -euo pipefail

python=${PYTHON:-python3}
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/tunerun/wheels
pinned=$(sed -n 's/^llama-cpp-python==//p' constraints.txt)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "tunerun needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
  exit 2
}

say() { printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*"; }

say "1/3 virtual environment"
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --upgrade pip

find_wheel() { find "$wheels" -name "llama_cpp_python-$pinned-*.whl" 2>/dev/null | head -n 1; }

build_llama() {
  mkdir -p "$wheels"
  # The native build crashes on CPUs with AMX on quantised models; ARM and others keep their defaults.
  if [ "$(uname -m)" = x86_64 ] && [ -z "${CMAKE_ARGS:-}" ]; then
    export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
  fi
  .venv/bin/python -m pip wheel --no-deps --no-cache-dir -w "$wheels" -v "llama-cpp-python==$pinned" \
    > "$wheels/build.log" 2>&1 &
  local build=$! last=""
  while kill -0 "$build" 2>/dev/null; do
    sleep 2
    local now
    now=$(grep -oE '\[ *[0-9]+(/[0-9]+|%)\]' "$wheels/build.log" 2>/dev/null | tail -n 1 || true)
    if [ "$now" != "$last" ] && { [ -t 1 ] || [ $((SECONDS % 20)) -lt 2 ]; }; then
      say "    compiling llama.cpp $now"
      last=$now
    fi
  done
  wait "$build" || { tail -n 40 "$wheels/build.log" >&2; exit 1; }
}

if [ -z "$(find_wheel)" ]; then
  say "2/3 compiling llama-cpp-python $pinned, once (some minutes; log: $wheels/build.log)"
  build_llama
else
  say "2/3 llama-cpp-python $pinned: wheel kept from an earlier build"
fi

say "3/3 installing tunerun and what it needs (torch is the largest)"
.venv/bin/python -m pip install --quiet -c constraints.txt "$(find_wheel)" -e '.[gguf,tensorboard,quant,deepspeed,sweep,dev]'
say "ready"
