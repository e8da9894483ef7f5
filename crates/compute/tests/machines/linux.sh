#!/bin/sh
# Makes the disk of a small Linux guest: linux.sh IMAGE CACHE, with what the guest runs on standard input.
#
# Debian's kernel for clouds, the drivers of virtio's network card, and busybox with the script as its
# first program. GRUB starts it from the places on the disk at which it lies: there is no file system.
# The kernel is kept in CACHE.
set -eu

image=$1
cache=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# --- The kernel, of which only some files are needed, and nothing is installed.
mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
newest() {
    apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/^ *Depends: //p' | head -n 1
}
fetch() {
    package=$(newest)
    test -n "$package" && (cd "$work" && apt-get download -qq "$package")
}
package=$(newest)
if [ -z "$package" ] || ! [ -d "$cache/guest-$package" ]; then
    # The lists of packages may be missing, or older than what is offered.
    fetch || { apt-get update -qq && fetch; }
fi
kept=$cache/guest-$package
if ! [ -d "$kept" ]; then
    mkdir "$work/kernel"
    dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work/kernel" ./boot ./lib/modules
    mkdir "$work/kept"
    cp "$work"/kernel/boot/vmlinuz-* "$work/kept/vmlinuz"
    for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover \
        net_failover virtio_net; do
        find "$work/kernel/lib" -name "$module.ko" -exec cp '{}' "$work/kept/" ';'
    done
    mv "$work/kept" "$kept"
fi
exec 9>&-

# --- Its first file system.
mkdir -p "$work/root/bin" "$work/root/modules"
cp /bin/busybox "$work/root/bin/"
cp "$kept"/*.ko "$work/root/modules/"
cat > "$work/root/init" << 'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec < /dev/console > /dev/console 2>&1
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover \
    net_failover virtio_net; do
    if [ -e "/modules/$module.ko" ]; then insmod "/modules/$module.ko"; fi
done
ip link set lo up
ip link set eth0 up
. /guest
echo IDLE
while true; do sleep 1000; done
INIT
cat > "$work/root/guest"
chmod 755 "$work/root/init"
(cd "$work/root" && find . | busybox cpio -o -H newc 2> /dev/null | gzip -1) > "$work/initrd"

# --- The disk: GRUB from sector 1, the kernel and the first file system from 1 MiB.
sectors() {
    echo $((($(stat -c %s "$1") + 511) / 512))
}
kernel_sectors=$(sectors "$kept/vmlinuz")
initrd_sectors=$(sectors "$work/initrd")
initrd_at=$((2048 + kernel_sectors))
cat > "$work/grub.cfg" << GRUB
linux (hd0)2048+$kernel_sectors console=ttyS0 quiet panic=-1 ipv6.disable=1
initrd (hd0)$initrd_at+$initrd_sectors
boot
GRUB
grub-mkimage -O i386-pc -p / -c "$work/grub.cfg" -o "$work/core.img" biosdisk linux boot
rm -f "$image"
truncate --size=32M "$image"
write() {
    dd if="$1" of="$image" bs=512 seek="$2" conv=notrunc status=none
}
head -c 440 /usr/lib/grub/i386-pc/boot.img > "$work/boot.img"
write "$work/boot.img" 0
printf '\125\252' | dd of="$image" bs=1 seek=510 conv=notrunc status=none
write "$work/core.img" 1
write "$kept/vmlinuz" 2048
write "$work/initrd" "$initrd_at"
