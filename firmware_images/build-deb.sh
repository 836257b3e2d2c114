#!/bin/sh
# Build the agent as a Debian package for this machine's architecture: dist/skerry-agent_<version>_<arch>.deb
# usage: build-deb.sh [OUTPUT_FOLDER]      environment: PYTHON (default: the project's .venv), DEB_PYTHON (default 3.11),
#        DEB_COMPRESSION (default xz; none, gzip, zstd: as dpkg-deb -Z)
# needs:  dpkg-deb; for what is compiled of the agent gcc, Python's headers, and libnghttp2-dev for the gRPC door
set -eu

here="$(cd "$(dirname "$0")" && pwd)"
root="$(dirname "$here")"
output="${1:-$root/dist}"
python="${PYTHON:-$root/.venv/bin/python}"
wanted="${DEB_PYTHON:-3.11}"

found="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
[ "$found" = "$wanted" ] || {
    echo "build-deb: Debian's python3 there is $wanted, but $python is $found: compiled wheels would not load" >&2
    exit 3
}
command -v dpkg-deb >/dev/null || { echo "build-deb: dpkg-deb is missing: apt-get install dpkg" >&2; exit 3; }

version="$("$python" -c 'import tomllib, sys; print(tomllib.load(open(sys.argv[1], "rb"))["project"]["version"])' "$root/pyproject.toml")"
architecture="$(dpkg --print-architecture)"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
package="$stage/package"
library="$package/opt/skerry-agent/lib"
mkdir -p "$library" "$package/DEBIAN" "$package/usr/bin" "$package/lib/systemd/system" "$package/usr/share/doc/skerry-agent" \
    "$package/etc/default" "$output"

rm -rf "$root/build"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$stage/wheel" "$root"
wheel="$(ls "$stage"/wheel/skerry-*.whl)"
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --target "$library" \
    --constraint "$root/constraints.txt" "${wheel}[agent]"
# The other side of the wire has no place on a device.
rm -rf "$library/bin" "$library/skerry_server" "$library/skerry_models" "$library/skerry_simulation"
find "$library" -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +
# What is compiled is optional; a package with HTTP/2 in it needs the library that it was linked with.
depends=""
if [ -n "$(find "$library/skerry_agent/serving" -name '_http2.*.so')" ]; then
    depends=", libnghttp2-14"
else
    echo "build-deb: HTTP/2 of the gRPC door is not compiled, this package has grpcio's instead;" \
        "for it: apt-get install gcc libnghttp2-dev, and the headers of $python" >&2
fi

install -m 755 "$here/debian/skerry-agent" "$package/usr/bin/skerry-agent"
install -m 644 "$here/systemd/skerry-agent.service" "$package/lib/systemd/system/skerry-agent.service"
install -m 644 "$here/systemd/skerry-agent-stream@.service" "$package/lib/systemd/system/skerry-agent-stream@.service"
install -m 644 "$here/debian/default" "$package/etc/default/skerry-agent"
# The client of the shared-memory door for C and C++.
install -D -m 644 -t "$package/usr/share/skerry-agent/include" "$root/edge_agent/include/skerry.h" "$root/edge_agent/include/skerry.c"
install -D -m 644 -t "$package/usr/share/skerry-agent/examples" "$root/edge_agent/examples/classify.c"
install -m 644 "$root/LICENSE" "$package/usr/share/doc/skerry-agent/copyright"
install -m 755 "$here/debian/postinst" "$here/debian/prerm" "$here/debian/postrm" "$package/DEBIAN/"
echo /etc/default/skerry-agent > "$package/DEBIAN/conffiles"
size="$(du -sk "$package" | cut -f1)"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" -e "s/@PYTHON@/$wanted/" \
    -e "s/@DEPENDS@/$depends/" "$here/debian/control.in" > "$package/DEBIAN/control"

result="$output/skerry-agent_${version}_${architecture}.deb"
dpkg-deb --root-owner-group "-Z${DEB_COMPRESSION:-xz}" -z1 --build "$package" "$result" >/dev/null
echo "$result"
