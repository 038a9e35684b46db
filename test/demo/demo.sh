#!/bin/sh
# Clones a disk image in front of your eyes: `npm run demo [-- IMAGE]`. Without an image it makes a small ext4 one with
# files in it. Works in a directory of its own under TMPDIR, which is removed at the end; IMAGE is only read. No root.
set -eu

PATH=$PATH:/usr/sbin:/sbin # mke2fs and e2fsck, which an ordinary user's PATH lacks
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/clone-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
clone() { say clone "$@"; node "$root/bin/clone.js" "$@"; }

image=${1:-}
if [ -n "$image" ]; then
  image=$(cd "$(dirname "$image")" && pwd)/$(basename "$image")
else
  command -v mke2fs >/dev/null || { echo "demo: Cannot make an image: mke2fs is missing (package e2fsprogs); or give it one: npm run demo -- IMAGE" >&2; exit 1; }
  image=$work/base.img
  cp -r "$root/src" "$work/files"
  head -c 64M /dev/urandom >"$work/files/data.bin"
  say mke2fs -d files base.img
  mke2fs -q -t ext4 -L demo -d "$work/files" "$image" 256M
fi

cd "$work"
clone create "$image" disk.img
say "clone hydrate --rate 20M disk.img    # and Ctrl-C after two seconds"
node "$root/bin/clone.js" hydrate --rate 20M disk.img &
pid=$!
sleep 2
kill -INT $pid
wait $pid || [ $? -eq 130 ]
clone status disk.img
clone hydrate disk.img
clone check disk.img
clone finalize --verify disk.img
say cmp "$image" disk.img
size=$(wc -c <"$image")
cmp -n "$size" "$image" disk.img && echo "identical, $size bytes"
[ -n "${1:-}" ] || { say e2fsck -fn disk.img; e2fsck -fn disk.img; }
