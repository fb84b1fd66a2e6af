/* Preloaded into edged: appends every change of a file below $POWER_FOLDER to $POWER_RECORD, after it was made.
 *
 * A record is the struct below, the path, a second path (of a rename) and the bytes written. One writev() appends it,
 * so records of several processes do not mix; a lock keeps the order of one process's calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE, SYNC, RENAME, UNLINK };

struct record {
    uint32_t op, path_bytes, other_bytes, unused;
    uint64_t inode, offset, bytes, began, ended; /* CLOCK_MONOTONIC, ns */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static size_t folder_bytes;
static int out = -1;

__attribute__((constructor)) static void start(void) {
    const char *file = getenv("POWER_RECORD");
    folder = getenv("POWER_FOLDER");
    if (file && folder) {
        folder_bytes = strlen(folder);
        out = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* The name relative to the folder, "." for the folder itself; NULL elsewhere and for shared memory. */
static const char *below(const char *path) {
    size_t length = strlen(path);
    if (out < 0 || strncmp(path, folder, folder_bytes) || (length > 4 && !strcmp(path + length - 4, "-shm")))
        return NULL;
    if (!path[folder_bytes])
        return ".";
    return path[folder_bytes] == '/' ? path + folder_bytes + 1 : NULL;
}

static const char *name_of(int file, char *space) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, space, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    space[length] = 0;
    return below(space);
}

static void append(struct record record, const char *path, const char *other, const void *data) {
    record.path_bytes = strlen(path);
    record.other_bytes = strlen(other);
    record.ended = now();
    struct iovec parts[] = {{&record, sizeof record}, {(void *)path, record.path_bytes},
                            {(void *)other, record.other_bytes}, {(void *)data, data ? record.bytes : 0}};
    ssize_t all = 0;
    for (int n = 0; n < 4; n++)
        all += parts[n].iov_len;
    if (syscall(SYS_writev, out, parts, 4) != all)
        abort(); /* a record with a hole would accuse the innocent */
}

static uint64_t inode_of(int file) {
    struct stat status;
    return fstat(file, &status) ? 0 : status.st_ino;
}

#define REAL(name, type, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define BEGIN \
    pthread_mutex_lock(&lock); \
    int saved; \
    struct record record = {.began = now()}
#define END \
    saved = errno; \
    pthread_mutex_unlock(&lock); \
    errno = saved

static void wrote(struct record record, int file, int64_t offset, const void *data, ssize_t done) {
    char space[PATH_MAX];
    const char *name = done > 0 ? name_of(file, space) : NULL;
    if (!name)
        return;
    record.op = WRITE;
    record.inode = inode_of(file);
    record.offset = offset >= 0 ? (uint64_t)offset : (uint64_t)lseek(file, 0, SEEK_CUR) - done;
    record.bytes = done;
    append(record, name, "", data);
}

ssize_t write(int file, const void *data, size_t size) {
    char space[PATH_MAX];
    if (out < 0 || !name_of(file, space))
        return REAL(write, ssize_t, int, const void *, size_t)(file, data, size);
    BEGIN;
    ssize_t done = REAL(write, ssize_t, int, const void *, size_t)(file, data, size);
    wrote(record, file, -1, data, done);
    END;
    return done;
}

#define PWRITE(name, offset_type) \
    ssize_t name(int file, const void *data, size_t size, offset_type offset) { \
        BEGIN; \
        ssize_t done = REAL(name, ssize_t, int, const void *, size_t, offset_type)(file, data, size, offset); \
        wrote(record, file, offset, data, done); \
        END; \
        return done; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FTRUNCATE(name, offset_type) \
    int name(int file, offset_type size) { \
        BEGIN; \
        int failed = REAL(name, int, int, offset_type)(file, size); \
        char space[PATH_MAX]; \
        const char *path = failed ? NULL : name_of(file, space); \
        if (path) { \
            record.op = TRUNCATE; \
            record.inode = inode_of(file); \
            record.offset = size; \
            append(record, path, "", NULL); \
        } \
        END; \
        return failed; \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define FSYNC(name) \
    int name(int file) { \
        BEGIN; \
        int failed = REAL(name, int, int)(file); \
        char space[PATH_MAX]; \
        const char *path = failed ? NULL : name_of(file, space); \
        if (path) { \
            record.op = SYNC; \
            record.inode = inode_of(file); \
            append(record, path, "", NULL); \
        } \
        END; \
        return failed; \
    }
FSYNC(fsync)
FSYNC(fdatasync)

int rename(const char *from, const char *to) {
    BEGIN;
    int failed = REAL(rename, int, const char *, const char *)(from, to);
    if (!failed && below(from) && below(to)) {
        record.op = RENAME;
        append(record, below(from), below(to), NULL);
    }
    END;
    return failed;
}

int unlink(const char *path) {
    BEGIN;
    int failed = REAL(unlink, int, const char *)(path);
    if (!failed && below(path)) {
        record.op = UNLINK;
        append(record, below(path), "", NULL);
    }
    END;
    return failed;
}
