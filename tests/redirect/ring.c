// Connects and sends through io_uring alone: one TCP connect, one datagram. Exit code 77: no io_uring here.
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *sq, *cq;
static struct io_uring_sqe *entries;
static struct io_uring_params params;
static int ring;

static unsigned *field(char *base, unsigned offset) { return (unsigned *)(base + offset); }

static int submit_and_wait(void) {
    unsigned tail = *field(sq, params.sq_off.tail);
    unsigned slot = tail & *field(sq, params.sq_off.ring_mask);
    field(sq, params.sq_off.array)[slot] = 0;
    __atomic_store_n(field(sq, params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0);
    unsigned head = *field(cq, params.cq_off.head);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    int result = done[head & *field(cq, params.cq_off.ring_mask)].res;
    __atomic_store_n(field(cq, params.cq_off.head), head + 1, __ATOMIC_RELEASE);
    return result;
}

int main(void) {
    ring = syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0) { perror("io_uring_setup"); return 77; }
    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    sq = mmap(0, sq_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    cq = mmap(0, cq_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    entries = mmap(0, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);

    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(80) };
    inet_pton(AF_INET, "203.0.113.9", &to.sin_addr);
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    memset(entries, 0, sizeof *entries);
    entries->opcode = IORING_OP_CONNECT;
    entries->fd = tcp;
    entries->addr = (unsigned long)&to;
    entries->off = sizeof to;
    printf("connect %d\n", submit_and_wait());
    struct sockaddr_in peer = { 0 };
    socklen_t length = sizeof peer;
    getpeername(tcp, (struct sockaddr *)&peer, &length);
    printf("peer %s %d\n", inet_ntoa(peer.sin_addr), ntohs(peer.sin_port));

    to.sin_port = htons(443);
    struct iovec data = { "x", 1 };
    struct msghdr message = { .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &data, .msg_iovlen = 1 };
    memset(entries, 0, sizeof *entries);
    entries->opcode = IORING_OP_SENDMSG;
    entries->fd = socket(AF_INET, SOCK_DGRAM, 0);
    entries->addr = (unsigned long)&message;
    printf("datagram %d\n", submit_and_wait());
    return 0;
}
