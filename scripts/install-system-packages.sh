#!/bin/sh
# Install the Debian packages that are named and missing. Needs root, or sudo, only when one is missing.
# usage: install-system-packages.sh [PACKAGE...] [--optional PACKAGE...]
# Skerry works without the optional ones: where they cannot be installed this says so, and that is no error.
set -eu

needed=""
optional=""
policy=/usr/sbin/policy-rc.d
made_policy=""
as_root=""

finish() {
    status=$?
    [ -z "$made_policy" ] || $as_root rm -f "$policy"
    if [ "$status" -ne 0 ] && [ -z "$needed" ]; then
        echo "Going on without$optional, which is optional. To have it, as root: apt-get install$optional" >&2
        status=0
    fi
    exit "$status"
}

kind=needed
for package in "$@"; do
    if [ "$package" = --optional ]; then
        kind=optional
    elif dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed; then
        :
    elif [ "$kind" = needed ]; then
        needed="$needed $package"
    else
        optional="$optional $package"
    fi
done
[ -n "$needed$optional" ] || exit 0

trap finish EXIT
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        [ -z "$needed" ] ||
            echo "These packages are needed:$needed. Install them as root: apt-get install$needed$optional" >&2
        exit 3
    }
    as_root="sudo"
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# The package would start a broker of its own on the standard port; Skerry brings its own configuration.
if [ ! -e "$policy" ]; then
    made_policy=1
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
# shellcheck disable=SC2086
[ -z "$needed" ] || $as_root apt-get install -y -qq --no-install-recommends $needed
needed=""
# shellcheck disable=SC2086
[ -z "$optional" ] || $as_root apt-get install -y -qq --no-install-recommends $optional
