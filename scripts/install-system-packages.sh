#!/bin/sh
# Install the Debian packages that are named and missing. Needs root, or sudo, only when one is missing.
set -eu

missing=""
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "These packages are needed:$missing. Install them as root: apt-get install$missing" >&2
        exit 3
    }
    as_root="sudo"
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# The package would start a broker of its own on the standard port; Skerry brings its own configuration.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086
$as_root apt-get install -y -qq --no-install-recommends $missing
