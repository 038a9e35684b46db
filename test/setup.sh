#!/bin/sh
# Installs the Debian packages that the tests use: `npm run test:setup`. Needs root, or sudo. The tests run without them
# too, and without root: what is missing is skipped, with the reason in the test's name. Where CI is set, a program that is
# missing fails its tests.
set -eu

packages="bash busybox-static btrfs-progs cpio curl e2fsprogs fio fuse3 gnutls-bin groff kmod libnbd-bin libvirt-clients
libvirt0 libxml2-utils linux-image-amd64 man-db mount nbd-client nbdkit openssl procps qemu-system-common qemu-system-x86
qemu-utils systemd util-linux xfsprogs xz-utils"

missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "test:setup: Cannot install$missing: needs root, and there is no sudo" >&2; exit 1; }
  as_root=sudo
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of words
$as_root apt-get install -q -y --no-install-recommends $missing
