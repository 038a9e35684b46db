#!/bin/sh
# Installs the Debian packages of the tests with Ceph, which are many and large: `npm run test:ceph` does it first.
set -eu
exec sh "$(dirname "$0")/../install.sh" test:ceph bash ceph-common ceph-mgr ceph-mon ceph-osd curl libnbd-bin openssh-client \
  openssh-server openssl qemu-block-extra qemu-utils radosgw s3cmd tgt util-linux
