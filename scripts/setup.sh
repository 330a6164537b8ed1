#!/usr/bin/env bash
# Makes the virtual environment: `setup.sh dependencies|native PYTHON VENV EXTRAS`, called by `make setup`.
set -euo pipefail
step=$1 python=$2 venv=$3 extras=$4
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# Installs Debian packages where that is possible without asking; otherwise says which to install.
apt_install() {
    local sudo=()
    command -v apt-get >/dev/null || die "missing: $*. Install them with your package manager and run make setup again."
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || die "missing: $*. Run 'sudo apt-get install $*' and then make setup again."
        sudo=(sudo -n)
    fi
    say "apt-get install $*"
    "${sudo[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists that are here"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "apt-get could not install: $*. Install them by hand and run make setup again."
}

system_packages() {
    command -v "$python" >/dev/null || apt_install python3 python3-venv python3-dev
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "got $("$python" --version), expected Python 3.11 or newer; run make setup PYTHON=python3.11"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    # nes-py is published as C++ source, and the console of this project is C++ too.
    command -v g++ >/dev/null || apt_install build-essential
    local header
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    [ -e "$header" ] || apt_install python3-dev
}

# Without bytecode: Python makes it for what is imported, which is far less than what is installed.
pip_install() {
    "$venv/bin/pip" install -qq --disable-pip-version-check --no-compile -c constraints.txt "$@"
}

case "$step" in
dependencies)
    system_packages
    [ -x "$venv/bin/python" ] || { say "virtual environment in $venv"; "$python" -m venv "$venv"; }
    # PyTorch first and by its exact version: once it is there, no resolver swaps it for another build.
    torch=$(grep -m1 '^torch==' constraints.txt)
    say "$torch"
    pip_install "$torch"
    say "dependencies of .[$extras]"
    requirements=$(mktemp)
    trap 'rm -f "$requirements"' EXIT
    "$venv/bin/python" scripts/requirements.py "build,base,$extras" >"$requirements"
    pip_install --requirement "$requirements"
    "$venv/bin/pip" check
    ;;
native)
    say "the package, editable, with its native console"
    pip_install --no-deps --no-build-isolation --editable .
    # A failed compilation still installs the package, so that it works where there is no compiler;
    # here there is one, so a missing module is an error in the C++ sources.
    if [ -e CMakeLists.txt ] && ! "$venv/bin/python" -c 'import mario.game._native'; then
        die "the native console was not built; see why with: $venv/bin/pip install -v --no-deps --no-build-isolation --editable ."
    fi
    # `bentoml build` packs this folder and not the environment, so the module lies here, too.
    rm -f mario/game/_native.*.so
    if [ -e CMakeLists.txt ]; then
        cp "$("$venv/bin/python" -c 'import mario.game._native as module; print(module.__file__)')" mario/game/
    fi
    ;;
*) die "got step '$step', expected 'dependencies' or 'native'" ;;
esac
