// Exact requests to a block device in the guest, past the page cache: what dd and blkdiscard cannot do in one process.
//
//   guest-io run DEVICE DATA     Reads requests from standard input, one a line, and carries them out in their order:
//                                  write OFFSET LENGTH FROM       bytes FROM… of DATA, one request
//                                  fua OFFSET LENGTH FROM         the same, durable on return
//                                  discard OFFSET LENGTH
//                                  zero OFFSET LENGTH             BLKZEROOUT
//                                  flush
//                                  say WORD                       prints WORD, when all before it is done
//   guest-io probe DEVICE SIZE   Prints `START END` of each run of pieces of SIZE bytes whose reading fails with EIO.
//   guest-io probe-at DEVICE SIZE  The same of the pieces whose numbers are read from standard input: `NUMBER 0|1`.
//
// Offsets and lengths are bytes. The first request that fails ends it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define MIB (1024 * 1024)

static void fail(const char *what, const char *name)
{
	fprintf(stderr, "guest-io: %s %s: %s\n", what, name, strerror(errno));
	exit(1);
}

static int open_device(const char *path, int flags)
{
	int fd = open(path, flags | O_DIRECT);
	if (fd < 0)
		fail("open", path);
	return fd;
}

static void *aligned(size_t length)
{
	void *memory;
	if (posix_memalign(&memory, 4096, length)) {
		errno = ENOMEM;
		fail("allocate", "a buffer");
	}
	return memory;
}

static void copy_range(int to, int from, uint64_t offset, uint64_t length, uint64_t at, int flags)
{
	void *bytes = aligned(length);
	struct iovec piece = { bytes, length };
	if (pread(from, bytes, length, at) != (ssize_t)length)
		fail("read", "the data");
	if (pwritev2(to, &piece, 1, offset, flags) != (ssize_t)length)
		fail("write", "the device");
	free(bytes);
}

static void run(int device, int data)
{
	char verb[32], word[64];
	while (scanf("%31s", verb) == 1) {
		uint64_t range[2], from;
		if (!strcmp(verb, "flush")) {
			if (fsync(device))
				fail("flush", "the device");
			continue;
		}
		if (!strcmp(verb, "say")) {
			if (scanf("%63s", word) != 1)
				fail("understand", verb);
			printf("%s\n", word);
			fflush(stdout);
			continue;
		}
		if (scanf("%" SCNu64 " %" SCNu64, &range[0], &range[1]) != 2)
			fail("understand", verb);
		if (!strcmp(verb, "discard")) {
			if (ioctl(device, BLKDISCARD, range))
				fail("discard on", "the device");
		} else if (!strcmp(verb, "zero")) {
			if (ioctl(device, BLKZEROOUT, range))
				fail("zero", "the device");
		} else if (!strcmp(verb, "write") || !strcmp(verb, "fua")) {
			if (scanf("%" SCNu64, &from) != 1)
				fail("understand", verb);
			copy_range(device, data, range[0], range[1], from, verb[0] == 'f' ? RWF_DSYNC : 0);
		} else {
			errno = EINVAL;
			fail("do", verb);
		}
	}
}

// Whether reading one sector of a piece fails; any other failure than that of an error target ends it all.
static int is_unreadable(int device, void *sector, uint64_t offset)
{
	if (pread(device, sector, SECTOR, offset) == SECTOR)
		return 0;
	if (errno != EIO)
		fail("probe", "the device");
	return 1;
}

static void probe(int device, uint64_t size)
{
	uint64_t end, count, start = 0, step = size < MIB ? MIB / size : 1;
	int inside = 0;
	char *bytes = aligned(MIB);
	if (ioctl(device, BLKGETSIZE64, &end))
		fail("ask the size of", "the device");
	count = (end + size - 1) / size;
	for (uint64_t piece = 0; piece < count;) {
		// A MiB that can be read proves all pieces in it at once.
		if (step > 1 && !inside && piece + step < count && pread(device, bytes, step * size, piece * size) == (ssize_t)(step * size)) {
			piece += step;
			continue;
		}
		for (uint64_t last = piece + step; piece < last && piece < count; piece++) {
			int bad = is_unreadable(device, bytes, piece * size);
			if (bad && !inside)
				start = piece;
			if (!bad && inside)
				printf("%" PRIu64 " %" PRIu64 "\n", start, piece);
			inside = bad;
		}
	}
	if (inside)
		printf("%" PRIu64 " %" PRIu64 "\n", start, count);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "run")) {
		run(open_device(argv[2], O_RDWR), open_device(argv[3], O_RDONLY));
	} else if (argc == 4 && !strcmp(argv[1], "probe")) {
		probe(open_device(argv[2], O_RDONLY), strtoull(argv[3], NULL, 10));
	} else if (argc == 4 && !strcmp(argv[1], "probe-at")) {
		int device = open_device(argv[2], O_RDONLY);
		uint64_t piece, size = strtoull(argv[3], NULL, 10);
		void *sector = aligned(4096);
		while (scanf("%" SCNu64, &piece) == 1)
			printf("%" PRIu64 " %d\n", piece, is_unreadable(device, sector, piece * size));
	} else {
		fprintf(stderr, "usage: guest-io run DEVICE DATA | probe DEVICE SIZE | probe-at DEVICE SIZE\n");
		return 2;
	}
	return 0;
}
