# Sourced by init in the comparison image only: what xl needs, and a shell for the harness.
#
# THE SHELL HAS NO PASSWORD. It is for tests and benchmarks on the loopback device; an image
# with this file must never be reachable from a network.

mkdir -p /var/log/xen/console /var/lib/xen /run/xenstored
/usr/lib/xen-4.17/bin/xen-init-dom0
/usr/lib/xen-4.17/bin/xenconsoled --pid-file /run/xen/xenconsoled.pid
nc -ll -p 7071 -e /bin/sh &
