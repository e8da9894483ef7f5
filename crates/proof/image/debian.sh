#!/bin/sh
# Makes the disk of a Debian 12 server: debian.sh bios|lvm|uefi IMAGE
#
# bios: MBR partition table, GRUB in the MBR and the gap behind it. lvm: the same, with root on a logical
# volume. uefi: GPT, GRUB on an EFI system partition. Root is one ext4 file system. PostgreSQL 15, SSH and a login on the serial console run.
# What makes one server differ from another (keys, machine id) is not here: see `server_disk.rs`.
#
# The kernel that runs this may know no partitions, no vfat and no device mapper: the root partition is a
# loop device at its offset, the EFI system partition is written by mtools, and the only logical volume has
# all of its extents in a row.
set -eu

layout=$1
image=$2

disk_mib=2048
packages=systemd-sysv,udev,dbus,kmod,iproute2,initramfs-tools,zstd,linux-image-amd64,\
openssh-server,postgresql-15,netbase,ca-certificates
root_uuid=6c696665-626f-4174-8000-736f75726365
modules='ext2 search search_fs_uuid linux normal configfile echo test serial terminal'
# Where the boot loader finds root, and where the kernel does.
kernel_root=UUID=$root_uuid

work=$(mktemp -d)
root=$work/root
loop=
finish() {
    for mounted in dev/pts dev proc sys .; do
        if mountpoint --quiet "$root/$mounted"; then umount "$root/$mounted"; fi
    done
    if [ -n "$loop" ]; then losetup --detach "$loop"; fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP
mkdir "$root"

# Commands of LVM that touch this disk alone, and leave nothing in /etc/lvm.
offline() {
    lvm "$@" --driverloaded=n --devices="$loop" --config='backup { backup=0 archive=0 }'
}

# --- The partition table.
rm -f "$image"
truncate --size="${disk_mib}M" "$image"
case $layout in
bios)
    root_mib=1
    echo "label: dos
label-id: 0x6c696665
start=1MiB, type=83, bootable" | sfdisk --quiet "$image"
    ;;
lvm)
    # The first extent lies 1 MiB behind the beginning of the partition.
    root_mib=2
    packages=$packages,lvm2
    modules="lvm $modules"
    kernel_root=/dev/mapper/source-root
    echo "label: dos
label-id: 0x6c696665
start=1MiB, type=8e, bootable" | sfdisk --quiet "$image"
    loop=$(losetup --find --show --offset=1MiB "$image")
    for command in 'pvcreate --quiet' 'vgcreate --quiet source'; do
        # shellcheck disable=SC2086
        offline $command "$loop"
    done
    offline lvcreate --quiet --activate=n --zero=n --wipesignatures=n --extents=100%FREE --name=root source
    losetup --detach "$loop"
    loop=
    ;;
uefi)
    root_mib=17
    echo "label: gpt
start=1MiB, size=16MiB, type=uefi, name=ESP
start=17MiB, size=$((disk_mib - 18))MiB, type=linux, name=root" | sfdisk --quiet "$image"
    ;;
*)
    echo "debian.sh: the layouts are bios, lvm and uefi, not $layout" >&2
    exit 2
    ;;
esac

# --- The root file system. The end of a GPT disk belongs to the second copy of its table; the end of a
# volume group that is no whole extent to nobody.
root_size_mib=$(((disk_mib - root_mib - 1) / 4 * 4))
loop=$(losetup --find --show --offset=$((root_mib << 20)) --sizelimit=$((root_size_mib << 20)) "$image")
mkfs.ext4 -q -U "$root_uuid" -L root -E lazy_itable_init=0,lazy_journal_init=0 "$loop"
mount "$loop" "$root"

# What no server of ours uses would only make the first copy longer. Drivers of disks and of wired
# networks all stay.
mkdir -p "$root/etc/dpkg/dpkg.cfg.d"
for unused in sound drivers/gpu drivers/media drivers/net/wireless drivers/staging drivers/infiniband \
    drivers/iio net/bluetooth net/wireless net/mac80211; do
    echo "path-exclude=/lib/modules/*/kernel/$unused/*"
done > "$root/etc/dpkg/dpkg.cfg.d/small"
# Before the kernel's package makes the initramfs: every disk driver is in it, so that the server
# starts on other hardware.
mkdir -p "$root/etc/initramfs-tools/conf.d"
echo 'MODULES=most' > "$root/etc/initramfs-tools/conf.d/lifeboat"

mkdir "$work/packages"
DEBIAN_FRONTEND=noninteractive debootstrap --variant=minbase --cache-dir="$work/packages" \
    --include="$packages" bookworm "$root"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*

# --- The server.
echo source > "$root/etc/hostname"
rm -f "$root/etc/resolv.conf"
printf '127.0.0.1 localhost\n127.0.1.1 source\n' > "$root/etc/hosts"
echo "$kernel_root / ext4 errors=remount-ro 0 1" > "$root/etc/fstab"
cat > "$root/etc/systemd/network/wired.network" <<'END'
[Match]
Name=en*

[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
END
echo 'PermitRootLogin prohibit-password
UseDNS no' > "$root/etc/ssh/sshd_config.d/server.conf"
rm -f "$root"/etc/ssh/ssh_host_*
echo 'root:server' | chroot "$root" chpasswd
chroot "$root" systemctl --quiet enable systemd-networkd serial-getty@ttyS0.service
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service
# PostgreSQL is for programs on the server, which need no password.
sed -i 's/^local.*all.*postgres.*peer$/local all all trust/' "$root/etc/postgresql/15/main/pg_hba.conf"

# --- The boot loader.
mkdir -p "$root/boot/grub"
cat > "$root/boot/grub/grub.cfg" <<END
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
set timeout=0
menuentry 'Debian GNU/Linux' {
    search --no-floppy --fs-uuid --set=root $root_uuid
    linux /vmlinuz root=$kernel_root ro console=tty0 console=ttyS0,115200
    initrd /initrd.img
}
END
embedded=$work/embedded.cfg
echo "search --no-floppy --fs-uuid --set=root $root_uuid
set prefix=(\$root)/boot/grub
configfile \$prefix/grub.cfg" > "$embedded"

# What was deleted meanwhile is no data of this disk.
fstrim "$root"
umount "$root"
losetup --detach "$loop"
loop=

into_image() {
    dd of="$image" bs=1 conv=notrunc status=none "$@"
}
case $layout in
bios | lvm)
    # shellcheck disable=SC2086 # A list of words.
    grub-mkimage --format=i386-pc --prefix=/boot/grub --config="$embedded" --output="$work/core.img" \
        biosdisk part_msdos $modules
    # The code of the MBR ends where the disk's signature and the partition table begin.
    into_image if=/usr/lib/grub/i386-pc/boot.img count=440
    into_image if="$work/core.img" seek=512
    ;;
uefi)
    # shellcheck disable=SC2086
    grub-mkimage --format=x86_64-efi --prefix=/boot/grub --config="$embedded" --output="$work/grub.efi" \
        part_gpt $modules
    truncate --size=16M "$work/esp"
    mkfs.vfat -n ESP "$work/esp" > "$work/mkfs.log"
    mmd -i "$work/esp" ::EFI ::EFI/BOOT
    mcopy -i "$work/esp" "$work/grub.efi" ::EFI/BOOT/BOOTX64.EFI
    dd if="$work/esp" of="$image" bs=1M seek=1 conv=notrunc,sparse status=none
    ;;
esac
