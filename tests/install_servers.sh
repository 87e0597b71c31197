#!/bin/sh
# Installs what `make test-integration` needs of Debian and this machine lacks: a browser, Postgres, Redis, and Ceph's
# S3 gateway. Nothing that comes with it is started, now or at boot: the tests start servers of their own, with their
# own folders and ports. What was here before is left alone.
set -eu

missing=
has() { command -v "$1" > /dev/null; }
has chromium || missing="$missing chromium"
ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || missing="$missing postgresql"
has redis-server || missing="$missing redis-server"
has ceph-mon && has ceph-osd && has radosgw && has radosgw-admin && has ceph ||
  missing="$missing ceph-mon ceph-osd radosgw ceph-common"
[ -n "$missing" ] || exit 0

install="apt-get install --yes --no-install-recommends$missing"
stop() {
  echo "the integration tests need$missing, and $1; as root: $install" >&2
  exit 1
}
has apt-get || stop "there is no apt here to install them"
[ "$(id -u)" = 0 ] || stop "only root may install them"

units() { if has systemctl; then systemctl --root=/ list-unit-files --state=enabled --no-legend | cut -d' ' -f1; fi; }
scripts() { ls /etc/init.d; }
units_before=$(units) scripts_before=$(scripts)
added() { printf '%s\n' "$2" | grep -vxF -e "$1" || true; }

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then # Debian's packages ask it whether to start what they brought; without one they do
  trap 'rm -f $policy' EXIT
  trap 'exit 1' INT TERM
  printf '#!/bin/sh\nexit 101\n' > $policy
  chmod 755 $policy
fi

echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || echo "apt's lists could not be renewed; trying with those that are here" >&2
log=$(mktemp)
$install -qq > "$log" 2>&1 || { tail -n 5 "$log" >&2; stop "apt could not install them ($log)"; }
rm -f "$log"

for unit in $(added "$units_before" "$(units)"); do systemctl --root=/ --quiet disable "$unit" || true; done
for name in $(added "$scripts_before" "$(scripts)"); do update-rc.d "$name" disable > /dev/null 2>&1 || true; done
