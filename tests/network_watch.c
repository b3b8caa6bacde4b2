/* Loaded before all other libraries (LD_PRELOAD), this writes to the file NETWORK_WATCH who is connected to and
   which names are looked up, by Python and by native code, and lets none of it happen. Addresses of this machine's
   own sockets in the file system (AF_UNIX) are left alone, and so are numbers, which need no look-up. */
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

static void note(const char *what, const char *whom)
{
    char line[512];
    const char *file = getenv("NETWORK_WATCH");
    int length = snprintf(line, sizeof line, "%d %s %.400s\n", (int)getpid(), what, whom);
    int out = file ? open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (out < 0 || write(out, line, length) != length)
        abort();
    close(out);
}

static int leaves(const char *what, const struct sockaddr *address)
{
    char text[INET6_ADDRSTRLEN + 8] = "?";
    if (!address || (address->sa_family != AF_INET && address->sa_family != AF_INET6))
        return 0;
    if (address->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
    else
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
    note(what, text);
    errno = ENETUNREACH;
    return 1;
}

static int looks_up(const char *name)
{
    unsigned char number[16];
    if (!name || inet_pton(AF_INET, name, number) == 1 || inet_pton(AF_INET6, name, number) == 1)
        return 0;
    note("looks up", name);
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    return leaves("connects to", address) ? -1 : NEXT(connect)(fd, address, size);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length)
{
    return leaves("sends to", address) ? -1 : NEXT(sendto)(fd, data, size, flags, address, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return leaves("sends to", message->msg_name) ? -1 : NEXT(sendmsg)(fd, message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    for (unsigned int i = 0; i < count; i++)
        if (leaves("sends to", messages[i].msg_hdr.msg_name))
            return -1;
    return NEXT(sendmmsg)(fd, messages, count, flags);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    return looks_up(name) ? EAI_NONAME : NEXT(getaddrinfo)(name, service, hints, found);
}

int getaddrinfo_a(int mode, struct gaicb *list[], int count, struct sigevent *event)
{
    for (int i = 0; i < count; i++)
        if (list[i] && looks_up(list[i]->ar_name))
            return EAI_FAIL;
    return NEXT(getaddrinfo_a)(mode, list, count, event);
}

struct hostent *gethostbyname(const char *name)
{
    return looks_up(name) ? NULL : NEXT(gethostbyname)(name);
}

struct hostent *gethostbyname2(const char *name, int family)
{
    return looks_up(name) ? NULL : NEXT(gethostbyname2)(name, family);
}

int gethostbyname_r(const char *name, struct hostent *own, char *room, size_t size, struct hostent **found, int *error)
{
    if (!looks_up(name))
        return NEXT(gethostbyname_r)(name, own, room, size, found, error);
    *found = NULL;
    *error = HOST_NOT_FOUND;
    return 0;
}

int gethostbyname2_r(const char *name, int family, struct hostent *own, char *room, size_t size,
                     struct hostent **found, int *error)
{
    if (!looks_up(name))
        return NEXT(gethostbyname2_r)(name, family, own, room, size, found, error);
    *found = NULL;
    *error = HOST_NOT_FOUND;
    return 0;
}
