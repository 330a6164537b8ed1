#!/usr/bin/env bash
# Every static check of the project, called by `make lint`: runs them all, then says which failed.
# A check whose tool is not on this machine is reported as NOT RUN; with LINT_ALL=1 that is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
PATH="$PWD/$BIN:$PATH"
failed=() absent=() passed=0

check() { # NAME COMMAND...
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        printf 'ok       %s\n' "$name"
        passed=$((passed + 1))
    else
        printf 'FAILED   %s\n%s\n' "$name" "$output"
        failed+=("$name")
    fi
}

# check_with TOOL NAME COMMAND...: as check, where the tool is on this machine.
check_with() {
    local tool=$1
    shift
    if command -v "$tool" >/dev/null; then
        check "$@"
    else
        printf 'NOT RUN  %s: %s is not installed\n' "$1" "$tool"
        absent+=("$1 ($tool)")
    fi
}

kustomize_build() { # FOLDER, to standard output
    if command -v kustomize >/dev/null; then kustomize build "$1"; else kubectl kustomize "$1"; fi
}

kustomize_valid() { # FOLDER
    local manifests status=0
    manifests=$(mktemp --suffix .yaml)
    kustomize_build "$1" >"$manifests" && kubernetes-validate --strict -k 1.32.0 "$manifests" || status=1
    rm -f "$manifests"
    return "$status"
}

site() {
    local folder status=0
    folder=$(mktemp -d)
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir "$folder" || status=1
    rm -rf "$folder"
    return "$status"
}

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "layers (import-linter)" lint-imports
check "structure (cycles, class names, sizes)" python scripts/check_structure.py
check "dead code (vulture)" python scripts/check_dead_code.py
check "words" python scripts/check_words.py
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
check "shell syntax" bash -n "${scripts[@]}"
check "yamllint" yamllint --strict .
mapfile -t workflows < <(git ls-files '.github/workflows/*.yml')
if [ "${#workflows[@]}" -gt 0 ]; then
    check "workflow schema" check-jsonschema --builtin-schema vendor.github-workflows "${workflows[@]}"
    check "workflow security (zizmor)" zizmor --offline --quiet .github
fi
[ ! -e .github/dependabot.yml ] ||
    check "dependabot schema" check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
[ ! -e docker/compose.yaml ] ||
    check "compose schema" check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
mapfile -t dockerfiles < <(git ls-files 'docker/*.Dockerfile')
[ "${#dockerfiles[@]}" -eq 0 ] || check "hadolint" hadolint "${dockerfiles[@]}"
# Debian's kubectl (1.20) has a kustomize that is too old for these files; any since 1.27 will do.
builder=kustomize
if ! command -v kustomize >/dev/null && kubectl version --client 2>/dev/null | grep -q '^Kustomize Version: v5'; then
    builder=kubectl
fi
for folder in k8s/base k8s/overlays/*; do
    [ ! -e "$folder/kustomization.yaml" ] ||
        check_with "$builder" "kustomize $folder" kustomize_valid "$folder"
done
if [ -d monitoring/prometheus ]; then
    check_with promtool "prometheus configuration" promtool check config monitoring/prometheus/prometheus.yml
    check_with promtool "alert rules" promtool check rules monitoring/prometheus/rules/*.yml
    check_with promtool "alert rule tests" promtool test rules monitoring/prometheus/tests/*.yml
    check_with amtool "alertmanager configuration" amtool check-config monitoring/alertmanager/alertmanager.yml
fi
check "rendered alert rules and dashboards are current" python -m mario.alerting --check
[ ! -e mkdocs.yml ] || check "documentation" site

printf '%d passed, %d failed, %d not run\n' "$passed" "${#failed[@]}" "${#absent[@]}"
for name in "${failed[@]}"; do printf 'failed: %s\n' "$name"; done
for name in "${absent[@]}"; do printf 'not run: %s\n' "$name"; done
if [ "${#absent[@]}" -gt 0 ] && [ -n "${LINT_ALL:-}" ]; then exit 1; fi
[ "${#failed[@]}" -eq 0 ]
