/* Lets calls of the operating system fail for some files or for sockets. Loaded before the C
   library. The file HOST_FAILS, while there is one, says "call:errno:part", where part is a part of
   the path that the call, or its descriptor, is about ("socket" for sockets). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
    char wanted[32], part[PATH_MAX];
    int number;
    FILE *rule = fopen(getenv("HOST_FAILS"), "re");
    if (rule == NULL || path == NULL) return 0;
    int found = fscanf(rule, "%31[^:]:%d:%4095s", wanted, &number, part);
    fclose(rule);
    if (found != 3 || strcmp(wanted, call) != 0 || strstr(path, part) == NULL) return 0;
    errno = number;
    return 1;
}

static int fails_at(const char *call, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                     \
    int name(const char *path, int flags, ...) {       \
        va_list rest;                                  \
        va_start(rest, flags);                         \
        mode_t mode = va_arg(rest, mode_t);            \
        va_end(rest);                                  \
        if (fails("open", path)) return -1;            \
        return REAL(name)(path, flags, mode);          \
    }
OPEN(open)
OPEN(open64)

#define ON_DESCRIPTOR(type, call, name, arguments, ...)     \
    type name arguments {                                   \
        if (fails_at(call, descriptor)) return -1;          \
        return REAL(name)(__VA_ARGS__);                     \
    }
ON_DESCRIPTOR(ssize_t, "write", pwrite, (int descriptor, const void *from, size_t count, off_t at),
              descriptor, from, count, at)
ON_DESCRIPTOR(ssize_t, "write", pwrite64,
              (int descriptor, const void *from, size_t count, off64_t at), descriptor, from, count,
              at)
ON_DESCRIPTOR(ssize_t, "read", pread, (int descriptor, void *into, size_t count, off_t at),
              descriptor, into, count, at)
ON_DESCRIPTOR(ssize_t, "read", pread64, (int descriptor, void *into, size_t count, off64_t at),
              descriptor, into, count, at)
ON_DESCRIPTOR(int, "truncate", ftruncate, (int descriptor, off_t length), descriptor, length)
ON_DESCRIPTOR(int, "truncate", ftruncate64, (int descriptor, off64_t length), descriptor, length)
ON_DESCRIPTOR(int, "sync", fsync, (int descriptor), descriptor)
ON_DESCRIPTOR(int, "sync", fdatasync, (int descriptor), descriptor)
ON_DESCRIPTOR(int, "flock", flock, (int descriptor, int operation), descriptor, operation)

int mkdir(const char *path, mode_t mode) {
    return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    return fails("rename", from) ? -1 : REAL(rename)(from, to);
}

int socket(int domain, int type, int protocol) {
    int of_internet = domain == AF_INET || domain == AF_INET6;
    return of_internet && fails("socket", "socket") ? -1 : REAL(socket)(domain, type, protocol);
}

int bind(int descriptor, const struct sockaddr *address, socklen_t length) {
    return fails("bind", "socket") ? -1 : REAL(bind)(descriptor, address, length);
}

int listen(int descriptor, int backlog) {
    return fails("listen", "socket") ? -1 : REAL(listen)(descriptor, backlog);
}
