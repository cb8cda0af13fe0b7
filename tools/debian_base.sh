#!/usr/bin/env bash
# Make a stand-in for python:3.11-slim from this machine's Debian mirror: debian_base.sh NAME BUILDAH...
#
# For machines that reach no registry. It has Debian 12's Python 3.11 and no security updates, so
# it serves to check the Dockerfile, not to run in production.
set -euo pipefail

name=$1
shift
buildah=("$@")
suite=bookworm
packages=ca-certificates,python-is-python3,python3-pip,python3-venv
public=http://deb.debian.org/debian

# The first address that apt's sources list for a Debian release.
mirror=$(sed -nE 's/^(URIs:|deb( \[[^]]*\])?) +(http[^ ]+\/debian)\/?( .*)?$/\3/p' \
  /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list \
  2>/dev/null | head -n 1 || true)

root=$(mktemp -d -p /var/tmp intraslice-base.XXXXXX)
trap 'rm -rf --one-file-system "$root" "$root.tar" "$root.log"' EXIT
chmod 755 "$root"
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "${mirror:-$public}" \
  >"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2 && exit 1; }

# Nothing of this machine stays in the image: its mirror, its name, its logs.
rm -rf "$root"/var/{cache/apt/archives,lib/apt/lists}/* "$root"/var/log/*.log \
  "$root"/etc/{hostname,resolv.conf}
echo "deb $public $suite main" >"$root/etc/apt/sources.list"

# As an archive, because copied files would all belong to root.
tar -C "$root" -cf "$root.tar" .
container=$("${buildah[@]}" from scratch)
"${buildah[@]}" add --quiet "$container" "$root.tar" /
"${buildah[@]}" config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin \
  --env LANG=C.UTF-8 --cmd python3 "$container"
"${buildah[@]}" commit --quiet --rm "$container" "$name"
