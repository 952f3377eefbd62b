#!/usr/bin/env bash
# Builds llama.cpp's server from the source package of llama-cpp-python, once (some minutes on 2 cores), and prints where
# it is. `make test-full` runs the tests that need it; they take a llama-server on the PATH instead when there is one.
set -euo pipefail

python=${PYTHON:-python3}
pinned=$(sed -n 's/^llama-cpp-python==//p' "$(dirname "$0")/../constraints.txt")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tunerun/llama_cpp
release=llama_cpp_python-$pinned
server=$cache/$release-server/llama-server

if [ ! -x "$server" ]; then
  mkdir -p "$cache"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  if [ ! -f "$cache/$release.tar.gz" ]; then
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$scratch" "llama-cpp-python==$pinned" >&2
    mv "$scratch/$release.tar.gz" "$cache/$release.tar.gz"
  fi
  tar -xzf "$cache/$release.tar.gz" -C "$scratch" "$release/vendor/llama.cpp"
  if ! command -v cmake > /dev/null; then
    "$python" -m venv "$scratch/tools"
    "$scratch/tools/bin/pip" install --quiet cmake ninja >&2
    PATH=$scratch/tools/bin:$PATH
  fi
  options=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_WEBUI=OFF)
  # As the wheel is built: see setup_venv.sh.
  if [ "$(uname -m)" = x86_64 ]; then
    options+=(-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
  fi
  cmake -S "$scratch/$release/vendor/llama.cpp" -B "$scratch/build" "${options[@]}" > "$cache/server.log" 2>&1
  cmake --build "$scratch/build" --target llama-server -j "$(nproc)" >> "$cache/server.log" 2>&1
  mkdir -p "$(dirname "$server")"
  mv "$scratch/build/bin/llama-server" "$server.new"
  mv "$server.new" "$server"
fi
echo "$server"
