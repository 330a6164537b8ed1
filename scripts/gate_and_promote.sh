#!/usr/bin/env bash
# Judges a challenger and promotes it where the verdict says so: `gate_and_promote.sh CHALLENGER TASK`.
# Ends with 0 after a promotion and with 4 where the champion stays, as `mario gate` does.
set -euo pipefail
challenger=$1 task=$2
mario=${MARIO:-.venv/bin/mario}

code=0
output=$("$mario" gate "$challenger" --task "$task") || code=$?
printf '%s\n' "$output"
[ "$code" -eq 0 ] || exit "$code"
verdict=$(sed -nE 's/^verdict ([^;[:space:]]+);.*/\1/p' <<<"$output" | tail -n 1)
if [ -z "$verdict" ]; then
    echo "gate_and_promote: the gate named no verdict; expected a line 'verdict ID; …'" >&2
    exit 2
fi
exec "$mario" promote "$verdict"
