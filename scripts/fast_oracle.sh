#!/usr/bin/env bash
# Compile nes-py's unchanged sources with link-time and profile-guided optimisation.
#   scripts/fast_oracle.sh build/oracle && PYTHONPATH=build/oracle python benchmarks/exactness.py
# The comparison with nes-py takes nes-py's time; this build is about twice as fast.
set -euo pipefail
target=${1:?usage: scripts/fast_oracle.sh FOLDER [PYTHON]}
python=${2:-python}
flags=(-std=c++1y -O3 -march=native -flto -fno-semantic-interposition -shared -fPIC)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

version=$("$python" -c "from importlib.metadata import version; print(version('nes-py'))")
"$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$work" "nes-py==$version"
tar --extract --gzip --file "$work/nes_py-$version.tar.gz" --directory "$work"
sources="$work/nes_py-$version/nes_py/nes"
installed=$("$python" -c "import nes_py, pathlib; print(pathlib.Path(nes_py.__file__).parent)")
mkdir -p "$target"
rm -rf "$target/nes_py"
cp -r "$installed" "$target/nes_py"
library=$(echo "$target"/nes_py/lib_nes_env*.so)

compile() { # compile PROFILE_FLAG...
    # The compiler finds the profile by the objects' names, so the output must be the same each time.
    (cd "$work" && g++ "${flags[@]}" "$@" -I"$sources/include" \
        "$sources"/src/*.cpp "$sources"/src/mappers/*.cpp -o "$work/library.so")
    cp "$work/library.so" "$library"
}

compile -fprofile-generate
PYTHONPATH="$target:$PWD" "$python" - <<'PY'
from mario.game.smb import stage
from mario.game.console.nes_py import NesPyConsole
from tests.support.lockstep import random_buttons

console = NesPyConsole()
stage.start_level(console, "1-1")
for _, buttons in zip(range(3000), random_buttons(0)):
    console.step(buttons)
PY
compile -fprofile-use -fprofile-correction -Wno-missing-profile
echo "compiled with ${flags[*]} and a profile of 3,000 frames" >"$target/nes_py/BUILD"
echo "PYTHONPATH=$target plays $(cat "$target/nes_py/BUILD")"
