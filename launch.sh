#!/usr/bin/env bash
# The front door: finds or makes the environment, then hands over to `python -m dist_trainer`.
set -euo pipefail

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
venv=$root/.venv
stamp=$venv/dist_trainer.stamp

say() { printf 'launch.sh: %s\n' "$*" >&2; }

usage() {
    cat <<'END'
usage: ./launch.sh [switches of launch and train]   trains `tiny` on 2 ranks when nothing is said
       ./launch.sh COMMAND [SWITCHES]               any other command, such as plan or report
       ./launch.sh --setup [EXTRA]                  makes or updates .venv (with the extra, such as dev) and ends
END
}

mistake() {
    say "$@"
    exit 2
}

# The first Python 3.10 or newer that really runs and can make an environment: a pyenv shim may be there and fail.
find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
    mistake 'no Python 3.10 or newer with the venv module was found (Debian: apt-get install python3-venv)'
}

# The names in pyproject.toml under [project.optional-dependencies], one a line.
extras() {
    sed -n '/^\[project\.optional-dependencies\]/,/^\[/s/^\([A-Za-z0-9_-]*\) *=.*/\1/p' "$root/pyproject.toml"
}

check_setup() {
    [ $# -le 1 ] || mistake "--setup takes one extra, not $#: $*"
    [ -z "${1-}" ] || extras | grep -qxF -e "$1" ||
        mistake "there is no extra '$1'; there is: $(extras | paste -sd ' ')"
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
        "$python" -c 'import sys; sys.argv[1].encode()' "$root" 2>/dev/null ||
            mistake "no environment can be made in a folder whose name is not UTF-8: $root"
        say "making $venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing dist_trainer${extra:+[$extra]} into $venv; the first time takes some minutes"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" -e "$root${extra:+[$extra]}"
    fingerprint "$extra" >"$stamp"
}

# `find_spec` looks without importing.
has_package='import importlib.util as u, sys; sys.exit(not (u.find_spec("dist_trainer") and u.find_spec("deepspeed")))'

# The Python that has the program: of somebody's own environment, else of .venv. Fails where there is none yet.
ready_python() {
    if [ -n "${VIRTUAL_ENV-}" ] && [ "$VIRTUAL_ENV" != "$venv" ] &&
        "$VIRTUAL_ENV/bin/python" -c "$has_package" 2>/dev/null; then
        printf '%s\n' "$VIRTUAL_ENV/bin/python"
    elif is_current '' || is_current dev; then
        printf '%s\n' "$venv/bin/python"
    else
        return 1
    fi
}

case "${1-}" in
--setup)
    shift
    check_setup "$@"
    is_current "${1-}" || set_up "${1-}"
    exit 0
    ;;
--setup=*) mistake "an extra stands apart: --setup ${1#*=}" ;;
-h | --help)
    usage
    # Nobody who asks for help waits some minutes for it.
    python=$(ready_python) || exit 0
    printf '\n'
    set -- launch "$@"
    ;;
--version) ;;
-* | '') set -- launch "$@" ;;
esac
python=${python-$(ready_python)} || {
    set_up ''
    python=$venv/bin/python
}
exec "$python" -m dist_trainer "$@"
