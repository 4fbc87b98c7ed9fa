/* Loaded into a program by LD_PRELOAD: writes down each call that changes what is on disk, or makes one fail.
 *
 *   CRASHKIT_ROOT    a directory, as realpath gives it; only what is in it is watched
 *   CRASHKIT_LOG     the log, to which all processes append
 *   CRASHKIT_FAULT   N:WHAT[:always]: the N-th watched call of this process (from 1), or with `always` that and
 *                    all after it, goes wrong: WHAT is `kill` (SIGKILL instead of the call), `short` (half of a
 *                    write is done; other calls are done whole), an errno (the call fails), `done-` and an errno
 *                    (the call is done, and said to have failed)
 *
 * An entry of the log is a `struct entry`, two names and data.  One lock (flock of the log) is held over a call and
 * its entry, so that the log has the order in which things happened, over all processes; a killed process
 * gives it back.
 *
 * What is not seen: calls that glibc makes within itself, memory maps (LMDB writes with none, but for lock.mdb,
 * whose contents mean nothing after a boot), descriptors that reach a file by other means than a path.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

struct entry {
    char kind;          /* see recorder.py, which reads this */
    char unused[3];
    int32_t pid;
    uint64_t inode;     /* of the file or directory that the call is about */
    uint64_t parent;    /* of the directory that the first name is in */
    uint64_t target;    /* of the directory that the second name is in */
    int64_t offset;     /* where a write begins; the new length */
    int64_t mtime;      /* of the file after the call, in ns since 1970 */
    uint32_t name_len;
    uint32_t target_len;
    uint64_t data_len;
};

static char root[PATH_MAX], log_path[PATH_MAX];
static size_t root_len;
static int log_fd = -1;
static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;
static long calls, fault_at;
static char kinds[1 << 16]; /* of the first calls: o open, w write, l length, t times, s flush, n names */
static char fault_what[32];
static bool fault_always;

/* -- the log */

static void open_log(void) {
    if (!log_path[0]) return;
    int fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900); /* out of the way of the program's */
    syscall(SYS_close, fd);
}

static void before_fork(void) { pthread_mutex_lock(&threads); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&threads); }
static void after_fork_in_child(void) { /* a lock on the inherited descriptor would be the parent's, too */
    pthread_mutex_init(&threads, NULL);
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    open_log();
}

__attribute__((constructor)) static void begin(void) {
    const char *value = getenv("CRASHKIT_ROOT");
    if (!value) return;
    snprintf(root, sizeof root, "%s", value);
    root_len = strlen(root);
    if ((value = getenv("CRASHKIT_LOG"))) snprintf(log_path, sizeof log_path, "%s", value);
    open_log();
    char how[16] = "";
    if ((value = getenv("CRASHKIT_FAULT"))) sscanf(value, "%ld:%31[^:]:%15s", &fault_at, fault_what, how);
    fault_always = !strcmp(how, "always");
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static void lock(void) {
    pthread_mutex_lock(&threads);
    if (log_fd >= 0) syscall(SYS_flock, log_fd, LOCK_EX);
}

static void unlock(void) { /* keeps errno, which is the call's */
    int error = errno;
    if (log_fd >= 0) syscall(SYS_flock, log_fd, LOCK_UN);
    pthread_mutex_unlock(&threads);
    errno = error;
}

static void note(struct entry entry, const char *name, const char *target, const void *data, size_t data_len) {
    if (log_fd < 0) return;
    int error = errno;
    entry.pid = getpid();
    entry.name_len = name ? strlen(name) : 0;
    entry.target_len = target ? strlen(target) : 0;
    entry.data_len = data_len;
    struct iovec parts[] = {
        {&entry, sizeof entry}, {(void *)name, entry.name_len}, {(void *)target, entry.target_len},
        {(void *)data, data_len}};
    ssize_t whole = sizeof entry + entry.name_len + entry.target_len + data_len;
    if (syscall(SYS_writev, log_fd, parts, 4) != whole) abort(); /* a log with a hole would prove nothing */
    errno = error;
}

/* What the program tries and what has returned, in the same order as the calls; it is for the program to call. */
void crashkit_report(const char *text) {
    lock();
    note((struct entry){.kind = 'A'}, NULL, NULL, text, strlen(text));
    unlock();
}

const char *crashkit_kinds(void) { return kinds; }

/* Another fault, counted from now on; for the program to call. */
void crashkit_fault(long at, const char *what, int always) {
    snprintf(fault_what, sizeof fault_what, "%s", what);
    fault_at = at ? calls + at : 0;
    fault_always = always;
}

/* -- what is watched */

static bool inside(const char *path) {
    return root_len && !strncmp(path, root, root_len) && (path[root_len] == '/' || !path[root_len]);
}

/* Fill `real` with `path`, of whose directories none is a symbolic link; return whether it is watched. */
static bool watched_path(int directory, const char *path, char *real) {
    char whole[2 * PATH_MAX], base[PATH_MAX];
    int error = errno;
    bool watched = false;
    real[0] = 0;
    if (!root_len || !path) return false;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char link[64];
        if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) goto end;
        base[length] = 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    for (size_t length = strlen(whole); length > 1 && whole[length - 1] == '/'; length--) whole[length - 1] = 0;
    char *name = strrchr(whole, '/');
    *name++ = 0;
    if (!realpath(whole[0] ? whole : "/", base)) goto end;
    if ((size_t)snprintf(real, PATH_MAX, "%s/%s", strcmp(base, "/") ? base : "", name) >= PATH_MAX) goto end;
    watched = inside(real);
end:
    errno = error;
    return watched;
}

static bool watched_fd(int fd) {
    if (!root_len || fd < 0 || fd == log_fd) return false;
    char link[64], path[PATH_MAX];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = error;
    if (length < 0) return false;
    path[length] = 0;
    return inside(path);
}

static struct entry about(char kind, int fd) { /* an entry about an open file, as it is now */
    struct stat status = {0};
    int error = errno;
    fstat(fd, &status);
    errno = error;
    return (struct entry){.kind = kind, .inode = status.st_ino,
                          .mtime = status.st_mtim.tv_sec * 1000000000LL + status.st_mtim.tv_nsec};
}

static uint64_t inode_of(const char *path) {
    struct stat status = {0};
    int error = errno;
    lstat(path, &status);
    errno = error;
    return status.st_ino;
}

static uint64_t parent_of(const char *path) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    *strrchr(parent, '/') = 0;
    return inode_of(parent);
}

static const char *name_of(const char *path) { return strrchr(path, '/') + 1; }

/* -- faults */

enum fault { NONE, FAILS, SHORT, DONE_AND_FAILS };

/* Return what is to go wrong with the call that begins; for FAILS errno is set. */
static enum fault fault(char kind) {
    long call = ++calls; /* under the lock */
    if (call < (long)sizeof kinds) kinds[call - 1] = kind;
    if (!fault_at || (fault_always ? call < fault_at : call != fault_at)) return NONE;
    if (!strcmp(fault_what, "kill")) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    if (!strcmp(fault_what, "short")) return SHORT;
    if (!strncmp(fault_what, "done-", 5)) return DONE_AND_FAILS;
    errno = atoi(fault_what);
    return FAILS;
}

/* Return what the call is to return that was done with this result. */
static long reported(enum fault what, long result) {
    if (what != DONE_AND_FAILS || result < 0) return result;
    errno = atoi(fault_what + 5);
    return -1;
}

/* -- opening: 'C' a file was made, 'T' one was cut to no bytes */

static int opened(int directory, const char *path, int flags, mode_t mode) {
    char real[PATH_MAX];
    if (!watched_path(directory, path, real)) return syscall(SYS_openat, directory, path, flags, mode);
    lock();
    int fd = -1;
    enum fault what = fault('o');
    if (what != FAILS) {
        struct stat status;
        bool made = (flags & O_CREAT) && lstat(real, &status);
        fd = syscall(SYS_openat, directory, path, flags, mode);
        if (fd >= 0 && made) {
            struct entry entry = about('C', fd);
            entry.parent = parent_of(real);
            note(entry, name_of(real), NULL, NULL, 0);
        } else if (fd >= 0 && (flags & O_TRUNC)) {
            note(about('T', fd), NULL, NULL, NULL, 0);
        }
        if (what == DONE_AND_FAILS && fd >= 0) {
            syscall(SYS_close, fd);
            fd = reported(what, fd);
        }
    }
    unlock();
    return fd;
}

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode = va_arg(list, int);                                                                                      \
        va_end(list);                                                                                                  \
    }

int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int directory, const char *path, int flags, ...) { MODE return opened(directory, path, flags, mode); }
int openat64(int directory, const char *path, int flags, ...) { MODE return opened(directory, path, flags, mode); }

/* -- writing: 'W' bytes were written at an offset; 'D' and they are on disk, as the descriptor asks for (O_DSYNC) */

static ssize_t written(int fd, const struct iovec *parts, int count, off_t at) {
    lock();
    enum fault what = fault('w');
    ssize_t result = -1;
    if (what != FAILS) {
        int flags = syscall(SYS_fcntl, fd, F_GETFL);
        off_t offset = at;
        if (at < 0) offset = syscall(SYS_lseek, fd, 0, flags & O_APPEND ? SEEK_END : SEEK_CUR);
        struct iovec half = {parts[0].iov_base, (parts[0].iov_len + 1) / 2};
        if (what == SHORT) parts = &half, count = 1;
        result = at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0L);
        ssize_t left = result;
        struct entry entry = about('W', fd);
        entry.offset = offset;
        for (int i = 0; i < count && left > 0; i++) {
            size_t length = parts[i].iov_len < (size_t)left ? parts[i].iov_len : (size_t)left;
            note(entry, NULL, NULL, parts[i].iov_base, length);
            entry.offset += length;
            left -= length;
        }
        if (result > 0 && (flags & O_DSYNC)) {
            char length[32];
            entry.kind = 'D';
            entry.offset = offset;
            snprintf(length, sizeof length, "%zd", result);
            note(entry, NULL, NULL, length, strlen(length));
        }
        result = reported(what, result);
    }
    unlock();
    return result;
}

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    return watched_fd(fd) ? written(fd, &part, 1, -1) : syscall(SYS_write, fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return watched_fd(fd) ? written(fd, parts, count, -1) : syscall(SYS_writev, fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    struct iovec part = {(void *)data, size};
    return watched_fd(fd) ? written(fd, &part, 1, at) : syscall(SYS_pwrite64, fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return pwrite(fd, data, size, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return watched_fd(fd) ? written(fd, parts, count, at) : syscall(SYS_pwritev, fd, parts, count, at, 0L);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return pwritev(fd, parts, count, at); }

/* The ways to copy within the kernel: not there, so that the program writes. */
ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    if (!watched_fd(out)) return syscall(SYS_sendfile, out, in, offset, count);
    errno = ENOTSOCK;
    return -1;
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) { return sendfile(out, in, offset, count); }
ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t count, unsigned flags) {
    if (!watched_fd(out)) return syscall(SYS_copy_file_range, in, in_offset, out, out_offset, count, flags);
    errno = EXDEV;
    return -1;
}

/* -- length and time of change: 'L' the file has a new length, 'U' it has another time */

static int resized(int fd, off_t length) {
    lock();
    enum fault what = fault('l');
    int result = -1;
    if (what != FAILS) {
        result = syscall(SYS_ftruncate, fd, length);
        struct entry entry = about('L', fd);
        entry.offset = length;
        if (!result) note(entry, NULL, NULL, NULL, 0);
        result = reported(what, result);
    }
    unlock();
    return result;
}

int ftruncate(int fd, off_t length) {
    return watched_fd(fd) ? resized(fd, length) : syscall(SYS_ftruncate, fd, length);
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }
int truncate(const char *path, off_t length) {
    char real[PATH_MAX];
    if (!watched_path(AT_FDCWD, path, real)) return syscall(SYS_truncate, path, length);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int result = resized(fd, length), error = errno;
    syscall(SYS_close, fd);
    errno = error;
    return result;
}
int truncate64(const char *path, off64_t length) { return truncate(path, length); }

static int allocated(int fd, int mode, off_t offset, off_t length) {
    lock();
    enum fault what = fault('l');
    int result = -1;
    if (what != FAILS) {
        result = syscall(SYS_fallocate, fd, mode, offset, length);
        struct stat status;
        if (!result && !fstat(fd, &status)) {
            struct entry entry = about('L', fd);
            entry.offset = status.st_size;
            note(entry, NULL, NULL, NULL, 0);
        }
        result = reported(what, result);
    }
    unlock();
    return result;
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
    return watched_fd(fd) ? allocated(fd, mode, offset, length) : syscall(SYS_fallocate, fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) {
    int before = errno, result = fallocate(fd, 0, offset, length), error = result ? errno : 0;
    errno = before;
    return error;
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

int futimens(int fd, const struct timespec times[2]) {
    if (!watched_fd(fd)) return syscall(SYS_utimensat, fd, NULL, times, 0);
    lock();
    enum fault what = fault('t');
    int result = -1;
    if (what != FAILS) {
        result = syscall(SYS_utimensat, fd, NULL, times, 0);
        if (!result) note(about('U', fd), NULL, NULL, NULL, 0);
        result = reported(what, result);
    }
    unlock();
    return result;
}
int utimensat(int directory, const char *path, const struct timespec times[2], int flags) {
    char real[PATH_MAX];
    if (!watched_path(directory, path, real)) return syscall(SYS_utimensat, directory, path, times, flags);
    int fd = syscall(SYS_openat, directory, path, O_RDONLY | O_CLOEXEC | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0));
    if (fd < 0) return -1;
    int result = futimens(fd, times), error = errno;
    syscall(SYS_close, fd);
    errno = error;
    return result;
}

/* -- flushing: 'S' the file, or the names in the directory, are on disk; 'F' but for the file's times */

static int flushed(int fd, char kind, long call) {
    if (!watched_fd(fd)) return syscall(call, fd);
    lock();
    enum fault what = fault('s');
    int result = -1;
    if (what != FAILS) {
        result = syscall(call, fd);
        if (!result) note(about(kind, fd), NULL, NULL, NULL, 0);
        result = reported(what, result);
    }
    unlock();
    return result;
}

int fsync(int fd) { return flushed(fd, 'S', SYS_fsync); }
int fdatasync(int fd) { return flushed(fd, 'F', SYS_fdatasync); }

/* -- names: 'R' a name was moved, 'N' a file has one more, 'M' a directory was made, 'K' a name was taken away */

static int two_names(char kind, int from, const char *path, int to, const char *target, long call, unsigned flags) {
    char real[PATH_MAX], real_target[PATH_MAX];
    bool either = watched_path(from, path, real);
    either |= watched_path(to, target, real_target);
    if (!either) return syscall(call, from, path, to, target, flags);
    lock();
    enum fault what = fault('n');
    int result = -1;
    if (what != FAILS) {
        struct entry entry = {.kind = kind, .inode = inode_of(real), .parent = parent_of(real),
                              .target = parent_of(real_target)};
        result = syscall(call, from, path, to, target, flags);
        if (!result) note(entry, name_of(real), name_of(real_target), NULL, 0);
        result = reported(what, result);
    }
    unlock();
    return result;
}

int rename(const char *path, const char *target) {
    return two_names('R', AT_FDCWD, path, AT_FDCWD, target, SYS_renameat2, 0);
}
int renameat(int from, const char *path, int to, const char *target) {
    return two_names('R', from, path, to, target, SYS_renameat2, 0);
}
int renameat2(int from, const char *path, int to, const char *target, unsigned flags) {
    return two_names(flags & RENAME_EXCHANGE ? 'E' : 'R', from, path, to, target, SYS_renameat2, flags);
}
int link(const char *path, const char *target) {
    return two_names('N', AT_FDCWD, path, AT_FDCWD, target, SYS_linkat, 0);
}
int linkat(int from, const char *path, int to, const char *target, int flags) {
    return two_names('N', from, path, to, target, SYS_linkat, flags);
}

static int one_name(char kind, int directory, const char *path, long call, unsigned argument) {
    char real[PATH_MAX];
    if (!watched_path(directory, path, real)) return syscall(call, directory, path, argument);
    lock();
    enum fault what = fault('n');
    int result = -1;
    if (what != FAILS) {
        struct entry entry = {.kind = kind, .inode = inode_of(real), .parent = parent_of(real)};
        result = syscall(call, directory, path, argument);
        if (kind == 'M') entry.inode = inode_of(real);
        if (!result) note(entry, name_of(real), NULL, NULL, 0);
        result = reported(what, result);
    }
    unlock();
    return result;
}

int unlink(const char *path) { return one_name('K', AT_FDCWD, path, SYS_unlinkat, 0); }
int unlinkat(int directory, const char *path, int flags) { return one_name('K', directory, path, SYS_unlinkat, flags); }
int rmdir(const char *path) { return one_name('K', AT_FDCWD, path, SYS_unlinkat, AT_REMOVEDIR); }
int mkdir(const char *path, mode_t mode) { return one_name('M', AT_FDCWD, path, SYS_mkdirat, mode); }
int mkdirat(int directory, const char *path, mode_t mode) {
    return one_name('M', directory, path, SYS_mkdirat, mode);
}
