/* Loaded before the C library (LD_PRELOAD): writes each attempt to reach the network as one line
   into the file that NETWORK_LOG names, and lets only this machine itself be reached. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *call, const char *target) {
    const char *path = getenv("NETWORK_LOG");
    char line[512];
    int size = snprintf(line, sizeof line, "%s %s\n", call, target ? target : "?");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0) return;
    if (write(file, line, size < (int)sizeof line ? size : (int)sizeof line - 1) < 0) abort();
    close(file);
}

/* Whether an address is on this machine; other addresses are noted. */
static int is_here(const char *call, const struct sockaddr *address) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (!address) return 1;
    if (address->sa_family == AF_INET) {
        const struct in_addr *ip = &((const struct sockaddr_in *)address)->sin_addr;
        if ((ntohl(ip->s_addr) >> 24) == 127) return 1;
        inet_ntop(AF_INET, ip, text, sizeof text);
    } else if (address->sa_family == AF_INET6) {
        const struct in6_addr *ip = &((const struct sockaddr_in6 *)address)->sin6_addr;
        if (IN6_IS_ADDR_LOOPBACK(ip)) return 1;
        if (IN6_IS_ADDR_V4MAPPED(ip) && ip->s6_addr[12] == 127) return 1;
        inet_ntop(AF_INET6, ip, text, sizeof text);
    } else {
        return 1;
    }
    note(call, text);
    return 0;
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (is_here("connect", address)) return next(socket, address, size);
    errno = ENETUNREACH;
    return -1;
}

ssize_t sendto(int socket, const void *data, size_t count, int flags,
               const struct sockaddr *address, socklen_t size) {
    ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) =
        dlsym(RTLD_NEXT, "sendto");
    if (is_here("sendto", address)) return next(socket, data, count, flags, address, size);
    errno = ENETUNREACH;
    return -1;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    if (!node || !strcmp(node, "localhost") || !strcmp(node, "127.0.0.1"))
        return next(node, service, hints, found);
    note("getaddrinfo", node);
    return EAI_AGAIN;
}

struct hostent *gethostbyname(const char *name) {
    note("gethostbyname", name);
    h_errno = TRY_AGAIN;
    return NULL;
}
