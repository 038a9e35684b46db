#!/bin/sh
# Builds what the tests with the kernel's dm-clone need: `npm run test:kernel` does it first. Debian's kernels come without
# dm-clone, so the module is built from Debian's own source package for the newest kernel installed; the packages are
# installed first (needs root, or sudo, where one is missing). What is built stays in $DMCLONE_KERNEL_LAB
# (${XDG_CACHE_HOME:-~/.cache}/dmclone-kernel-lab) and is built again when anything it is made from has changed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
lab=${DMCLONE_KERNEL_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/dmclone-kernel-lab}
# dmsetup, losetup (of mount), blockdev and dmesg (util-linux) and cmp (diffutils) are those that the guest uses, too.
packages="busybox-static cpio diffutils dmsetup gcc kmod libc6-dev make mount qemu-system-x86 util-linux xz-utils"

# The newest kernel that is installed with modules and with headers to build against; nothing where there is none.
newest_kernel() {
  for modules in /lib/modules/*; do
    release=${modules##*/}
    [ -e "/boot/vmlinuz-$release" ] && [ -e "$modules/modules.dep" ] && [ -e "/usr/src/linux-headers-$release/Module.symvers" ] &&
      echo "$release"
  done | sort -V | tail -n 1
}

# Image and headers must be of one number: where they are not, the packages that depend on the newest of each are installed.
release=$(newest_kernel)
if [ -z "$release" ]; then
  sh "$here/../install.sh" test:kernel linux-image-amd64 linux-headers-amd64
  release=$(newest_kernel)
fi
if [ -z "$release" ]; then
  # Both are installed, but of different numbers: an upgrade brings them together.
  as_root=""
  [ "$(id -u)" -eq 0 ] || as_root=sudo
  $as_root apt-get update -q
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends linux-image-amd64 linux-headers-amd64
  release=$(newest_kernel)
fi
[ -n "$release" ] || { echo "test:kernel: Cannot build dm-clone: no kernel of Debian is installed with its headers" >&2; exit 1; }

# Source packages go by the first two numbers.
series=$(echo "$release" | cut -d . -f 1,2)
# shellcheck disable=SC2086 # a list of words
sh "$here/../install.sh" test:kernel $packages "linux-source-$series"
source=/usr/src/linux-source-$series.tar.xz

made_from="$release $(dpkg-query -W -f '${Version}' "linux-source-$series") $(cat "$0" "$here/guest-io.c" | sha256sum | cut -d ' ' -f 1)"
if [ "$(cat "$lab/made-from" 2>/dev/null)" = "$made_from" ]; then exit 0; fi

echo "test:kernel: building dm-clone for Linux $release in $lab"
mkdir -p "$lab"
# Built beside its place, and moved there whole: what is found is complete, also when two do this at once.
build=$(mktemp -d "$lab/build.XXXXXX")
trap 'rm -rf "$build"' EXIT
mkdir "$build/module" "$build/ready"
tar -x -J -f "$source" -C "$build/module" --strip-components=3 --wildcards \
  "linux-source-$series/drivers/md/dm-clone*" "linux-source-$series/drivers/md/*.h"
printf 'obj-m := dm-clone.o\ndm-clone-y := dm-clone-target.o dm-clone-metadata.o\n' > "$build/module/Makefile"
make -s -C "/usr/src/linux-headers-$release" "M=$build/module" modules > "$build/log" 2>&1 || { cat "$build/log" >&2; exit 1; }
mv "$build/module/dm-clone.ko" "$build/ready/"
gcc -O2 -Wall -Wextra -Werror -static -o "$build/ready/guest-io" "$here/guest-io.c"
echo "$release" > "$build/ready/release"
echo "$made_from" > "$build/ready/made-from"
rm -f "$lab/made-from"
mv -f "$build/ready/dm-clone.ko" "$build/ready/guest-io" "$build/ready/release" "$lab/"
mv -f "$build/ready/made-from" "$lab/"
