#!/bin/sh
# Installs the Debian packages that the tests use: `npm run test:setup`. Needs root, or sudo. The tests run without them
# too, and without root: what is missing is skipped, with the reason in the test's name. Where CI is set, a program that is
# missing fails its tests.
set -eu

packages="bash busybox-static btrfs-progs cpio curl e2fsprogs fio fuse3 gnutls-bin groff kmod libnbd-bin libvirt-clients
libvirt0 libxml2-utils linux-image-amd64 man-db mount nbd-client nbd-server nbdkit nginx-light openssl procps qemu-system-common qemu-system-x86
qemu-utils strace systemd util-linux xfsprogs xz-utils"

# shellcheck disable=SC2086 # a list of words
exec sh "$(dirname "$0")/install.sh" test:setup $packages
