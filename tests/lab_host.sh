#!/bin/sh
# Process 1 of one host of the lab (tests/lab.py). It has namespaces of its own already; here it makes them a host's.
#
#   lab_host.sh NAME INTERFACE ADDRESS HARDWARE_ADDRESS ETC [PATH...]
#
# ETC holds the lab's `hosts` and `ssh_config`, and this host's `sshd_config.NAME`. The paths stay visible where a mount of
# the host's own would hide them. It says `alone` when the mounts are its own, waits for the line that says that the
# interface is there, and says `up` when sshd listens.
set -eu
name=$1 interface=$2 address=$3 hardware_address=$4 etc=$5
shift 5

hostname "$name"

mount -t tmpfs tmpfs /mnt
kept=0
for path; do
    mkdir "/mnt/$kept"
    mount --rbind "$path" "/mnt/$kept"
    kept=$((kept + 1))
done
mount --bind "$etc/hosts" /etc/hosts
mount -t tmpfs -o mode=755 tmpfs /etc/ssh/ssh_config.d
cp "$etc/ssh_config" /etc/ssh/ssh_config.d/lab.conf
# Without its own /sys the host would list the interfaces of the machine below.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/munge /run/lock
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
kept=0
for path; do
    mkdir -p "$path"
    mount --move "/mnt/$kept" "$path"
    kept=$((kept + 1))
done
umount /mnt

echo alone
read -r _
ip link set lo up
if [ "$interface" = br0 ]; then
    ip link add br0 type bridge
fi
ip address add "$address/24" dev "$interface"
ip link set "$interface" address "$hardware_address" up
/usr/sbin/sshd -D -e -f "$etc/sshd_config.$name" </dev/null >/dev/null &
# A socket on port 22 (0016) in the state LISTEN (0A).
until grep -q ':0016 00000000:0000 0A' /proc/net/tcp; do
    sleep 0.01
done
echo up
exec </dev/null >/dev/null
# Waiting for sshd, which does not end, it also reaps whatever is orphaned on the host.
wait
