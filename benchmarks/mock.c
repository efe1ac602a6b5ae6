/*
 * A backend that costs next to nothing, speaking OpenAI's dialect over HTTP/1.1 on loopback. It
 * stands for a model server whose time is not what is measured.
 *
 * GET <anything>               the models
 * POST .../chat/completions    the model's name says how: `instant` answers with one piece,
 *                              `burst64` with 64 tokens without a pause, `paced` with 64 at 5 ms,
 *                              `slow` with 30 at 1 s, `pair` with 2 at 20 ms. Each token is a write of its own.
 *                              A field `user` with such a name goes before the model's.
 * POST .../embeddings          one vector
 *
 * Prints its port; ends when its stdin does. cc -O2 -o mock mock.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *name;
    int tokens;
    int pace_ms;
} Mode;

static const Mode MODES[] = {{"instant", 1, 0}, {"burst64", 64, 0}, {"paced", 64, 5}, {"slow", 30, 1000}, {"pair", 2, 20}};
enum { MODE_COUNT = sizeof MODES / sizeof *MODES, WORDS = 64 };

typedef struct {
    char *data;
    size_t length, room;
} Bytes;

typedef struct {
    int fd;
    uint32_t turn; /* told apart from an earlier connection with the same fd */
    Bytes in, out;
    size_t head, scanned; /* of the request being read: its head's length, if it is known */
    const Mode *mode;
    int left; /* tokens of a paced answer */
    int wants_out;
} Connection;

typedef struct {
    int64_t at;
    int fd;
    uint32_t turn;
} Due;

static Connection *connections[1 << 16];
static Due *heap;
static size_t heap_size, heap_room;
static int epoll, timer;
static uint32_t turns;
static Bytes models, whole[MODE_COUNT], embedding, role_word[2], word, ending, stream_head;

static void add(Bytes *bytes, const void *data, size_t length) {
    if (bytes->length + length > bytes->room) {
        bytes->room = (bytes->length + length) * 2;
        bytes->data = realloc(bytes->data, bytes->room);
        if (!bytes->data) exit(3);
    }
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

static void text(Bytes *bytes, const char *string) { add(bytes, string, strlen(string)); }

static void chunk(Bytes *bytes, const char *event) {
    char size[32];
    snprintf(size, sizeof size, "%zx\r\n", strlen(event));
    text(bytes, size);
    text(bytes, event);
    text(bytes, "\r\n");
}

static void json_answer(Bytes *bytes, const char *json) {
    char head[128];
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", strlen(json));
    text(bytes, head);
    text(bytes, json);
}

#define OBJECT(kind) "\"id\":\"chatcmpl-bench\",\"object\":\"" kind "\",\"created\":1700000000,\"model\":\"bench\""

static void prepare(void) {
    static char words[8 * WORDS], json[4096];
    for (int i = 0; i < WORDS; i++) strcat(words, "token ");
    char *end = json + sprintf(json, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < MODE_COUNT; i++)
        end += sprintf(end, "%s{\"id\":\"%s\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"bench\"}", i ? "," : "", MODES[i].name);
    strcpy(end, "]}");
    json_answer(&models, json);
    for (int i = 0; i < MODE_COUNT; i++) {
        int count = MODES[i].tokens == 1 ? WORDS : MODES[i].tokens;
        sprintf(json, "{" OBJECT("chat.completion") ",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%.*s\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":%d,\"total_tokens\":%d}}", 6 * count, words, count, 8 + count);
        json_answer(&whole[i], json);
    }
    json_answer(&embedding, "{\"object\":\"list\",\"model\":\"bench\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,0.5,0.5,0.5]}],\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}}");
    for (int i = 0; i < 2; i++) { /* the first piece: all of the answer, or a token of it */
        sprintf(json, "data: {" OBJECT("chat.completion.chunk") ",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":null}]}\n\n", i ? words : "token ");
        chunk(&role_word[i], json);
    }
    chunk(&word, "data: {" OBJECT("chat.completion.chunk") ",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token \"},\"finish_reason\":null}]}\n\n");
    chunk(&ending, "data: {" OBJECT("chat.completion.chunk") ",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    chunk(&ending, "data: {" OBJECT("chat.completion.chunk") ",\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":64,\"total_tokens\":72}}\n\n");
    chunk(&ending, "data: [DONE]\n\n");
    text(&ending, "0\r\n\r\n");
    text(&stream_head, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n");
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void arm(void) {
    struct itimerspec when = {{0, 0}, {0, 0}};
    if (heap_size) {
        when.it_value.tv_sec = heap[0].at / 1000000000LL;
        when.it_value.tv_nsec = heap[0].at % 1000000000LL;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void push(int64_t at, Connection *connection) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 1024;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) exit(3);
    }
    size_t i = heap_size++;
    for (; i && heap[(i - 1) / 2].at > at; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = (Due){at, connection->fd, connection->turn};
}

static Due pop(void) {
    Due first = heap[0], last = heap[--heap_size];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < heap_size) {
        if (child + 1 < heap_size && heap[child + 1].at < heap[child].at) child++;
        if (heap[child].at >= last.at) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return first;
}

static void drop(Connection *connection) {
    connections[connection->fd] = NULL;
    close(connection->fd);
    free(connection->in.data);
    free(connection->out.data);
    free(connection);
}

/* Sends what waits and then this; keeps what does not go. 0 when the connection is gone. */
static int put(Connection *connection, const Bytes *bytes) {
    Bytes *out = &connection->out;
    if (out->length) {
        if (bytes) add(out, bytes->data, bytes->length);
        bytes = out;
    }
    if (!bytes) return 1;
    ssize_t sent = send(connection->fd, bytes->data, bytes->length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return 0;
    if (sent < 0) sent = 0;
    size_t rest = bytes->length - sent;
    if (bytes == out) {
        memmove(out->data, out->data + sent, rest);
        out->length = rest;
    } else if (rest) {
        add(out, bytes->data + sent, rest);
    }
    if (connection->wants_out != (rest > 0)) {
        connection->wants_out = rest > 0;
        struct epoll_event event = {.events = EPOLLIN | (rest ? EPOLLOUT : 0), .data.fd = connection->fd};
        epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
    }
    return 1;
}

static int begin_stream(Connection *connection, const Mode *mode) {
    if (!put(connection, &stream_head) || !put(connection, &role_word[mode->tokens == 1])) return 0;
    if (mode->pace_ms) {
        connection->mode = mode;
        connection->left = mode->tokens - 1;
        push(now_ns() + mode->pace_ms * 1000000LL, connection);
        arm();
        return 1;
    }
    for (int i = 1; i < mode->tokens; i++)
        if (!put(connection, &word)) return 0;
    return put(connection, &ending);
}

static int has(const char *body, size_t length, const char *name, const char *value) {
    const char *at = body, *end = body + length;
    while ((at = memmem(at, end - at, name, strlen(name)))) {
        at += strlen(name);
        while (at < end && (*at == ' ' || *at == ':')) at++;
        if ((size_t)(end - at) >= strlen(value) && !memcmp(at, value, strlen(value))) return 1;
    }
    return 0;
}

static int answer(Connection *connection, const char *head, const char *body, size_t length) {
    if (!strncmp(head, "GET", 3) || !strncmp(head, "HEAD", 4)) return put(connection, &models);
    size_t line = strcspn(head, "\r");
    if (memmem(head, line, "/embeddings", 11)) return put(connection, &embedding);
    for (int i = 0; i < 2 * MODE_COUNT; i++) { /* `user`, then `model` */
        char name[32];
        const Mode *mode = &MODES[i % MODE_COUNT];
        snprintf(name, sizeof name, "\"%s\"", mode->name);
        if (!has(body, length, i < MODE_COUNT ? "\"user\"" : "\"model\"", name)) continue;
        return has(body, length, "\"stream\"", "true") ? begin_stream(connection, mode) : put(connection, &whole[mode - MODES]);
    }
    static Bytes unknown;
    if (!unknown.length) text(&unknown, "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 38\r\n\r\n{\"error\":{\"message\":\"no such model\"}}  ");
    return put(connection, &unknown);
}

/* Answers what has arrived whole. 0 when the connection is to be closed. */
static int serve(Connection *connection) {
    while (connection->in.length && !connection->left) {
        Bytes *in = &connection->in;
        if (!connection->head) {
            char *end = memmem(in->data, in->length, "\r\n\r\n", 4);
            if (!end) return in->length < 65536;
            connection->head = end + 4 - in->data;
            connection->scanned = 0;
            for (char *at = in->data; at < end; at = (char *)memmem(at, end + 2 - at, "\r\n", 2) + 2)
                if (!strncasecmp(at, "content-length:", 15)) connection->scanned = strtoul(at + 15, NULL, 10);
        }
        size_t total = connection->head + connection->scanned;
        if (in->length < total) return 1;
        int alive = answer(connection, in->data, in->data + connection->head, connection->scanned);
        connection->head = 0;
        memmove(in->data, in->data + total, in->length - total);
        in->length -= total;
        if (!alive) return 0;
    }
    return 1;
}

static void readable(Connection *connection) {
    static char buffer[1 << 18];
    for (;;) {
        ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) return drop(connection);
        add(&connection->in, buffer, got);
        if (!serve(connection)) return drop(connection);
        if ((size_t)got < sizeof buffer) return;
    }
}

static void tick(void) {
    uint64_t count;
    if (read(timer, &count, sizeof count) < 0 && errno != EAGAIN) exit(3);
    int64_t now = now_ns();
    while (heap_size && heap[0].at <= now) {
        Due due = pop();
        Connection *connection = connections[due.fd];
        if (!connection || connection->turn != due.turn || !connection->left) continue;
        int alive = put(connection, &word);
        if (alive && !--connection->left) alive = put(connection, &ending) && serve(connection);
        else if (alive) push(due.at + connection->mode->pace_ms * 1000000LL, connection);
        if (!alive) drop(connection);
    }
    arm();
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) return;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Connection *connection = fd < 1 << 16 ? calloc(1, sizeof *connection) : NULL;
        if (!connection) {
            close(fd);
            continue;
        }
        connection->fd = fd;
        connection->turn = ++turns;
        connections[fd] = connection;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) return 2;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    epoll = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int watched[] = {listener, timer, 0};
    for (int i = 0; i < 3; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = watched[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, watched[i], &event);
    }
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            char ignored[64];
            if (fd == listener) accept_all(listener);
            else if (fd == timer) tick();
            else if (fd == 0) {
                if (read(0, ignored, sizeof ignored) <= 0) return 0;
            } else if (connections[fd]) {
                if (events[i].events & EPOLLOUT && !put(connections[fd], NULL)) drop(connections[fd]);
                else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(connections[fd]);
            }
        }
    }
}
