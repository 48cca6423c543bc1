#!/usr/bin/env bash
# The front door: finds or makes the environment, then hands over to `python -m dist_trainer launch`.
#
#   ./launch.sh [switches of launch and train]   trains `tiny` on 2 ranks when nothing is said
#   ./launch.sh --setup [EXTRA]                  makes or updates .venv (with the extra, such as dev) and ends
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
stamp=$venv/dist_trainer.stamp

say() { printf 'launch.sh: %s\n' "$*" >&2; }

# The first Python 3.10 or newer that really runs and can make an environment: a pyenv shim may be there and fail.
find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
    say 'no Python 3.10 or newer with the venv module was found (Debian: apt-get install python3-venv)'
    exit 2
}

# What .venv was installed from: the dependency lists, where it stands, and the extra.
fingerprint() {
    { cat -- "$root/pyproject.toml" "$root/constraints.txt" && printf '%s\n' "$venv" "$1"; } | cksum
}

# The stamp is written last, so an install that was cut off is done again.
is_current() {
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] || return 1
    [ "$(cat -- "$stamp")" = "$(fingerprint "$1")" ]
}

set_up() {
    local extra=$1 python
    rm -f -- "$stamp"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "making $venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing dist_trainer${extra:+[$extra]} into $venv; the first time takes some minutes"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" -e "$root${extra:+[$extra]}"
    fingerprint "$extra" >"$stamp"
}

if [ "${1-}" = --setup ]; then
    is_current "${2-}" || set_up "${2-}"
    exit 0
fi

# Somebody's own environment comes first; `find_spec` looks without importing.
has_package='import importlib.util as u, sys; sys.exit(not (u.find_spec("dist_trainer") and u.find_spec("deepspeed")))'
if [ -n "${VIRTUAL_ENV-}" ] && [ "$VIRTUAL_ENV" != "$venv" ] &&
    "$VIRTUAL_ENV/bin/python" -c "$has_package" 2>/dev/null; then
    exec "$VIRTUAL_ENV/bin/python" -m dist_trainer launch "$@"
fi
is_current '' || is_current dev || set_up ''
exec "$venv/bin/python" -m dist_trainer launch "$@"
