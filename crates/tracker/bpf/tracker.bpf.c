// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Marks the blocks of one disk that are written. What the bits mean and why none
// is lost is told in ../src/lib.rs; the layout of the maps in ../src/layout.rs.
//
// Compiled twice by build.sh: with atomic OR (Linux 5.12 on), and with
// -DPLAIN_BYTES for older kernels on x86-64, where a bit is set by storing 0xff to
// its byte: coarser (8 blocks), but such a store cannot undo a neighbour's bit.
// Nothing is included, so that the objects depend on this file and clang alone.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define KERNEL_LAYOUT __attribute__((preserve_access_index))

// How a map's properties are written down in BTF.
#define MAP_UINT(name, value) int (*name)[value]
#define MAP_TYPE(name, type) typeof(type) *name

#define BPF_MAP_TYPE_ARRAY 2
#define BPF_F_MMAPABLE (1u << 10)

static void *(*map_lookup)(const void *map, const void *key) = (void *)1;

// Tracing programs may read kernel structures only under a licence of this list.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

// The few kernel fields that are read; the loader puts in the running kernel's offsets.
struct bvec_iter {
	u64 bi_sector;
	u32 bi_size;
} KERNEL_LAYOUT;

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
} KERNEL_LAYOUT;

struct gendisk {
	int major;
	int first_minor;
} KERNEL_LAYOUT;

struct request_queue {
	struct gendisk *disk;
} KERNEL_LAYOUT;

struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
} KERNEL_LAYOUT;

// Before 5.15 the queue did not know its disk, the request did.
struct request___old {
	struct gendisk *rq_disk;
} KERNEL_LAYOUT;

#define FIELD_EXISTS 2

// Which disk this instance watches; the loader fills them in, then they are frozen.
volatile const u32 disk_major = 0;
volatile const u32 disk_minor = 0;
volatile const u64 disk_blocks = 0;
volatile const u32 whole_base = 0;   // first word of the "whole region" bits
volatile const u32 summary_base = 0; // first word of the "something in this region" bits
volatile const u32 issue_has_queue = 0; // block_rq_issue(q, rq), not (rq)

#define WORDS(name)                                  \
	struct {                                     \
		MAP_UINT(type, BPF_MAP_TYPE_ARRAY);  \
		MAP_UINT(map_flags, BPF_F_MMAPABLE); \
		MAP_UINT(max_entries, 64);           \
		MAP_TYPE(key, u32);                  \
		MAP_TYPE(value, u64);                \
	} name SEC(".maps")

WORDS(done);
WORDS(issued0);
WORDS(issued1);
WORDS(open);
WORDS(taken); // user space alone
WORDS(stats);
WORDS(meta); // user space alone
WORDS(control);

enum bitmap { DONE, ISSUED0, ISSUED1, OPEN };

// Slots of `stats`, 16 for each copy of the programs.
enum counter { ISSUES, COMPLETIONS, PASSTHROUGH, OPAQUE, BEYOND_END, FAILED, MULTI_RANGE, WHOLE_REGIONS };

enum op {
	OP_READ = 0,
	OP_WRITE = 1,
	OP_FLUSH = 2,
	OP_DISCARD = 3,
	OP_SECURE_ERASE = 5,
	OP_WRITE_SAME = 7, // zone append since 5.19; zoned disks are refused by the agent
	OP_WRITE_ZEROES = 9,
	OP_SCSI_IN = 32,
	OP_SCSI_OUT = 33,
	OP_DRV_IN = 34,
	OP_DRV_OUT = 35,
};

#define REGION_SHIFT 12
#define EXACT_WORDS_MAX 64
#define DISCARD_RANGES_MAX 256

// An atomic addition. On x86-64 it is also a full fence, which the plain stores of
// PLAIN_BYTES need after them: the epoch that a later event reads must not be older.
INLINE void count(u32 copy, enum counter counter)
{
	u32 key = copy * 16 + counter;
	u64 *slot = map_lookup(&stats, &key);
	if (slot)
		__sync_fetch_and_add(slot, 1);
}

INLINE u64 *word_at(u32 bitmap, u32 key)
{
	if (bitmap == DONE)
		return map_lookup(&done, &key);
	if (bitmap == ISSUED0)
		return map_lookup(&issued0, &key);
	if (bitmap == OPEN)
		return map_lookup(&open, &key);
	return map_lookup(&issued1, &key);
}

#ifndef PLAIN_BYTES
// The bits first..last that are in the word `index`.
INLINE u64 word_mask(u64 index, u64 first, u64 last)
{
	u64 mask = ~0ull;
	if (index == first >> 6)
		mask &= ~0ull << (first & 63);
	if (index == last >> 6)
		mask &= ~0ull >> (63 - (last & 63));
	return mask;
}
#endif

// Sets the bits first..last, counted from the word `base`. A function of its own that
// is not static, so that the verifier looks at it once and not at every call.
__attribute__((noinline)) int set_bits(u32 bitmap, u32 base, u64 first, u64 last)
{
#ifdef PLAIN_BYTES
	u64 byte = first >> 3;
	for (u32 i = 0; i <= EXACT_WORDS_MAX * 8; i++, byte++) {
		if (byte > last >> 3)
			break;
		u8 *word = (u8 *)word_at(bitmap, base + (u32)(byte >> 3));
		if (word)
			*(volatile u8 *)(word + (byte & 7)) = 0xff;
	}
#else
	u64 index = first >> 6;
	for (u32 i = 0; i < EXACT_WORDS_MAX; i++, index++) {
		if (index > last >> 6)
			break;
		u64 mask = word_mask(index, first, last);
		u64 *word = word_at(bitmap, base + (u32)index);
		if (word) {
			// Using the old value makes it the fetching instruction, which is
			// fully ordered on arm64 too; the other one is not.
			u64 old = __sync_fetch_and_or(word, mask);
			asm volatile("" : : "r"(old));
		}
	}
#endif
	return 0;
}

// Marks what a write covers. The summary comes last: a taker that clears it first
// and then looks at the blocks misses nothing.
__attribute__((noinline)) int mark(u32 bitmap, u32 copy, u64 sector, u64 bytes)
{
	u64 first = sector >> 3;
	u64 end = ((sector << 9) + bytes + 4095) >> 12;
	u64 blocks = disk_blocks;
	u32 whole = whole_base;
	u32 summary = summary_base;

	if (bytes == 0)
		return 0;
	if (end > blocks) {
		count(copy, BEYOND_END);
		end = blocks;
	}
	if (first >= end)
		return 0;
	u64 last = end - 1;
	if ((last >> 6) - (first >> 6) < EXACT_WORDS_MAX) {
		set_bits(bitmap, 0, first, last);
	} else {
		count(copy, WHOLE_REGIONS);
		set_bits(bitmap, whole, first >> REGION_SHIFT, last >> REGION_SHIFT);
	}
	set_bits(bitmap, summary, first >> REGION_SHIFT, last >> REGION_SHIFT);
	return 0;
}

#ifndef PLAIN_BYTES
// Clears the bits first..last of `open`: the summary stays, user space tidies it.
__attribute__((noinline)) int clear_open(u64 first, u64 last)
{
	u64 index = first >> 6;
	for (u32 i = 0; i < EXACT_WORDS_MAX; i++, index++) {
		if (index > last >> 6)
			break;
		u64 mask = word_mask(index, first, last);
		u32 key = (u32)index;
		u64 *word = map_lookup(&open, &key);
		if (word) {
			u64 old = __sync_fetch_and_and(word, ~mask);
			asm volatile("" : : "r"(old));
		}
	}
	return 0;
}

// Notes that a request is with the device, or no longer. A block that stays open although
// nothing is in flight has a completion that no program was told of.
INLINE void note_open(struct request *rq, u32 op, u64 bytes, int begins)
{
	u64 first = rq->__sector >> 3;
	u64 end = ((rq->__sector << 9) + bytes + 4095) >> 12;
	u64 blocks = disk_blocks;

	// Only operations that end where they began, and are short enough to be marked exactly.
	if (bytes == 0 || (op != OP_WRITE && op != OP_WRITE_ZEROES))
		return;
	if (end > blocks)
		end = blocks;
	if (first >= end)
		return;
	u64 last = end - 1;
	if ((last >> 6) - (first >> 6) >= EXACT_WORDS_MAX)
		return;
	if (begins) {
		set_bits(OPEN, 0, first, last);
		set_bits(OPEN, summary_base, first >> REGION_SHIFT, last >> REGION_SHIFT);
	} else {
		clear_open(first, last);
	}
}
#else
// A byte cannot be cleared without its neighbours.
#define note_open(rq, op, bytes, begins) ((void)0)
#endif

INLINE int is_mine(struct request *rq)
{
	struct gendisk *disk;
	struct request_queue *q = rq->q;

	if (__builtin_preserve_field_info(q->disk, FIELD_EXISTS))
		disk = q->disk;
	else
		disk = ((struct request___old *)rq)->rq_disk;
	return disk && (u32)disk->major == disk_major && (u32)disk->first_minor == disk_minor;
}

// What a request writes, or nothing. `sector` and length of a discard that was merged
// from several mean nothing: its ranges need not touch, and only its bios know them.
INLINE void mark_request(struct request *rq, u32 op, u32 bitmap, u32 copy, u64 bytes)
{
	struct bio *bio = rq->bio;

	if (op == OP_DISCARD && bio && bio->bi_next) {
		count(copy, MULTI_RANGE);
		for (u32 i = 0; i < DISCARD_RANGES_MAX && bio; i++) {
			mark(bitmap, copy, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
			bio = bio->bi_next;
		}
		if (bio)
			count(copy, OPAQUE);
		return;
	}
	mark(bitmap, copy, rq->__sector, bytes);
	// Zone resets and operations of a later kernel: their extent is not known here.
	if (op > OP_WRITE_ZEROES || !(op & 1))
		count(copy, OPAQUE);
}

// Whether the request may write in a way that the block layer can describe.
INLINE int is_write(u32 op, u32 copy)
{
	if (op == OP_READ || op == OP_FLUSH || op == OP_SCSI_IN || op == OP_DRV_IN)
		return 0;
	if (op == OP_SCSI_OUT || op == OP_DRV_OUT) {
		count(copy, PASSTHROUGH);
		return 0;
	}
	return 1;
}

INLINE int issue(u64 *args, u32 copy)
{
	struct request *rq;

	// The barriers keep the compiler from making one load at a computed offset of
	// these two, which the verifier refuses.
	if (issue_has_queue) {
		rq = (struct request *)args[1];
		asm volatile("" : "+r"(rq));
	} else {
		rq = (struct request *)args[0];
		asm volatile("" : "+r"(rq));
	}
	if (!is_mine(rq))
		return 0;
	u32 op = rq->cmd_flags & 0xff;
	if (!is_write(op, copy))
		return 0;
	u32 key = 0;
	volatile u64 *epoch = map_lookup(&control, &key);
	if (!epoch)
		return 0;
	mark_request(rq, op, *epoch & 1 ? ISSUED1 : ISSUED0, copy, rq->__data_len);
	note_open(rq, op, rq->__data_len, 1);
	count(copy, ISSUES);
	return 0;
}

INLINE int complete(u64 *args, u32 copy)
{
	struct request *rq = (struct request *)args[0];

	if (!is_mine(rq))
		return 0;
	u32 op = rq->cmd_flags & 0xff;
	if (!is_write(op, copy))
		return 0;
	// A write that failed may have reached the disk in part.
	if ((u32)args[1])
		count(copy, FAILED);
	mark_request(rq, op, DONE, copy, (u32)args[2]);
	note_open(rq, op, (u32)args[2], 0);
	count(copy, COMPLETIONS);
	return 0;
}

// Since 6.2 the kernel skips a program that is already running on the same CPU, so
// an event that interrupts another event's program would be lost. Task, soft
// interrupt and hard interrupt can nest: of three copies one is always free.
#define COPY(n)                                                                            \
	SEC("tp_btf/block_rq_issue") int on_issue_##n(u64 *args) { return issue(args, n); } \
	SEC("tp_btf/block_rq_complete") int on_complete_##n(u64 *args) { return complete(args, n); }

COPY(0)
COPY(1)
COPY(2)
