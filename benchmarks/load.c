/*
 * A client that keeps so many calls open at a time, over HTTP/1.1 or gRPC, and times each of them:
 * its whole, its first token, and the longest pause between two. The same for every server, so
 * that what is compared was measured alike.
 * Not h2load, which looks at no content: an error in a stream is a success to it, and what it
 * times is the first byte, which need be no token.
 *
 * load h1|grpc HOST PORT PATH HEADERS BODY CALLS_AT_A_TIME CALLS_A_CONNECTION SECONDS CALLS TOKENS
 *      OPENING
 *
 * HEADERS is a file of lines `name: value`, BODY a file sent as it is (for gRPC: with its prefix).
 * No new call is begun after SECONDS (0: no end), nor more than CALLS (0: no end). An answer is
 * right when its status is OK and it holds "token " exactly TOKENS times. At the beginning, at most
 * OPENING (0: all) wait for their first token at a time. Prints JSON.
 *
 * Of HTTP/2 there is what gRPC's own servers need: no dynamic table (it asks for none), flow
 * control, settings, pings. cc -O2 -o load load.c
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
#include <time.h>
#include <unistd.h>

enum { FRAME = 16384, INPUT = 1 << 17, PATIENCE_MS = 60000 };
enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };

typedef struct {
    char *data;
    size_t length, room;
} Bytes;

typedef struct {
    uint32_t id; /* 0: no call */
    int64_t began, first, last, gap;
    int tokens, matched, status; /* status: 1 is right, 0 not known yet, -1 wrong */
    size_t sent;                 /* of the body */
    int64_t window;
} Call;

typedef struct {
    int fd, wants_out;
    Bytes in, out;
    Call *calls;
    uint32_t next_id;
    int64_t window, initial, consumed;
    int reading;      /* of HTTP/1.1: 0 head, 1 body, 2 size of a chunk, 3 chunk, 4 trailers */
    int64_t expected; /* of it: bytes that are still to come */
    int broken;
} Connection;

static int grpc, at_a_time, a_connection, wanted_tokens, epoll;
static double seconds;
static long limit, begun, done, failed, running, waiting, peak, opening;
static int64_t start, *latencies, *firsts, *gaps;
static size_t kept_room;
static Bytes body, request_head;
static char reason[400];
static struct sockaddr_in address = {.sin_family = AF_INET};

static void add(Bytes *bytes, const void *data, size_t length) {
    if (bytes->length + length > bytes->room) {
        bytes->room = (bytes->length + length) * 2;
        bytes->data = realloc(bytes->data, bytes->room);
        if (!bytes->data) exit(3);
    }
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void why(const char *text, const char *data, size_t length) {
    if (reason[0]) return;
    size_t used = snprintf(reason, sizeof reason, "%s ", text);
    for (size_t i = 0; i < length && used < sizeof reason - 1; i++)
        if (data[i] >= ' ' && data[i] < 127 && data[i] != '"' && data[i] != '\\') reason[used++] = data[i];
}

static uint32_t number(const char *at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | (unsigned char)at[i];
    return value;
}

static void frame(Bytes *out, size_t length, int type, int flags, uint32_t stream) {
    unsigned char head[9] = {length >> 16, length >> 8, length, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    add(out, head, 9);
}

static void window_update(Bytes *out, uint32_t stream, uint32_t by) {
    uint32_t big = htonl(by);
    frame(out, 4, WINDOW_UPDATE, 0, stream);
    add(out, &big, 4);
}

/* Counts tokens in a piece of an answer; one may lie across two pieces. */
static void look(Call *call, const char *data, size_t length) {
    static const char needle[] = "token ";
    int before = call->tokens;
    for (size_t i = 0; i < length; i++) {
        if (data[i] == needle[call->matched]) call->matched++;
        else call->matched = data[i] == needle[0];
        if (call->matched == 6) call->tokens++, call->matched = 0;
    }
    if (call->tokens == before) return;
    int64_t now = now_ns();
    if (!call->first) {
        call->first = now;
        if (running - --waiting > peak) peak = running - waiting;
    }
    else if (now - call->last > call->gap) call->gap = now - call->last;
    call->last = now;
}

static void over(Call *call) {
    int right = call->status == 1 && call->tokens == wanted_tokens;
    if (call->status == 1 && !right) {
        char text[64];
        snprintf(text, sizeof text, "%d tokens instead of %d", call->tokens, wanted_tokens);
        why(text, "", 0);
    }
    if (!right) failed++;
    else {
        if ((size_t)done == kept_room) {
            kept_room = kept_room ? kept_room * 2 : 4096;
            latencies = realloc(latencies, kept_room * sizeof *latencies);
            firsts = realloc(firsts, kept_room * sizeof *firsts);
            gaps = realloc(gaps, kept_room * sizeof *gaps);
            if (!latencies || !firsts || !gaps) exit(3);
        }
        latencies[done] = now_ns() - call->began;
        firsts[done] = call->first - call->began;
        gaps[done++] = call->gap;
    }
    if (!call->first) waiting--;
    running--;
    call->id = 0;
}

static void flush(Connection *connection) {
    Bytes *out = &connection->out;
    if (!out->length) return;
    ssize_t sent = send(connection->fd, out->data, out->length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        connection->broken = 1;
        return;
    }
    if (sent > 0) {
        memmove(out->data, out->data + sent, out->length - sent);
        out->length -= sent;
    }
    if (connection->wants_out != (out->length > 0)) {
        connection->wants_out = out->length > 0;
        struct epoll_event event = {.events = EPOLLIN | (out->length ? EPOLLOUT : 0), .data.ptr = connection};
        epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
    }
}

static void send_body(Connection *connection, Call *call) {
    while (call->sent < body.length) {
        int64_t part = body.length - call->sent;
        if (part > FRAME) part = FRAME;
        if (part > call->window) part = call->window;
        if (part > connection->window) part = connection->window;
        if (part <= 0) return;
        call->window -= part;
        connection->window -= part;
        frame(&connection->out, part, DATA, call->sent + part == body.length, call->id);
        add(&connection->out, body.data + call->sent, part);
        call->sent += part;
    }
}

static void begin(Connection *connection, Call *call) {
    if (limit && begun >= limit) return;
    if (seconds > 0 && now_ns() - start >= seconds * 1e9) return;
    begun++, running++, waiting++;
    *call = (Call){.id = connection->next_id, .began = now_ns(), .window = connection->initial};
    connection->next_id += 2;
    if (grpc) {
        frame(&connection->out, request_head.length, HEADERS, 4, call->id);
        add(&connection->out, request_head.data, request_head.length);
        send_body(connection, call);
    } else {
        add(&connection->out, request_head.data, request_head.length);
        add(&connection->out, body.data, body.length);
    }
}

static void open_connection(Connection *connection) {
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("connect");
        exit(2);
    }
    int on = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event);
    connection->calls = calloc(a_connection, sizeof *connection->calls);
    connection->next_id = 1;
    connection->window = connection->initial = 65535;
    if (!grpc) return;
    add(&connection->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    static const char settings[] = {0, 1, 0, 0, 0, 0, /* no dynamic table */
                                    0, 2, 0, 0, 0, 0, /* no push */
                                    0, 4, 0x7f, (char)0xff, (char)0xff, (char)0xff};
    frame(&connection->out, sizeof settings, SETTINGS, 0, 0);
    add(&connection->out, settings, sizeof settings);
    window_update(&connection->out, 0, 0x7fffffff - 65535);
}

static Call *call_of(Connection *connection, uint32_t id) {
    for (int i = 0; id && i < a_connection; i++)
        if (connection->calls[i].id == id) return &connection->calls[i];
    return NULL;
}

static void take_settings(Connection *connection, const char *at, size_t length) {
    for (size_t i = 0; i + 6 <= length; i += 6) {
        if (number(at + i, 2) != 4) continue;
        int64_t by = (int64_t)number(at + i + 2, 4) - connection->initial;
        connection->initial += by;
        for (int k = 0; k < a_connection; k++) connection->calls[k].window += by;
    }
    frame(&connection->out, 0, SETTINGS, 1, 0);
}

static void take_frame(Connection *connection, int type, int flags, uint32_t id, const char *at, size_t length) {
    Call *call = call_of(connection, id);
    if (type == SETTINGS && !(flags & 1)) take_settings(connection, at, length);
    if (type == PING && !(flags & 1)) {
        frame(&connection->out, 8, PING, 1, 0);
        add(&connection->out, at, 8);
    }
    if (type == WINDOW_UPDATE) {
        if (!id) connection->window += number(at, 4);
        else if (call) call->window += number(at, 4);
    }
    if (type == SETTINGS || type == WINDOW_UPDATE)
        for (int i = 0; i < a_connection; i++)
            if (connection->calls[i].id) send_body(connection, &connection->calls[i]);
    if (type == GOAWAY) why("GOAWAY", at, length), connection->broken = 1;
    if (type == DATA) {
        if ((connection->consumed += length) > 1 << 20) {
            window_update(&connection->out, 0, connection->consumed);
            connection->consumed = 0;
        }
        if (call) look(call, at, length);
    }
    if (!call) return;
    if (type == HEADERS) {
        const char *status = memmem(at, length, "grpc-status\x01", 12);
        if (status) call->status = status[12] == '0' ? 1 : -1;
        if (status && call->status < 0) why("gRPC", at, length);
    }
    if (type == RST_STREAM) why("reset", "", 0), call->status = -1;
    if (type == RST_STREAM || ((type == HEADERS || type == DATA) && flags & 1)) {
        if (!call->status) why("no status", at, length);
        over(call);
        begin(connection, call);
    }
}

static size_t take_frames(Connection *connection, const char *at, size_t length) {
    size_t used = 0;
    while (length - used >= 9) {
        size_t size = number(at + used, 3);
        if (length - used < 9 + size) break;
        take_frame(connection, at[used + 3], at[used + 4], number(at + used + 5, 4) & 0x7fffffff, at + used + 9, size);
        used += 9 + size;
    }
    return used;
}

static int take_head(Connection *connection, char *at, size_t length) {
    Call *call = connection->calls;
    call->status = length > 12 && !memcmp(at + 8, " 200", 4) ? 1 : -1;
    connection->reading = 1, connection->expected = 0;
    for (char *line = at; (line = memmem(line, at + length - line, "\r\n", 2)); ) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) connection->expected = strtol(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) connection->reading = 2;
    }
    return 1;
}

/* Takes what there is of an HTTP/1.1 answer; gives how much of it. */
static size_t take_answer(Connection *connection, char *at, size_t length) {
    Call *call = connection->calls;
    size_t used = 0;
    int complete = 0;
    while (!complete) {
        char *from = at + used, *end;
        size_t rest = length - used;
        if (connection->reading == 1 || connection->reading == 3) {
            size_t part = rest < (size_t)connection->expected ? rest : (size_t)connection->expected;
            look(call, from, part);
            if (call->status < 0) why("HTTP", from, part);
            used += part;
            if ((connection->expected -= part)) return used;
            complete = connection->reading == 1;
            connection->reading = 2;
            continue;
        }
        end = memmem(from, rest, connection->reading ? "\r\n" : "\r\n\r\n", connection->reading ? 2 : 4);
        if (!end) return used;
        if (!connection->reading) {
            take_head(connection, from, end + 2 - from);
            used += end + 4 - from;
            continue;
        }
        used += end + 2 - from;
        if (connection->reading == 4) complete = end == from;
        else if (end > from) { /* an empty line ends the chunk before */
            connection->expected = strtol(from, NULL, 16);
            connection->reading = connection->expected ? 3 : 4;
        }
    }
    connection->reading = 0;
    over(call);
    begin(connection, call);
    return used;
}

static void readable(Connection *connection) {
    static char buffer[INPUT];
    ssize_t got = recv(connection->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        why("the connection was closed", "", 0);
        connection->broken = 1;
        return;
    }
    Bytes *in = &connection->in;
    add(in, buffer, got);
    size_t used = 0, part;
    do {
        if (!grpc && !connection->calls[0].id) break;
        part = grpc ? take_frames(connection, in->data + used, in->length - used) : take_answer(connection, in->data + used, in->length - used);
        used += part;
    } while (part && used < in->length);
    memmove(in->data, in->data + used, in->length - used);
    in->length -= used;
}

static void give_up(Connection *connection) {
    for (int i = 0; i < a_connection; i++)
        if (connection->calls[i].id) connection->calls[i].status = -1, over(&connection->calls[i]);
    close(connection->fd);
    connection->fd = -1;
}

static void literal(Bytes *out, const char *text, size_t length) {
    unsigned char size[4] = {length};
    size_t bytes = 1;
    if (length >= 127) {
        size[0] = 127, size[1] = (length - 127) & 0x7f;
        if (length - 127 >= 128) size[1] |= 0x80, size[2] = (length - 127) >> 7, bytes = 3;
        else bytes = 2;
    }
    add(out, size, bytes);
    add(out, text, length);
}

static void prepare(const char *host, const char *port, const char *path, const char *headers) {
    char line[8192], authority[128];
    Bytes *out = &request_head;
    int named = snprintf(authority, sizeof authority, "%s:%s", host, port);
    if (grpc) {
        add(out, "\x83\x86\x04", 3);
        literal(out, path, strlen(path));
        add(out, "\x01", 1);
        literal(out, authority, named);
    } else {
        int length = snprintf(line, sizeof line, "POST %s HTTP/1.1\r\nhost: %s\r\ncontent-length: %zu\r\n", path, authority, body.length);
        add(out, line, length);
    }
    FILE *file = fopen(headers, "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = 0;
        char *value = strstr(line, ": ");
        if (!value) continue;
        if (!grpc) {
            add(out, line, strlen(line));
            add(out, "\r\n", 2);
            continue;
        }
        *value = 0;
        add(out, "\x00", 1);
        literal(out, line, strlen(line));
        literal(out, value + 2, strlen(value + 2));
    }
    if (!grpc) add(out, "\r\n", 2);
}

static void print(const char *name, const int64_t *values) {
    printf(", \"%s\": [", name);
    for (long i = 0; i < done; i++) printf("%s%.1f", i ? "," : "", values[i] / 1e3);
    printf("]");
}

int main(int count, char **given) {
    if (count != 13) return fprintf(stderr, "see the head of load.c\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    grpc = !strcmp(given[1], "grpc");
    inet_pton(AF_INET, given[2], &address.sin_addr);
    address.sin_port = htons(atoi(given[3]));
    FILE *file = fopen(given[6], "r");
    char buffer[65536];
    size_t got;
    while (file && (got = fread(buffer, 1, sizeof buffer, file))) add(&body, buffer, got);
    at_a_time = atoi(given[7]), a_connection = grpc ? atoi(given[8]) : 1;
    seconds = atof(given[9]), limit = atol(given[10]), wanted_tokens = atoi(given[11]), opening = atol(given[12]);
    prepare(given[2], given[3], given[4], given[5]);
    epoll = epoll_create1(0);
    int connections = (at_a_time + a_connection - 1) / a_connection, open = connections;
    Connection *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) open_connection(&all[i]);
    start = now_ns();
    for (int i = 0; i < connections; i++) flush(&all[i]);
    struct epoll_event events[256];
    int begun_first = 0;
    do {
        for (; begun_first < at_a_time && (!opening || waiting < opening); begun_first++) {
            Connection *connection = &all[begun_first / a_connection];
            if (connection->fd < 0) continue;
            begin(connection, &connection->calls[begun_first % a_connection]);
            flush(connection);
        }
        int ready = epoll_wait(epoll, events, 256, PATIENCE_MS);
        if (ready <= 0) {
            why("nothing came for a minute", "", 0);
            break;
        }
        for (int i = 0; i < ready; i++) {
            Connection *connection = events[i].data.ptr;
            if (connection->fd < 0) continue;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(connection);
            if (!connection->broken) flush(connection);
            if (connection->broken) give_up(connection), open--;
        }
    } while (running && open);
    printf("{\"calls\": %ld, \"failed\": %ld, \"seconds\": %.6f, \"peak\": %ld, \"reason\": \"%s\"", done, failed + running, (now_ns() - start) / 1e9, peak, reason);
    print("latency_us", latencies);
    print("first_us", firsts);
    print("gap_us", gaps);
    printf("}\n");
    return 0;
}
