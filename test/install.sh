#!/bin/sh
# install.sh WHO PACKAGE…: installs the Debian packages that are not there yet. Needs root, or sudo, for those alone. WHO begins
# the line that says why it cannot.
set -eu

who=$1
shift
missing=""
for package in "$@"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "$who: Cannot install$missing: needs root, and there is no sudo" >&2; exit 1; }
  as_root=sudo
fi
$as_root apt-get update -q
# By env, since sudo takes away what is exported.
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
